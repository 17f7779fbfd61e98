//! A container's user namespace.
//!
//! The agent mounts and creates everything as the guest's root user before a process enters the user namespace. The
//! container's other namespaces therefore belong to the guest, and the container's root user cannot change its mounts,
//! network and host name. The capabilities of that user apply only to the container's files, processes and IDs.

use alloc::format;
use alloc::string::String;

use agent_proto::payload::{IdMap, IdMaps};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result as IoResult};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::error::{Error, Step, cause};
use crate::sys::{self, Fork};

/// Opens this process's directory in the agent's /proc, for use when that /proc is no longer reachable.
pub fn open_proc_self() -> Result<OwnedFd, Error> {
    const PATH: &str = "/proc/self";
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(PATH, flags, Mode::empty()).step("open", PATH)
}

/// Moves this process into a new user namespace. Only a process outside of that namespace may set its ID mappings, so a
/// child that stays outside sets them.
pub fn create(maps: &IdMaps, proc_self: &OwnedFd) -> Result<(), Error> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).step("create", "pipe")?;
    let child = match sys::fork(0, None).step("start", "process")? {
        Fork::Child => {
            drop(write);
            write_maps_and_exit(maps, proc_self, &read);
        }
        Fork::Parent { pidfd, .. } => pidfd,
    };
    let made = sys::unshare_users();
    if made.is_ok() {
        rustix::io::write(&write, b"1").step("write", "pipe")?;
    }
    drop(write);
    let status = waitid(WaitId::PidFd(rustix::fd::AsFd::as_fd(&child)), WaitIdOptions::EXITED);
    made.step("create", "user namespace")?;
    match status.step("wait for", "process")?.and_then(|status| status.exit_status()) {
        Some(0) => Ok(()),
        code => {
            let why = cause(Errno::from_raw_os_error(code.unwrap_or(0)));
            Err(Error::failed(format!("write ID mappings of user namespace: {why}")))
        }
    }
}

/// Moves this process into the user namespace of a container's init process.
pub fn enter(init: BorrowedFd<'_>) -> Result<(), Error> {
    move_into_thread_name_spaces(init, ThreadNameSpaceType::USER).step("enter", "user namespace")
}

/// Writes the ID mappings when the pipe becomes readable, and exits with the error number as its code.
fn write_maps_and_exit(maps: &IdMaps, proc_self: &OwnedFd, go: &OwnedFd) -> ! {
    let mut byte = [0];
    let written = match rustix::io::read(go, &mut byte) {
        Ok(1) => write_maps(maps, proc_self),
        other => other.map(drop),
    };
    sys::exit(written.map_or_else(Errno::raw_os_error, |()| 0));
}

fn write_maps(maps: &IdMaps, proc_self: &OwnedFd) -> IoResult<()> {
    for (name, ranges) in [("uid_map", &maps.users), ("gid_map", &maps.groups)] {
        let file = rustix::fs::openat(proc_self, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&file, text(ranges).as_bytes())?;
    }
    Ok(())
}

fn text(ranges: &[IdMap]) -> String {
    ranges.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.size)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_the_kernel_s_lines() {
        let ranges =
            [IdMap { inside: 0, outside: 1000, size: 1 }, IdMap { inside: 1, outside: 100_000, size: 9 }];
        assert_eq!(text(&ranges), "0 1000 1\n1 100000 9\n");
    }
}
