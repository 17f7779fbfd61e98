//! The virtual machine: its size, its kernel's command line, and its pod.

use std::path::{Path, PathBuf};

use agent_proto::command::Protocol;
use agent_proto::payload::Pod;
use oci::bundle::{Result, invalid, unsupported};
use oci::cgroups_path::{CgroupPath, HostCgroup, Place, Scope};
use oci::{Bundle, Spec};

use crate::limits::{self, Sets};

/// Memory of a machine whose size nobody sets, MiB.
pub const DEFAULT_MEMORY_MIB: u32 = 256;
/// The least memory in which the guest's kernel, the agent and a container start, MiB.
pub const MIN_MEMORY_MIB: u32 = 64;
/// Memory that a machine has above a container's limit for the guest's kernel and the agent, MiB; 1/64 of the limit is added
/// for the kernel's page structures.
pub const GUEST_OVERHEAD_MIB: u64 = 32;
/// The most vCPUs that a CPU quota or CPU set gives.
pub const MAX_VCPUS: u8 = 32;
/// The share's mount tag.
pub const SHARE_TAG: &str = "share";

/// Where the guest's kernel log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Console {
    /// The machine has a serial port, for what the kernel says before its drivers.
    pub serial: bool,
    /// A file; stderr if there is none.
    pub to: Option<PathBuf>,
}

/// The protocol by which the guest reaches the host's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShareType {
    /// virtio-fs.
    #[default]
    VirtioFs,
    /// virtio-9p, for guest kernels without virtio-fs.
    P9,
}

impl ShareType {
    /// Returns the file system's name in the guest.
    pub fn name(self) -> &'static str {
        match self {
            ShareType::VirtioFs => "virtiofs",
            ShareType::P9 => "9p",
        }
    }
}

/// Who moves packets between the guest and its taps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VhostNet {
    /// The host's kernel if it has vhost-net and we may use it, else this process.
    #[default]
    Auto,
    /// The host's kernel.
    On,
    /// This process.
    Off,
}

/// What a user sets of the machine: flags, environment and configuration file, merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmSettings {
    /// Guest memory, MiB.
    pub memory_mib: Option<u32>,
    /// Virtual CPUs.
    pub vcpus: Option<u8>,
    /// `linux.cgroupsPath` is in systemd's form.
    pub systemd_cgroup: bool,
    /// How the agent is spoken to.
    pub protocol: Protocol,
    /// Words to add to the kernel's command line.
    pub cmdline: Option<String>,
    /// Where the guest's kernel log is shown.
    pub console: Option<Console>,
    /// The share's protocol.
    pub share: ShareType,
    /// Who moves packets.
    pub vhost_net: VhostNet,
    /// The kernel writes its boot marks.
    pub marks: bool,
}

/// A virtual machine to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmPlan {
    /// Guest memory, MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// The kernel's command line; crate `vmm` adds the devices.
    pub cmdline: String,
    /// The share's protocol.
    pub share: ShareType,
    /// Who moves packets.
    pub vhost_net: VhostNet,
    /// A NIC sends from its interface's addresses alone.
    pub network_filter: bool,
    /// How the agent is spoken to.
    pub protocol: Protocol,
    /// The machine's cgroup on the host; without one it stays in ours.
    pub cgroup: Option<HostCgroup>,
    /// The network namespace whose interfaces the guest gets; without one it has a loopback alone.
    pub network: Option<PathBuf>,
    /// STARTPOD's payload.
    pub pod: Pod,
}

impl VmPlan {
    /// Returns a machine for containers that come while it runs.
    pub fn new(settings: &VmSettings, hostname: &str) -> VmPlan {
        VmPlan {
            memory_mib: settings.memory_mib.unwrap_or(DEFAULT_MEMORY_MIB),
            vcpus: settings.vcpus.unwrap_or(1),
            cmdline: cmdline(settings),
            share: settings.share,
            vhost_net: settings.vhost_net,
            network_filter: false,
            protocol: settings.protocol,
            cgroup: None,
            network: None,
            pod: Pod {
                hostname: hostname.to_owned(),
                share_dir: SHARE_TAG.to_owned(),
                share_type: match settings.protocol {
                    // hyperstart refuses a pod with a key that it does not know.
                    Protocol::Api4244 => String::new(),
                    _ => settings.share.name().to_owned(),
                },
                ..Pod::default()
            },
        }
    }

