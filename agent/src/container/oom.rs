//! Processes that the kernel has killed for the container's memory limit.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};

use crate::container::cgroup::field;
use crate::error::{Error, Step};

/// Limit of bytes of memory.events that are read: six lines.
const EVENTS_MAX: usize = 512;

/// The counter of kills, and how many of them are known.
#[derive(Debug)]
pub struct OomKills {
    /// memory.events, which the kernel reports as changed (`EPOLLPRI`) until it is read.
    file: OwnedFd,
    known: u64,
}

impl OomKills {
    /// Opens the counter of a new cgroup.
    pub fn open(cgroup: BorrowedFd<'_>) -> Result<OomKills, Error> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(cgroup, "memory.events", flags, Mode::empty());
        Ok(OomKills { file: file.step("open", "memory.events")?, known: 0 })
    }

    /// Whether the kernel has killed a process since the last call.
    pub fn take_new(&mut self) -> bool {
        let mut bytes = [0; EVENTS_MAX];
        let count = rustix::io::pread(&self.file, &mut bytes, 0).unwrap_or(0);
        let text = core::str::from_utf8(&bytes[..count]).unwrap_or_default();
        let kills = field(text, "oom_kill").unwrap_or(self.known);
        core::mem::replace(&mut self.known, kills) < kills
    }
}

impl AsFd for OomKills {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    #[test]
    fn a_kill_is_new_once() {
        let file = memfd_create("memory.events", MemfdFlags::CLOEXEC).unwrap();
        let mut kills = OomKills { file: file.try_clone().unwrap(), known: 0 };
        let mut is_new = |text: &str| {
            ftruncate(&file, 0).unwrap();
            rustix::io::pwrite(&file, text.as_bytes(), 0).unwrap();
            kills.take_new()
        };
        assert!(!is_new("oom 0\noom_kill 0\noom_group_kill 0\n"));
        assert!(is_new("oom 3\noom_kill 2\noom_group_kill 0\n"));
        assert!(!is_new("oom 4\noom_kill 2\noom_group_kill 0\n"));
        assert!(!is_new(""));
        assert!(is_new("oom 4\noom_kill 3\n"));
    }
}
