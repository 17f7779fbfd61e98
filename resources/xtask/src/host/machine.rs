//! QEMU's command line for the emulated machine. One function creates it for saving and for restoring: both machines
//! must be equal.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Number of folders that can be shared for writing. It is fixed because the snapshot contains the devices.
pub const OUT_SLOTS: usize = 4;

/// Names of the virtio-serial ports by number, from 1 (port 0 can only be a console).
pub const PORTS: [&str; 4] = ["control", "stdout", "stderr", "stdin"];

/// Name of QEMU's control socket.
pub const MONITOR: &str = "monitor";

/// Clock of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Clock {
    /// Time of the outer machine; every emulated CPU is a thread.
    Wall,
    /// One nanosecond per instruction of L1 and its guests; idle time is skipped. One CPU.
    Instructions,
}

/// Properties of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Machine {
    /// Memory in MiB, including the file system's overlay.
    pub memory_mib: u32,
    /// CPUs for the command.
    pub cpus: u32,
    /// Clock of L1.
    pub clock: Clock,
}

/// The files, folders and sockets of the outer machine behind the machine's devices.
pub struct Backends<'a> {
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    /// File with the machine's memory.
    pub ram: &'a Path,
    /// Whether the machine writes to that file, rather than to a private copy of it.
    pub keep_ram: bool,
    /// Prefix of the ports' abstract sockets: `<sockets>.<port>`.
    pub sockets: &'a str,
    /// Folders shared for writing; at most `OUT_SLOTS`.
    pub outs: &'a [PathBuf],
    /// Folder for unused slots.
    pub empty: &'a Path,
}

impl Machine {
    /// Returns the number of CPUs of the machine. With more than one, no guest runs on CPU 0 (tests/host/README.md,
    /// "The one trap").
    fn all_cpus(&self) -> u32 {
        match self.clock {
            Clock::Wall => self.cpus + 1,
            Clock::Instructions => 1,
        }
    }

    /// Returns the kernel's command line. `isolcpus` keeps the scheduler from moving a process to CPU 0: kernels before
    /// 6.2 drop a process's affinity when an engine puts it into a cgroup with CPUs.
    fn kernel_line(&self) -> String {
        let isolated = if self.all_cpus() > 1 { " isolcpus=domain,0" } else { "" };
        format!("console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable{isolated}")
    }

    /// Returns QEMU's arguments without any backend. Machines with equal shapes can be restored from the same snapshot.
    pub fn shape(&self) -> Vec<OsString> {
        let none = Path::new("/");
        self.arguments(&Backends {
            kernel: none,
            initramfs: none,
            ram: none,
            keep_ram: false,
            sockets: "",
            outs: &[],
            empty: none,
        })
    }

    /// Returns QEMU's arguments.
    pub fn arguments(&self, backends: &Backends) -> Vec<OsString> {
        let mut line = Arguments(Vec::new());
        match self.clock {
            Clock::Wall => line.plain(&["-accel", "tcg,thread=multi"]),
            Clock::Instructions => {
                line.plain(&["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"])
            }
        };
        // With these two features kernels copy and clear memory by `rep movsb`, which QEMU emulates byte by byte.
        line.plain(&["-cpu", "max,-erms,-fsrm"]);
        line.plain(&["-M", "q35,memory-backend=ram", "-m", &self.memory_mib.to_string()]);
        line.plain(&["-smp", &self.all_cpus().to_string()]);
        line.plain(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        line.plain(&["-append", &self.kernel_line()]);
        line.plain(&["-kernel"]).0.push(backends.kernel.into());
        line.plain(&["-initrd"]).0.push(backends.initramfs.into());
        let share = if backends.keep_ram { "on" } else { "off" };
        let ram = format!("memory-backend-file,id=ram,size={}M,share={share},mem-path=", self.memory_mib);
        line.with_path("-object", &ram, backends.ram, "");
        line.plain(&["-chardev", "stdio,id=log,signal=off", "-serial", "chardev:log"]);
        line.plain(&["-device", &format!("virtio-serial-pci,max_ports={}", PORTS.len() + 1)]);
        for (index, port) in PORTS.iter().enumerate() {
            line.socket(port, backends.sockets);
            line.plain(&["-device", &format!("virtserialport,chardev={port},name={port},nr={}", index + 1)]);
        }
        line.socket(MONITOR, backends.sockets);
        line.plain(&["-mon", &format!("chardev={MONITOR},mode=control")]);
        line.share("root", Path::new("/"), ",readonly=on");
        for slot in 0..OUT_SLOTS {
            match backends.outs.get(slot) {
                Some(folder) => line.share(&format!("out{slot}"), folder, ""),
                None => line.share(&format!("out{slot}"), backends.empty, ",readonly=on"),
            }
        }
        line.0
    }
}

/// A command line under construction.
pub struct Arguments(pub Vec<OsString>);

impl Arguments {
    /// Appends `words`.
    pub fn plain(&mut self, words: &[&str]) -> &mut Self {
        self.0.extend(words.iter().map(OsString::from));
        self
    }

