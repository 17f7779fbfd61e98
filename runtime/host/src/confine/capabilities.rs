//! The capabilities of a thread, in every set.

use std::io;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitiesSecureBits as Bits, CapabilitySet, CapabilitySets, capabilities,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_capabilities_secure_bits,
};

use super::Role;

/// Capabilities of the file server. It acts for processes of the guest, whose permissions the guest's kernel has
/// checked: it gives files any owner, mode and file capabilities, creates device nodes that the bundle allows, and
/// writes to any file of a share.
const FILES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// Capability with which every main thread removes a cgroup at its end: by its mode, the root of the cgroups is not
/// writable.
const MAIN: CapabilitySet = CapabilitySet::DAC_OVERRIDE;

/// Connecting as the guest's users. The guest's kernel has checked whether they may.
const SOCKETS: CapabilitySet =
    CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::SETGID).union(CapabilitySet::SETUID);

/// Additional capabilities of a pod's main thread, which shares the files of containers that clients add: it finds
/// directories, copies their mounts, and gives files of the podfile their owners.
const POD: CapabilitySet =
    CapabilitySet::CHOWN.union(CapabilitySet::DAC_READ_SEARCH).union(CapabilitySet::SYS_ADMIN);

/// Capabilities that a program never has again, not as root and not by its file. A change of the file system's user
/// keeps the file server's capabilities.
const LOCKED: Bits = Bits::NO_ROOT
    .union(Bits::NO_ROOT_LOCKED)
    .union(Bits::NO_SETUID_FIXUP)
    .union(Bits::NO_SETUID_FIXUP_LOCKED)
    .union(Bits::KEEP_CAPS_LOCKED)
    .union(Bits::NO_CAP_AMBIENT_RAISE)
    .union(Bits::NO_CAP_AMBIENT_RAISE_LOCKED);

/// Drops all capabilities of the calling thread but those of `role`.
pub fn keep(role: Role) -> io::Result<()> {
    let present = capabilities(None)?;
    let wanted = match role {
        Role::Files => FILES,
        // For extended attributes: the filter leaves no other call that asks for it.
        Role::AdminFiles => FILES.union(CapabilitySet::SYS_ADMIN),
        Role::Sockets => SOCKETS,
        Role::Main | Role::Reporter => MAIN,
        // For taps and their traffic control.
        Role::Network => MAIN.union(CapabilitySet::NET_ADMIN),
        Role::Pod => MAIN.union(POD),
        Role::Vcpu | Role::Devices | Role::Resolver => CapabilitySet::empty(),
    };
    // A thread without it has no capabilities that it could drop from these sets, such as an ordinary user's.
    if present.effective.contains(CapabilitySet::SETPCAP) {
        set_capabilities_secure_bits(LOCKED)?;
        for number in 0..u64::BITS {
            match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
                Ok(()) => {}
                // The first number that the kernel does not know.
                Err(Errno::INVAL) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    // A kernel without ambient capabilities does not know the call.
    let _ = clear_ambient_capability_set();
    let kept = present.permitted & wanted;
    set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )?;
    Ok(())
}
