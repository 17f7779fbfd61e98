// UNSAFETY: file-system credentials, capabilities, umask and working directory of one thread can be changed only by
// raw system calls (the C library's wrappers change every thread's).
#![allow(unsafe_code)]
//! The credentials with which a request acts on the host.
//!
//! The guest's kernel checks permissions before it sends a request (a virtio-fs mount always has
//! `default_permissions`), so the server keeps all its privileges. Two things depend on the user nevertheless: to whom a
//! new file belongs, and what a file system grants to whom. ext4 has blocks that only root may use, and an NFS server
//! takes root for nobody. So the server creates, opens, changes and writes files with the caller's fsuid and fsgid.
//!
//! The kernel gives a new inode the thread's fsuid and fsgid, or the group of a set-group-ID
//! directory, and the entries of a default ACL. Creating the file as root and changing its owner afterwards would give
//! a different result, and for a moment show other processes a file with the wrong owner. A change of fsuid normally
//! drops CAP_DAC_OVERRIDE and similar capabilities. SECBIT_NO_SETUID_FIXUP keeps them, so that a creation that a
//! supplementary group permits to the caller does not fail on the host.
//!
//! With CAP_FSETID, set-user-ID bits survive a write. The guest says for each write whether the writing process has
//! that capability (FUSE_HANDLE_KILLPRIV_V2); the server switches its own only when the answer changes.
//!
//! Without privileges none of this is possible: all new files belong to the user that runs the server.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::sys;