    /// Returns the machine of the bundle that is container `id`. Its limits give the machine its size, unless `settings` do.
    ///
    /// # Errors
    ///
    /// A limit or `linux.cgroupsPath` is invalid or cannot be honoured.
    pub fn for_bundle(bundle: &Bundle, id: &str, settings: &VmSettings) -> Result<VmPlan> {
        let resources = &bundle.spec.linux.resources;
        let cgroup = host_cgroup(bundle, id, settings.systemd_cgroup)?;
        let sets = if cgroup.is_some() { Sets::Host } else { Sets::Guest };
        Ok(VmPlan {
            memory_mib: settings.memory_mib.unwrap_or_else(|| limits::memory_mib(resources)),
            vcpus: settings.vcpus.map_or_else(|| limits::vcpus(resources, sets), Ok)?,
            cgroup,
            network: bundle.network().map(Path::to_owned),
            network_filter: network_filter(&bundle.spec, settings.vhost_net)?,
            ..VmPlan::new(settings, &bundle.spec.hostname)
        })
    }

    /// Returns whose CPUs and memory nodes a container's sets name.
    pub fn sets(&self) -> Sets {
        if self.cgroup.is_some() { Sets::Host } else { Sets::Guest }
    }
}

/// The annotation that holds a container's network interfaces to their addresses.
const NETWORK_FILTER: &str = "vmm.network.filter";

/// Whether a NIC is to send from its interface's addresses alone.
fn network_filter(spec: &Spec, vhost_net: VhostNet) -> Result<bool> {
    let path = format!("annotations[{NETWORK_FILTER:?}]");
    match spec.annotations.get(NETWORK_FILTER).map(String::as_str) {
        None | Some("false") => Ok(false),
        Some("true") if vhost_net == VhostNet::On => {
            Err(unsupported(path, "with vhost-net, which is asked for, packets do not pass the filter"))
        }
        Some("true") => Ok(true),
        Some(other) => Err(invalid(&path, format!("{other:?} is neither \"true\" nor \"false\""))),
    }
}

fn host_cgroup(bundle: &Bundle, id: &str, systemd: bool) -> Result<Option<HostCgroup>> {
    let linux = &bundle.spec.linux;
    let place = match (systemd, linux.cgroups_path.as_str()) {
        (false, "") => return Ok(None),
        (false, path) => Place::Path(CgroupPath::parse(path)?),
        (true, "") => Place::Scope(Scope::parse(&format!(":vmm:{id}"))?),
        (true, path) => Place::Scope(Scope::parse(path)?),
    };
    Ok(Some(HostCgroup { place, resources: linux.resources.clone() }))
}

/// The words that every boot has, each earning its place:
/// no modules and no legacy probing, the TSC trusted without a calibration, no crypto self-tests, the CPU's random
/// numbers trusted so that nobody waits for entropy, no 64 MiB set aside above 4 GiB for devices that cannot reach
/// there, a panic that resets at once in a way that this machine has.
const CMDLINE: &str = "reboot=k panic=-1 nomodule noreplace-smp tsc=reliable no_timer_check cryptomgr.notests \
                       random.trust_cpu=on swiotlb=noforce rdinit=/init";

fn cmdline(settings: &VmSettings) -> String {
    let mut words = Vec::new();
    match &settings.console {
        Some(console) if console.serial => words.push("console=ttyS0 earlyprintk=ttyS0 console=hvc0"),
        Some(_) => words.push("console=hvc0"),
        None => words.push("console=hvc0 quiet"),
    }
    words.push(CMDLINE);
    if settings.marks {
        words.push("vmm.marks");
    }
    words.extend(settings.cmdline.as_deref());
    words.join(" ")
}
