//! User, groups and capabilities of a process, in the order that the kernel requires (capabilities(7)): the bounding
//! set while SETPCAP is available, then the user with the permitted set kept, then the other sets, and the ambient set
//! last.
//!
//! A seccomp filter is installed at the very end, so that it need not allow the calls made here. But without SYS_ADMIN
//! only a process with no_new_privs may install a filter. Other processes install it first, and the filter must allow
//! these calls, as with runc.

use agent_proto::payload::{self, Filter, OciProcess};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, configure_capability_in_ambient_set, remove_capability_from_bounding_set,
    set_capabilities, set_keep_capabilities, set_no_new_privs, set_thread_gid, set_thread_groups,
    set_thread_uid,
};

use crate::error::{Error, Step};
use crate::process::user::User;
use crate::sys;

/// Becomes `user`, with the process's capabilities, in `directory`.
pub fn apply(spec: &payload::Process, user: &User, directory: &str) -> Result<(), Error> {
    let oci = spec.oci.as_ref();
    if let Some(OciProcess { no_new_privileges: false, seccomp: Some(filter), .. }) = oci {
        install(filter)?;
    }
    let sets = oci.and_then(|oci| oci.capabilities);
    if let Some(sets) = &sets {
        drop_bounding(sets.bounding)?;
        set_keep_capabilities(true).step("keep", "capabilities")?;
    }
    // Before the change of user, as in runc: the container's root may enter directories that the user may not.
    let entered = rustix::process::chdir(directory);
    set_thread_groups(&user.groups).step("set", "groups")?;
    set_thread_gid(user.gid).step("set", "group")?;
    set_thread_uid(user.uid).step("set", "user")?;
    match entered {
        Err(Errno::ACCESS) => rustix::process::chdir(directory),
        other => other,
    }
    .step("enter working directory", directory)?;
    if let Some(sets) = &sets {
        apply_sets(sets)?;
    }
    if oci.is_some_and(|oci| oci.no_new_privileges) {
        set_no_new_privs(true).step("set", "no_new_privs")?;
    }
    Ok(())
}

/// Installs the seccomp filter, if [`apply`] has not done so.
pub fn apply_last(spec: &payload::Process) -> Result<(), Error> {
    match &spec.oci {
        Some(OciProcess { no_new_privileges: true, seccomp: Some(filter), .. }) => install(filter),
        _ => Ok(()),
    }
}

fn install(filter: &Filter) -> Result<(), Error> {
    sys::install_filter(&filter.program.0, filter.flags).step("install", "seccomp filter")
}

fn drop_bounding(keep: u64) -> Result<(), Error> {
    for bit in (0..u64::BITS).filter(|bit| keep & (1 << bit) == 0) {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            // The kernel has no more capabilities.
            Err(Errno::INVAL) => break,
            other => other.step("drop", "capability")?,
        }
    }
    Ok(())
}

fn apply_sets(sets: &payload::Capabilities) -> Result<(), Error> {
    set_keep_capabilities(false).step("keep", "capabilities")?;
    let new = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(sets.effective),
        permitted: CapabilitySet::from_bits_retain(sets.permitted),
        inheritable: CapabilitySet::from_bits_retain(sets.inheritable),
    };
    set_capabilities(None, new).step("set", "capabilities")?;
    for bit in (0..u64::BITS).filter(|bit| sets.ambient & (1 << bit) != 0) {
        configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << bit), true)
            .step("set", "ambient capabilities")?;
    }
    Ok(())
}
