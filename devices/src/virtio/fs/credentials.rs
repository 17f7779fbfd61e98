// UNSAFETY: file-system credentials, capabilities, umask and working directory of one thread can be changed only by
// raw system calls (the C library's wrappers change every thread's).
#![allow(unsafe_code)]
//! As whom a request acts on the host.
//!
//! The guest's kernel has checked permissions before it asks (a virtio-fs mount always has `default_permissions`), so
//! the server acts with all the privilege it has, and only what it *makes* must belong to the right user. The kernel
//! gives a new inode the thread's fsuid and fsgid (and a set-group-ID directory's group, and a default ACL's entries,
//! which is why creating as root and changing the owner afterwards is not the same, and would show the file to others
//! before it is right). A change of fsuid normally takes CAP_DAC_OVERRIDE and its like away; SECBIT_NO_SETUID_FIXUP
//! keeps them, so that a creation that the caller may do by a supplementary group does not fail on the host.
//!
//! CAP_FSETID is what keeps set-user-ID bits alive over a write. The guest says for each write whether its writer has
//! it (FUSE_HANDLE_KILLPRIV_V2); it is switched only when that answer changes.
//!
//! Without privilege none of this is possible: everything made belongs to the user that runs the server.

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

/// The credentials of the server's thread. It belongs to the thread that made it.
pub struct Credentials {
    privileged: bool,
    /// The umask is this thread's own.
    own_umask: bool,
    /// The working directory is /proc/self/fd, and this thread's own.
    in_proc_self_fd: bool,
    umask: u32,
    fsetid: bool,
    capabilities: [CapabilitySet; 2],
}

impl Credentials {
    /// Makes this thread ready: own umask and working directory (which becomes `proc_self_fd`), capabilities that stay.
    pub fn take_over(proc_self_fd: BorrowedFd) -> Credentials {
        // SAFETY: no pointers; detaches this thread's umask and working directory from the other threads'.
        let own_umask = unsafe { libc::unshare(libc::CLONE_FS) } == 0;
        if !own_umask {
            log::debug!("file server: no umask of its own: {}", std::io::Error::last_os_error());
        }
        // Where this fails, the number of a descriptor would name a file in whatever directory the process is in.
        // SAFETY: no pointers; changes the directory of this thread alone, which has just left the others'.
        let in_proc_self_fd = own_umask && unsafe { libc::fchdir(proc_self_fd.as_raw_fd()) } == 0;
        if own_umask && !in_proc_self_fd {
            log::debug!("file server: enter /proc/self/fd: {}", std::io::Error::last_os_error());
        }
        // Where the umask is the whole process's it is cleared once, and callers' umasks are applied here.
        set_umask(0);
        let capabilities = capabilities();
        let has = |cap: u32| capabilities[0].effective & (1 << cap) != 0;
        let (uid, _) = sys::effective_ids();
        let privileged = uid == 0 && has(CAP_SETUID) && has(CAP_SETGID);
        if privileged {
            // SAFETY: no pointers. If it fails, creations act with the caller's rights alone.
            let kept = unsafe {
                let bits = libc::prctl(libc::PR_GET_SECUREBITS);
                libc::prctl(libc::PR_SET_SECUREBITS, bits | SECBIT_NO_SETUID_FIXUP) == 0
            };
            if !kept {
                log::debug!(
                    "file server: capabilities go with the user: {}",
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

    /// The working directory is /proc/self/fd: a descriptor's number is a path to what it refers to.
    pub fn in_proc_self_fd(&self) -> bool {
        self.in_proc_self_fd
    }

    /// Acts as the guest's `uid` and `gid` with `umask` until the guard goes; returns `mode` as to be asked for.
    pub fn create_as(&mut self, (uid, gid): (u32, u32), umask: u32, mode: u32) -> (Creating, u32) {
        // The guest's kernel has dropped set-group-ID from the mode where it must.
        self.keep_setid(true);
        let umask = umask & 0o777;
        let mode = if self.own_umask { mode } else { mode & !umask };
        if self.own_umask && umask != self.umask {
            set_umask(umask);
            self.umask = umask;
        }
        let changed = self.privileged && (uid, gid) != (0, 0);
        if changed {
            // The group first: without SECBIT_NO_SETUID_FIXUP the right to change it goes with the user.
            set_fsgid(gid);
            set_fsuid(uid);
        }
        (Creating { changed }, mode)
    }

    /// Lets writes keep (`true`) or kill set-user-ID and set-group-ID bits, as the guest's writer may.
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

/// While it lives, what the thread makes belongs to somebody else.
pub struct Creating {
    changed: bool,
}

impl Drop for Creating {
    fn drop(&mut self) {
        if self.changed {
            // The other way round: root again first, which gives the right to change the group.
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
