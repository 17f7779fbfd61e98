//! What a template was made of. A machine continues only from a template with exactly its key.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;

use agent_proto::command::Protocol;
use plan::VmPlan;
use plan::vm::Kernel;
use vmm::snapshot;

/// Argument of the kernel's command line for `--marks`. A machine that continues from a template has no boot to mark.
const MARKS: &str = " vmm.marks";
/// Microcode of the host's first CPU. Hosts that are themselves machines may have none.
const MICROCODE: &str = "/sys/devices/system/cpu/cpu0/microcode/version";

/// The key, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    text: String,
    /// Length of the part that is the same for all templates that this program makes on this host.
    common: usize,
}

impl Key {
    /// Returns the key of `plan`'s machine with an embedded kernel, or why it cannot continue from a template.
    pub fn of(plan: &VmPlan) -> Result<Key, &'static str> {
        if plan.protocol != Protocol::Extended {
            return Err("the agent's protocol is not the extended one");
        }
        let mut text = common().ok_or("this program's file cannot be examined")?;
        let common = text.len();
        let kernel = match plan.kernel {
            Kernel::Base => "base",
            Kernel::Full => "full",
        };
        let cmdline = plan.cmdline.replace(MARKS, "");
        let VmPlan { memory_mib, vcpus, share, .. } = plan;
        let share = share.name();
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "memory {memory_mib} MiB\nvcpus {vcpus}\nkernel {kernel}\nshare {share}\ncmdline {cmdline}\n"
        );
        Ok(Key { text, common })
    }

    /// The whole key.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns a name for the template's directory, which other keys hardly have.
    pub fn name(&self) -> String {
        format!("{:016x}", snapshot::checksum_of(self.text.as_bytes()))
    }

    /// Whether a template with the label `label` was made by this program on this host, as it is now.
    pub fn is_current(label: &[u8]) -> bool {
        common().is_some_and(|common| label.starts_with(common.as_bytes()))
    }

    /// Returns the value of a line of a label.
    pub fn value<'a>(label: &'a str, name: &str) -> &'a str {
        let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(' ');
        label.lines().find_map(value).unwrap_or("?")
    }

    /// The part of the key that is the same for all templates of this program on this host.
    #[cfg(test)]
    fn common(&self) -> &str {
        &self.text[..self.common]
    }
}

/// Format, program with its kernels and agent, and the host. The CPU is not here: the state has its CPUID.
pub fn common() -> Option<String> {
    let program = program()?;
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let build = fs::read_to_string("/proc/sys/kernel/version").ok()?;
    let microcode = fs::read_to_string(MICROCODE).unwrap_or_default();
    let (host, build, microcode) = (host.trim(), build.trim(), microcode.trim());
    let format = snapshot::FORMAT;
    Some(format!("format {format}\n{program}\nhost {host} {build}\nmicrocode {microcode}\n"))
}

/// The line of the program, whose file this process can examine even if it can open none.
pub fn program() -> Option<String> {
    let program = fs::metadata("/proc/self/exe").ok()?;
    let (dev, ino, size) = (program.dev(), program.ino(), program.size());
    let (seconds, nanoseconds) = (program.mtime(), program.mtime_nsec());
    Some(format!("program {dev}:{ino} {size} {seconds}.{nanoseconds:09}"))
}

#[cfg(test)]
mod tests {
    use plan::VmSettings;

    use super::*;
    use crate::config::RunConfig;

    fn key(change: impl FnOnce(&mut VmPlan)) -> Result<Key, &'static str> {
        let mut plan = VmPlan::new(&VmSettings { memory_mib: Some(256), ..VmSettings::default() }, "host");
        change(&mut plan);
        Key::of(&plan)
    }

    #[test]
    fn everything_that_shapes_a_machine_is_in_the_key() {
        let first = key(|_| {}).unwrap();
        let other = |change: fn(&mut VmPlan)| key(change).unwrap();
        let others = [
            other(|plan| plan.memory_mib = 512),
            other(|plan| plan.vcpus = 2),
            other(|plan| plan.kernel = Kernel::Full),
            other(|plan| plan.share = plan::ShareType::P9),
            other(|plan| plan.cmdline.push_str(" debug")),
        ];
        for (at, other) in others.iter().enumerate() {
            assert!(other.text() != first.text() && other.name() != first.name(), "{at}");
            assert_eq!(other.common(), first.common());
        }
        assert_eq!(key(|_| {}).unwrap(), first);
    }

    #[test]
    fn what_belongs_to_a_pod_is_not() {
        let first = key(|_| {}).unwrap();
        assert_eq!(
            key(|plan| {
                plan.pod.hostname = "other".into();
                plan.cmdline.push_str(MARKS);
            })
            .unwrap(),
            first
        );
    }

    #[test]
    fn machines_that_cannot_continue_say_why() {
        let base = key(|plan| plan.protocol = Protocol::Api4244);
        assert_eq!(base, Err("the agent's protocol is not the extended one"));
        let plan = VmPlan::new(&VmSettings { memory_mib: Some(256), ..VmSettings::default() }, "host");
        let named = RunConfig { kernel: Some("/boot/vmlinux".into()), ..RunConfig::default() };
        assert_eq!(named.template_key(&plan), Err("a kernel or an initramfs is given"));
        let mut serial = RunConfig::default();
        serial.vm.console = Some(plan::Console { serial: true, to: None });
        assert_eq!(serial.template_key(&plan), Err("the machine has a serial port"));
    }

    #[test]
    fn a_label_of_this_program_and_host_is_current() {
        let key = key(|_| {}).unwrap();
        assert!(Key::is_current(key.text().as_bytes()));
        assert!(!Key::is_current(&key.text().as_bytes()[1..]));
        assert_eq!(Key::value(key.text(), "memory"), "256 MiB");
        assert_eq!(Key::value("memory_mib 3\n", "memory"), "?");
    }
}
