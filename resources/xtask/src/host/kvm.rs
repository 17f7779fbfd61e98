//! Decides which KVM a test uses.

use std::env;
use std::fs::OpenOptions;
use std::path::Path;

/// Environment variable that overrides the detection: `native` or `emulated`.
const CHOICE: &str = "VMM_TEST_KVM";

/// Whether this machine's KVM can run an ordinary Linux guest: /dev/kvm can be opened, and is not PVM, which emulates
/// ring 0 and fails at instructions that every kernel uses. `$VMM_TEST_KVM` overrides the result.
pub fn kvm_usable() -> bool {
    let opens = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    decide(env::var(CHOICE).ok().as_deref(), opens, Path::new("/sys/module/kvm_pvm").exists())
}

fn decide(choice: Option<&str>, opens: bool, pvm: bool) -> bool {
    match choice {
        Some("native") => true,
        Some("emulated") => false,
        _ => opens && !pvm,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_overrides_the_detection() {
        assert!(decide(None, true, false));
        assert!(!decide(None, true, true));
        assert!(!decide(None, false, false));
        assert!(decide(Some("native"), false, true));
        assert!(!decide(Some("emulated"), true, false));
        assert!(decide(Some(""), true, false));
    }
}
