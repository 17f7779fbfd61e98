//! The programs whose networks are compared, and the bridge between them and the host.
//!
//! A container has one end of a veth pair, whose other end is at the bridge: with `vmm` a tap is joined to it. The guest of
//! QEMU has a tap at the bridge, which is one hop less.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::this_program;

/// Addresses of the bridge and of each contender.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const GUEST: &str = "10.77.0.2/24";
const BRIDGE: &str = "bench-bridge";
/// Network namespace of containers, its interface, and the other end at the bridge.
const NAMESPACE: &str = "network-bench";
const INTERFACE: &str = "eth0";
const VETH: &str = "bench-veth";
/// QEMU's tap.
const TAP: &str = "bench-tap";
/// The container's id.
const ID: &str = "network-bench";

/// The folder with everything that a contender reads: `vmm`, `bundle`, `kernel`, `initramfs`; and `other`, another `vmm`,
/// if that takes part. It has the address of the guest in `initramfs`'s /init.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(path: &str) -> Folder {
        Folder(path.into())
    }

    /// Path of `name` in the folder.
    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    Runc,
    Vmm,
    OtherVmm,
    Qemu,
}

/// A running contender.
pub struct Started {
    pub child: Child,
    /// The host's interface at the bridge.
    pub link: &'static str,
}

impl Contender {
    /// Those that take part.
    pub fn all(folder: &Folder) -> Vec<Contender> {
        let all = [Contender::Runc, Contender::Vmm, Contender::OtherVmm, Contender::Qemu];
        let takes_part =
            |contender: &Contender| *contender != Contender::OtherVmm || folder.0.join("other").exists();
        all.into_iter().filter(takes_part).collect()
    }

    pub fn name(self) -> &'static str {
        match self {
            Contender::Runc => "runc",
            Contender::Vmm => "vmm",
            Contender::OtherVmm => "other",
            Contender::Qemu => "QEMU",
        }
    }

    /// Starts the work of this program.
    pub fn start(self, folder: &Folder) -> Started {
        let mut command = match self {
            Contender::Runc => Command::new("runc"),
            Contender::Vmm => Command::new(folder.path("vmm")),
            Contender::OtherVmm => Command::new(folder.path("other")),
            Contender::Qemu => qemu(folder),
        };
        let link = if self == Contender::Qemu {
            lay_tap();
            TAP
        } else {
            lay_veth();
            command.args(["run", "--bundle", &bundle(folder), ID]);
            VETH
        };
        // No template is made beside what is measured.
        command.env("VMM_TEMPLATE_MAKE", "never").stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| panic!("start {}: {error}", self.name()));
        Started { child, link }
    }

    /// Waits for the end of the work, and removes its interface.
    pub fn end(self, mut started: Started, folder: &Folder) {
        if self == Contender::Qemu {
            started.child.kill().expect("end QEMU");
            started.child.wait().expect("wait for QEMU");
            return ip(&["link", "delete", TAP]);
        }
        let status = started.child.wait().expect("wait for the container");
        assert!(status.success(), "{}: {status}", self.name());
        ip(&["netns", "delete", NAMESPACE]);
        let _ = fs::remove_dir_all(folder.path("container"));
    }
}

/// Writes a bundle whose container runs this program in the network namespace. Returns its path.
fn bundle(folder: &Folder) -> String {
    let base = folder.0.join("bundle");
    fs::copy(this_program(), base.join("rootfs/network-bench")).expect("copy this program");
    let config = fs::read(base.join("config.json")).expect("read config.json");
    let mut config: Value = serde_json::from_slice(&config).expect("parse config.json");
    config["root"]["path"] = json!(base.join("rootfs"));
    config["process"]["args"] = json!(["/network-bench", "work"]);
    let namespaces = config["linux"]["namespaces"].as_array_mut().expect("namespaces");
    namespaces.retain(|namespace| namespace["type"] != "network");
    namespaces.push(json!({"type": "network", "path": format!("/run/netns/{NAMESPACE}")}));
    let dir = folder.path("container");
    fs::create_dir_all(&dir).expect("create a bundle");
    fs::write(format!("{dir}/config.json"), config.to_string()).expect("write config.json");
    dir
}

/// QEMU's microvm machine with vhost-net, with the kernel of `vmm`. The initramfs runs the work.
fn qemu(folder: &Folder) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-M", "microvm,acpi=off,pit=off,pic=off,rtc=off,isa-serial=off", "-accel", "kvm"])
        .args(["-cpu", "host", "-m", "512", "-smp", "1", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-no-reboot", "-global", "virtio-mmio.force-legacy=false"])
        .args(["-netdev", &format!("tap,id=net,ifname={TAP},script=no,downscript=no,vhost=on")])
        .args(["-device", "virtio-net-device,netdev=net"])
        .args(["-kernel", &folder.path("kernel"), "-initrd", &folder.path("initramfs")])
        .args(["-append", "panic=-1 loglevel=1 tsc=reliable no_timer_check rdinit=/init"]);
    command
}

/// Makes the bridge with the host's address.
pub fn lay_bridge() {
    ip(&["link", "add", BRIDGE, "type", "bridge"]);
    ip(&["address", "add", &format!("{HOST}/24"), "dev", BRIDGE]);
    ip(&["link", "set", BRIDGE, "up"]);
}

/// Makes the network namespace of a container, connected to the bridge.
fn lay_veth() {
    ip(&["netns", "add", NAMESPACE]);
    ip(&["link", "add", INTERFACE, "netns", NAMESPACE, "type", "veth", "peer", "name", VETH]);
    ip(&["link", "set", VETH, "master", BRIDGE, "up"]);
    ip(&["-netns", NAMESPACE, "address", "add", GUEST, "dev", INTERFACE]);
    ip(&["-netns", NAMESPACE, "link", "set", INTERFACE, "up"]);
    ip(&["-netns", NAMESPACE, "link", "set", "lo", "up"]);
}

/// Makes the tap of QEMU at the bridge.
fn lay_tap() {
    ip(&["tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"]);
    ip(&["link", "set", TAP, "master", BRIDGE, "up"]);
}

fn ip(words: &[&str]) {
    let status = Command::new("ip").args(words).stdout(Stdio::null()).status().expect("start ip");
    assert!(status.success(), "ip {words:?}: {status}");
}
