//! Checks which features this host's KVM has and whether it can execute a guest kernel. A boot does not run these
//! checks: it reports the call that failed.

mod trial;

use std::io;

use kvm_bindings::{KVM_CAP_PMU_CAPABILITY, KVM_CAP_X86_BUS_LOCK_EXIT};
use kvm_ioctls::{Cap, Kvm};

use crate::module::kind;

/// KVM API version of every Linux since 2.6.22 (KVM API 4.1).
const API_VERSION: i32 = 12;

/// The capabilities that a machine needs, with their names in KVM's documentation.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// The capabilities that take something from a guest, with what a guest has without them.
const LIMITS: [(u32, &str, &str); 2] = [
    (
        KVM_CAP_PMU_CAPABILITY,
        "KVM_CAP_PMU_CAPABILITY",
        "missing (Linux before 5.18): guests can use the CPU's performance counters",
    ),
    (
        KVM_CAP_X86_BUS_LOCK_EXIT,
        "KVM_CAP_X86_BUS_LOCK_EXIT",
        "missing: this CPU does not tell when a guest locks the memory bus",
    ),
];

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Name of the checked feature.
    pub what: &'static str,
    /// Whether the feature is sufficient for a machine.
    pub ok: bool,
    /// Explanation of the result.
    pub detail: String,
}

impl Finding {
    fn ok(what: &'static str, detail: impl Into<String>) -> Finding {
        Finding { what, ok: true, detail: detail.into() }
    }

    fn bad(what: &'static str, detail: impl Into<String>) -> Finding {
        Finding { what, ok: false, detail: detail.into() }
    }
}

/// Checks this host's KVM, and runs a few kernel instructions in a trial machine. A machine can boot if every finding
/// is ok. Checks that would fail only because an earlier one did are left out.
pub fn probe() -> Vec<Finding> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return vec![no_kvm(io::Error::from_raw_os_error(error.errno()))],
    };
    let mut findings = vec![Finding::ok("/dev/kvm", kind().unwrap_or("of an unknown kind"))];
    match kvm.get_api_version() {
        API_VERSION => findings.push(Finding::ok("KVM API", "version 12")),
        other => findings.push(Finding::bad("KVM API", format!("version {other}; it must be {API_VERSION}"))),
    }
    for (cap, name) in NEEDED {
        findings.push(match kvm.check_extension(cap) {
            true => Finding::ok(name, "present"),
            false => Finding::bad(name, "missing"),
        });
    }
    findings.push(Finding::ok(
        "KVM_CAP_TSC_DEADLINE_TIMER",
        match kvm.check_extension(Cap::TscDeadlineTimer) {
            true => "present",
            false => "missing: guests boot, but more slowly, because they calibrate their timer",
        },
    ));
    for (cap, name, missing) in LIMITS {
        let detail = if kvm.check_extension_raw(cap.into()) > 0 { "present" } else { missing };
        findings.push(Finding::ok(name, detail));
    }
    findings.push(Finding::ok("vcpus", format!("at most {}", kvm.get_max_vcpus())));
    if findings.iter().all(|finding| finding.ok) {
        findings.push(guest_code());
    }
    findings
}

/// Explains why /dev/kvm cannot be opened.
fn no_kvm(error: io::Error) -> Finding {
    let detail = match error.kind() {
        io::ErrorKind::NotFound => {
            "missing: the CPU has no virtualization, the firmware disables it, or no kvm module is loaded"
                .to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "no permission to open it for reading and writing: on most systems the group `kvm` has it"
                .to_owned()
        }
        _ => format!("cannot be opened: {error}"),
    };
    Finding::bad("/dev/kvm", detail)
}

/// Checks that this KVM executes the privileged instructions of a guest kernel.
fn guest_code() -> Finding {
    const WHAT: &str = "guest kernel code";
    match trial::run() {
        Ok(()) => Finding::ok(WHAT, "a trial guest ran"),
        Err(trial::TrialError::Failed { instruction, why }) => Finding::bad(
            WHAT,
            format!("this KVM, {}, failed on {instruction}: {why}", kind().unwrap_or("of an unknown kind")),
        ),
        Err(error) => Finding::bad(WHAT, chain(&error)),
    }
}

/// Formats an error and all its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_kvm_says_what_to_do() {
        let detail = |kind: io::ErrorKind| no_kvm(kind.into()).detail;
        assert!(detail(io::ErrorKind::NotFound).starts_with("missing: the CPU"));
        assert!(detail(io::ErrorKind::PermissionDenied).contains("group `kvm`"));
        assert!(detail(io::ErrorKind::ResourceBusy).starts_with("cannot be opened"));
        assert!(!no_kvm(io::ErrorKind::NotFound.into()).ok);
    }

    #[test]
    fn causes_are_told_in_one_line() {
        let error = crate::KvmError::Call { step: "create a vcpu", source: io::Error::other("too many") };
        assert_eq!(chain(&error), "kvm: create a vcpu: too many");
    }
}
