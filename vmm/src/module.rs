//! The kernel module that implements this host's KVM.

use std::path::Path;

/// The kernel modules that implement KVM, and the kind of each.
const KINDS: [(&str, &str); 3] =
    [("kvm_intel", "Intel VT-x"), ("kvm_amd", "AMD-V"), (FOREIGN_MODULE, FOREIGN_KIND)];
/// A KVM without hardware virtualization. It runs user mode natively, but emulates only some kernel-mode instructions.
const FOREIGN_MODULE: &str = "kvm_pvm";
const FOREIGN_KIND: &str = "of the PVM kind, which cannot run an ordinary guest kernel";

/// The kind of this host's KVM, from the module that implements it.
pub(crate) fn kind() -> Option<&'static str> {
    KINDS.iter().find(|(module, _)| is_loaded(module)).map(|(_, kind)| *kind)
}

fn is_loaded(module: &str) -> bool {
    Path::new("/sys/module").join(module).exists()
}

/// Returns a description of this host's KVM if it cannot run an ordinary guest kernel. This tests one file, so unlike
/// the trial guest it is cheap enough for every boot.
pub(crate) fn foreign_kind() -> Option<&'static str> {
    is_loaded(FOREIGN_MODULE).then_some(FOREIGN_KIND)
}
