//! The programs that are compared, and how each is started.
//!
//! `vmm`, runc and crun run the container of one bundle, which prints a line. The other monitors boot the guest kernel of
//! `vmm` to an init that prints a line and resets the machine, and run no container.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The folder with everything that a start reads: `vmm`, `bundle`, `kernel`, `initramfs`; and, if they take part, `other`
/// (another `vmm`), `firecracker` and `cloud-hypervisor`.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(path: &str) -> Folder {
        Folder(path.into())
    }

    /// Path of `name` in the folder.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn has(&self, name: &str) -> bool {
        self.0.join(name).exists()
    }
}

/// The size of a machine. Without a size a container's machine has the default one, and another monitor's one vCPU and
/// 256 MiB.
#[derive(Clone, Copy, Default)]
pub struct Shape {
    pub mib: Option<u32>,
    pub vcpus: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    Vmm,
    /// From a template, which must be there.
    Continued,
    OtherVmm,
    Runc,
    Crun,
    Qemu,
    Firecracker,
    CloudHypervisor,
}

/// All contenders, in the order of tables.
const ALL: [Contender; 7] = [
    Contender::Vmm,
    Contender::OtherVmm,
    Contender::Runc,
    Contender::Crun,
    Contender::Qemu,
    Contender::Firecracker,
    Contender::CloudHypervisor,
];

/// Words of the kernel command line for the other monitors, whose console is a 16550 UART.
const CMDLINE: &str =
    "console=ttyS0 8250.nr_uarts=1 panic=-1 loglevel=1 tsc=reliable no_timer_check rdinit=/init";

impl Contender {
    /// Those that take part.
    pub fn all(folder: &Folder) -> Vec<Contender> {
        ALL.into_iter().filter(|contender| contender.takes_part(folder)).collect()
    }

    /// Those that take part and start a machine.
    pub fn machines(folder: &Folder) -> Vec<Contender> {
        let process = [Contender::Runc, Contender::Crun];
        Contender::all(folder).into_iter().filter(|contender| !process.contains(contender)).collect()
    }

    /// Those that take part and run a container.
    pub fn containers(folder: &Folder) -> Vec<Contender> {
        let all = Contender::all(folder).into_iter().filter(|contender| contender.runs_a_container());
        [Contender::Continued].into_iter().chain(all).collect()
    }

    pub fn takes_part(self, folder: &Folder) -> bool {
        match self {
            Contender::OtherVmm => folder.has("other"),
            Contender::Firecracker => folder.has("firecracker"),
            Contender::CloudHypervisor => folder.has("cloud-hypervisor"),
            _ => true,
        }
    }

    fn runs_a_container(self) -> bool {
        !matches!(self, Contender::Qemu | Contender::Firecracker | Contender::CloudHypervisor)
    }

    pub fn name(self) -> &'static str {
        match self {
            Contender::Vmm => "vmm",
            Contender::Continued => "vmm from a template",
            Contender::OtherVmm => "other vmm",
            Contender::Runc => "runc",
            Contender::Crun => "crun",
            Contender::Qemu => "QEMU microvm",
            Contender::Firecracker => "Firecracker",
            Contender::CloudHypervisor => "Cloud Hypervisor",
        }
    }

    /// What the line of output is.
    pub fn first(self) -> &'static str {
        if self.runs_a_container() { "container's first output" } else { "init's first line" }
    }

    /// The line that a start prints.
    pub fn line(self) -> &'static str {
        // A console ends its lines with a carriage return.
        if self.runs_a_container() { "hello\n" } else { "HELLO" }
    }

    /// The command of one start. `id` is the container's, which nothing else has.
    pub fn command(self, folder: &Folder, id: &str, shape: Shape) -> Command {
        match self {
            Contender::Vmm => vmm(folder, "vmm", shape),
            Contender::Continued => continued(folder, "require", &["run", &folder.path("bundle")]),
            Contender::OtherVmm => vmm(folder, "other", shape),
            Contender::Runc | Contender::Crun => {
                let mut command = Command::new(self.name());
                command.args(["run", "--bundle", &folder.path("bundle"), id]);
                command
            }
            Contender::Qemu => qemu(folder, shape),
            Contender::Firecracker => firecracker(folder, id, shape),
            Contender::CloudHypervisor => cloud_hypervisor(folder, shape),
        }
    }
}

