//! A pseudo-terminal of a container, which the child opens in the container's devpts.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, Gid, OFlags, Uid, fstat, major, minor};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::error::{Error, Step};

/// Both ends of a terminal.
#[derive(Debug)]
pub struct Terminal {
    /// Master, the agent's end.
    pub master: OwnedFd,
    /// Slave, the process's end.
    pub slave: OwnedFd,
}

impl Terminal {
    /// Flags for opening a master, which must not become the opener's controlling terminal.
    pub const MASTER: OFlags =
        OFlags::RDWR.union(OFlags::NOCTTY).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

    /// Opens the other end of `master`, which comes from a container's file system. Refuses any device but the kernel's
    /// multiplexer, because the agent will read from it.
    pub fn from_master(master: OwnedFd, rows: u16, columns: u16) -> Result<Terminal, Error> {
        let stat = fstat(&master).step("stat", "ptmx")?;
        let device = (major(stat.st_rdev), minor(stat.st_rdev));
        if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || device != (5, 2) {
            return Err(Error::failed("open terminal: /dev/pts/ptmx is not the pseudo-terminal multiplexer"));
        }
        rustix::pty::unlockpt(&master).step("unlock", "terminal")?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).step("open", "terminal")?;
        if (rows, columns) != (0, 0) {
            rustix::termios::tcsetwinsize(&slave, winsize(rows, columns)).step("set size of", "terminal")?;
        }
        Ok(Terminal { master, slave })
    }

    /// Makes the terminal the session's controlling terminal, and the process's user its owner.
    pub fn take(&self, uid: Uid) -> Result<(), Error> {
        rustix::process::ioctl_tiocsctty(self.slave.as_fd()).step("set", "controlling terminal")?;
        if uid.is_root() {
            return Ok(());
        }
        rustix::fs::fchown(&self.slave, Some(uid), None::<Gid>).step("change owner of", "terminal")
    }
}

/// Returns a terminal's size as the kernel's structure.
pub fn winsize(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
