//! Raw mode of the terminal that `vmm` was started in, while it shows a container's terminal. The settings are restored
//! after a return, a panic and a fault.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use oci::spec::ConsoleSize;

use crate::sys;

/// Returns the size of the terminal on stdin, otherwise on stdout, if there is one.
pub fn size() -> Option<ConsoleSize> {
    size_of(io::stdin().as_fd()).or_else(|| size_of(io::stdout().as_fd()))
}

fn size_of(fd: BorrowedFd<'_>) -> Option<ConsoleSize> {
    sys::window_size(fd).map(|(height, width)| ConsoleSize { height, width })
}

/// A terminal in raw mode. Dropping it restores the settings.
pub struct RawTerminal {
    fd: OwnedFd,
    saved: sys::Settings,
}

impl RawTerminal {
    /// Sets stdin's terminal to raw mode. Returns `None` if stdin is not a terminal.
    pub fn of_stdin() -> io::Result<Option<RawTerminal>> {
        let stdin = io::stdin();
        if stdin.is_terminal() { RawTerminal::new(stdin.as_fd()).map(Some) } else { Ok(None) }
    }

    fn new(fd: BorrowedFd<'_>) -> io::Result<RawTerminal> {
        let fd = fd.try_clone_to_owned()?;
        let saved = sys::terminal_settings(fd.as_fd())?;
        // stdin itself stays open until the process exits, unlike the duplicate.
        sys::restore_on_crash(libc::STDIN_FILENO, &saved);
        let terminal = RawTerminal { fd, saved };
        sys::set_terminal(terminal.fd.as_fd(), &saved.raw())?;
        Ok(terminal)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = sys::set_terminal(self.fd.as_fd(), &self.saved) {
            log::warn!("restore the settings of terminal {}: {error}", self.fd.as_raw_fd());
        }
    }
}