fn vmm(folder: &Folder, program: &str, shape: Shape) -> Command {
    let mut command = Command::new(folder.path(program));
    // Cold starts, also after the first.
    command.arg("run").env("VMM_TEMPLATE_MAKE", "never");
    if let Some(mib) = shape.mib {
        command.args(["--memory", &mib.to_string()]);
    }
    if let Some(vcpus) = shape.vcpus {
        command.args(["--cpus", &vcpus.to_string()]);
    }
    command.arg(folder.path("bundle"));
    command
}

/// `vmm` with the bench's own templates.
pub fn continued(folder: &Folder, when: &str, words: &[&str]) -> Command {
    continued_by("vmm", folder, when, words)
}

/// Another program with templates of its own in the same directory.
pub fn continued_by(program: &str, folder: &Folder, when: &str, words: &[&str]) -> Command {
    let mut command = Command::new(folder.path(program));
    command.args(words).env("VMM_TEMPLATE", when).env("VMM_TEMPLATE_DIR", folder.path("templates"));
    command
}

/// Makes the template of the bench's container, of each `vmm`.
pub fn make_template(folder: &Folder) {
    for program in ["vmm", "other"].into_iter().filter(|program| folder.has(program)) {
        let mut create = continued_by(program, folder, "auto", &["template", "create"]);
        let made = create.stdout(Stdio::null()).status().expect("start vmm");
        assert!(made.success(), "make a template: {made}");
    }
}

fn qemu(folder: &Folder, shape: Shape) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-M", "microvm,pit=off,pic=off,rtc=off,isa-serial=on", "-accel", "kvm", "-cpu", "host"])
        .args(["-m", &shape.mib.unwrap_or(256).to_string(), "-smp", &shape.vcpus.unwrap_or(1).to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .args(["-kernel", &folder.path("kernel"), "-initrd", &folder.path("initramfs")])
        .args(["-append", &format!("{CMDLINE} reboot=t")]);
    command
}

/// Firecracker without its API, from a file of its own for each start.
fn firecracker(folder: &Folder, id: &str, shape: Shape) -> Command {
    let config = serde_json::json!({
        "boot-source": {
            "kernel_image_path": folder.path("kernel"),
            "initrd_path": folder.path("initramfs"),
            "boot_args": format!("{CMDLINE} reboot=k"),
        },
        "drives": [],
        "machine-config": {"vcpu_count": shape.vcpus.unwrap_or(1), "mem_size_mib": shape.mib.unwrap_or(256)},
    });
    let file = folder.path(&format!("firecracker-{id}.json"));
    fs::write(&file, config.to_string()).expect("write Firecracker's configuration");
    let mut command = Command::new(folder.path("firecracker"));
    command.args(["--no-api", "--config-file", &file, "--log-path", "/dev/null", "--level", "Error"]);
    command
}

fn cloud_hypervisor(folder: &Folder, shape: Shape) -> Command {
    let mut command = Command::new(folder.path("cloud-hypervisor"));
    command
        .args(["--kernel", &folder.path("kernel"), "--initramfs", &folder.path("initramfs")])
        .args(["--cmdline", &format!("{CMDLINE} reboot=k"), "--serial", "tty", "--console", "off"])
        .args(["--memory", &format!("size={}M", shape.mib.unwrap_or(256))])
        .args(["--cpus", &format!("boot={}", shape.vcpus.unwrap_or(1))])
        .stderr(Stdio::null());
    command
}