// Numbers of linux/capability.h.
const CAP_FSETID: u32 = 4;
const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
const SECBIT_NO_SETUID_FIXUP: libc::c_int = 1 << 2;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilitySet {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The credentials of the server's thread. Only the thread that created this value may use it.
pub struct Credentials {
    privileged: bool,
    /// The umask belongs to this thread alone.
    own_umask: bool,
    /// The working directory belongs to this thread alone and is /proc/self/fd.
    in_proc_self_fd: bool,
    umask: u32,
    fsetid: bool,
    capabilities: [CapabilitySet; 2],
}

impl Credentials {
    /// Prepares this thread: separates its umask and working directory (which becomes `proc_self_fd`) from those of the
    /// process, and makes its capabilities survive a change of fsuid.
    pub fn take_over(proc_self_fd: BorrowedFd) -> Credentials {
        // SAFETY: no pointers; detaches this thread's umask and working directory from the other threads'.
        let own_umask = unsafe { libc::unshare(libc::CLONE_FS) } == 0;
        if !own_umask {
            log::debug!(
                "file server: separate the umask from the process's: {}",
                std::io::Error::last_os_error()
            );
        }
        // If this fails, relative paths must not be used: a descriptor's number would name a file in the process's
        // working directory.
        // SAFETY: no pointers; changes the directory of this thread alone, which has just left the others'.
        let in_proc_self_fd = own_umask && unsafe { libc::fchdir(proc_self_fd.as_raw_fd()) } == 0;
        if own_umask && !in_proc_self_fd {
            log::debug!("file server: enter /proc/self/fd: {}", std::io::Error::last_os_error());
        }
        // A umask that belongs to the whole process is cleared once, and `create_as` applies the callers' umasks.
        set_umask(0);
        let capabilities = capabilities();
        let has = |cap: u32| capabilities[0].effective & (1 << cap) != 0;
        let (uid, _) = sys::effective_ids();
        let privileged = uid == 0 && has(CAP_SETUID) && has(CAP_SETGID);
        if privileged {
            // A confined thread has the bit already, and may not set it.
            // SAFETY: no pointers. If it fails, files are created with the caller's rights alone.
            let kept = unsafe {
                let bits = libc::prctl(libc::PR_GET_SECUREBITS);
                bits & SECBIT_NO_SETUID_FIXUP != 0
                    || libc::prctl(libc::PR_SET_SECUREBITS, bits | SECBIT_NO_SETUID_FIXUP) == 0
            };
            if !kept {
                log::debug!(
                    "file server: keep capabilities when the user changes: {}",
                    std::io::Error::last_os_error()
                );
            }
        }
        Credentials {
            privileged,
            own_umask,
            in_proc_self_fd,
            umask: 0,
            fsetid: has(CAP_FSETID),
            capabilities,
        }
    }

    /// Whether the working directory is /proc/self/fd, so that a descriptor's number is a path to its file.
    pub fn in_proc_self_fd(&self) -> bool {
        self.in_proc_self_fd
    }

    /// Creates files as the guest's `uid` and `gid` with `umask` until the guard is dropped. Also returns the mode to
    /// pass to the system call.
    pub fn create_as(&mut self, (uid, gid): (u32, u32), umask: u32, mode: u32) -> (Acting, u32) {
        // The guest's kernel has already cleared set-group-ID in the mode if necessary.
        self.keep_setid(true);
        let umask = umask & 0o777;
        let mode = if self.own_umask { mode } else { mode & !umask };
        if self.own_umask && umask != self.umask {
            set_umask(umask);
            self.umask = umask;
        }
        (self.act_as((uid, gid)), mode)
    }

    /// Acts on files as the guest's `uid` and `gid` until the guard is dropped, with the server's capabilities.
    pub fn act_as(&self, (uid, gid): (u32, u32)) -> Acting {
        let changed = self.privileged && (uid, gid) != (0, 0);
        if changed {
            // The group first: without SECBIT_NO_SETUID_FIXUP a change of user drops the capability to change the
            // group.
            set_fsgid(gid);
            set_fsuid(uid);
        }
        Acting { changed }
    }

    /// Sets whether writes keep or clear set-user-ID and set-group-ID bits, as for the writing process in the guest.
    pub fn keep_setid(&mut self, keep: bool) {
        let able = self.capabilities[0].effective & (1 << CAP_FSETID) != 0;
        if !able || self.fsetid == keep {
            return;
        }
        let mut sets = self.capabilities;
        if !keep {
            sets[0].effective &= !(1 << CAP_FSETID);
        }
        let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
        // SAFETY: header and the two sets are what version 3 reads; pid 0 is this thread.
        if unsafe { libc::syscall(libc::SYS_capset, &header, sets.as_ptr()) } == 0 {
            self.fsetid = keep;
        }
    }
}

/// RAII guard: meanwhile the thread acts on files as the guest's caller, to whom new files belong.
pub struct Acting {
    changed: bool,
}

impl Drop for Acting {
    fn drop(&mut self) {
        if self.changed {
            // In reverse order: the user first, because root has the capability to change the group.
            set_fsuid(0);
            set_fsgid(0);
        }
    }
}

fn set_umask(mask: u32) {
    // SAFETY: no pointers; cannot fail.
    unsafe { libc::umask(mask) };
}

fn set_fsuid(uid: u32) {
    // SAFETY: no pointers; a raw call, which changes this thread alone. It returns the old value, not a failure.
    unsafe { libc::syscall(libc::SYS_setfsuid, uid) };
}

fn set_fsgid(gid: u32) {
    // SAFETY: as in set_fsuid().
    unsafe { libc::syscall(libc::SYS_setfsgid, gid) };
}

fn capabilities() -> [CapabilitySet; 2] {
    let mut sets = [CapabilitySet::default(); 2];
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    // SAFETY: version 3 fills the two sets; pid 0 is this thread. A failure leaves them empty.
    unsafe { libc::syscall(libc::SYS_capget, &header, sets.as_mut_ptr()) };
    sets
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_directory_that_cannot_be_entered_is_not_taken_for_the_working_directory() {
        let file = tempfile::tempfile().unwrap();
        let directory = File::open("/proc/self/fd").unwrap();
        for (fd, entered) in [(file.as_fd(), false), (directory.as_fd(), true)] {
            // In a thread of its own: the working directory stays changed.
            let taken =
                std::thread::scope(|scope| scope.spawn(|| Credentials::take_over(fd)).join().unwrap());
            assert_eq!(taken.in_proc_self_fd(), entered);
        }
    }
}
