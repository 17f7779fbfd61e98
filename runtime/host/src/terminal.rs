//! Raw mode of the terminal that `vmm` was started in, while it shows a container's terminal. The settings are restored
//! after a return, a panic and a fault.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use oci::spec::ConsoleSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::sys;

/// Returns the size of the terminal on stdin, otherwise on stdout, if there is one.
pub fn size() -> Option<ConsoleSize> {
    size_of(io::stdin()).or_else(|| size_of(io::stdout()))
}

fn size_of(fd: impl AsFd) -> Option<ConsoleSize> {
    let size = tcgetwinsize(fd).ok()?;
    let size = ConsoleSize { height: size.ws_row, width: size.ws_col };
    (size.height > 0 && size.width > 0).then_some(size)
}

/// Sets the terminal `fd` to raw mode: all bytes pass unchanged (cfmakeraw(3)).
pub(crate) fn set_raw(fd: impl AsFd, settings: &Termios) -> io::Result<()> {
    let mut raw = settings.clone();
    raw.make_raw();
    Ok(tcsetattr(fd, OptionalActions::Now, &raw)?)
}

/// A terminal in raw mode. Dropping it restores the settings.
pub struct RawTerminal {
    fd: OwnedFd,
    saved: Termios,
}

impl RawTerminal {
    /// Sets stdin's terminal to raw mode. Returns `None` if stdin is not a terminal.
    pub fn of_stdin() -> io::Result<Option<RawTerminal>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let terminal = RawTerminal { fd: stdin.as_fd().try_clone_to_owned()?, saved: tcgetattr(&stdin)? };
        sys::restore_on_crash(&terminal.saved);
        set_raw(&terminal.fd, &terminal.saved)?;
        Ok(Some(terminal))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(&self.fd, OptionalActions::Now, &self.saved) {
            log::warn!("restore the settings of terminal {}: {error}", self.fd.as_raw_fd());
        }
    }
}