    /// Appends a character device `id` on the abstract socket `<sockets>.<id>`, to which QEMU connects.
    pub fn socket(&mut self, id: &str, sockets: &str) {
        self.plain(&["-chardev", &format!("socket,id={id},path={sockets}.{id},abstract=on")]);
    }

    /// Appends a 9p device with tag `tag` for a folder of the outer machine. Inode numbers are remapped because the
    /// folder may contain several file systems.
    fn share(&mut self, tag: &str, folder: &Path, options: &str) {
        let rest = format!(",security_model=none,multidevs=remap{options}");
        self.with_path("-fsdev", &format!("local,id={tag},path="), folder, &rest);
        self.plain(&["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
    }

    /// Appends an option whose value contains a path. QEMU splits values at commas; a comma of a path is doubled.
    fn with_path(&mut self, option: &str, before: &str, path: &Path, after: &str) {
        use std::os::unix::ffi::{OsStrExt, OsStringExt};
        let mut value = before.as_bytes().to_vec();
        for &byte in path.as_os_str().as_bytes() {
            value.extend(std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }));
        }
        value.extend_from_slice(after.as_bytes());
        self.plain(&[option]).0.push(OsString::from_vec(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(machine: Machine, keep_ram: bool) -> Vec<String> {
        let outs = [PathBuf::from("/a,b")];
        let backends = Backends {
            kernel: Path::new("/k"),
            initramfs: Path::new("/i"),
            ram: Path::new("/r"),
            keep_ram,
            sockets: "s",
            outs: &outs,
            empty: Path::new("/e"),
        };
        machine.arguments(&backends).into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    fn after<'a>(words: &'a [String], option: &str) -> &'a str {
        &words[words.iter().position(|word| word == option).unwrap() + 1]
    }

    #[test]
    fn a_machine_on_the_wall_clock_has_one_more_cpu_than_the_command() {
        let words = arguments(Machine { memory_mib: 512, cpus: 2, clock: Clock::Wall }, false);
        assert_eq!(after(&words, "-smp"), "3");
        assert_eq!(after(&words, "-object"), "memory-backend-file,id=ram,size=512M,share=off,mem-path=/r");
        assert!(words.contains(&"local,id=out0,path=/a,,b,security_model=none,multidevs=remap".to_string()));
        assert!(
            words.contains(
                &"local,id=out3,path=/e,security_model=none,multidevs=remap,readonly=on".to_string()
            )
        );
        assert!(words.contains(&"socket,id=control,path=s.control,abstract=on".to_string()));
    }

    #[test]
    fn a_machine_on_the_instruction_clock_has_one_cpu() {
        let words = arguments(Machine { memory_mib: 512, cpus: 1, clock: Clock::Instructions }, true);
        assert_eq!(after(&words, "-smp"), "1");
        assert_eq!(after(&words, "-icount"), "shift=0,sleep=off");
        assert!(after(&words, "-object").contains("share=on"));
    }

    #[test]
    fn different_machines_have_different_shapes() {
        let machine = Machine { memory_mib: 2048, cpus: 2, clock: Clock::Wall };
        for other in [
            Machine { memory_mib: 4096, ..machine },
            Machine { cpus: 3, ..machine },
            Machine { clock: Clock::Instructions, ..machine },
        ] {
            assert_ne!(machine.shape(), other.shape());
        }
    }
}
