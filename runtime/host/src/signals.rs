//! Signals as a descriptor: `vmm` forwards the signals it gets to the init process.
//!
//! As with runc all catchable signals are forwarded, except SIGCHLD, SIGURG, and:
//! * SIGWINCH becomes a new window size;
//! * SIGTSTP, SIGTTIN, SIGTTOU and SIGCONT keep their meaning for `vmm` itself, so that job control stops and continues
//!   the whole VM, as it would a process;
//! * SIGPIPE is an error of a write;
//! * SIGSEGV and similar signals are faults of `vmm` itself, and a panic ends with SIGABRT;
//! * the first real-time signal belongs to the VMM.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys;

pub mod name;

const FORWARDED: [i32; 14] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGSTKFLT,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
];

/// First real-time signal after the one with which the VMM kicks vCPUs.
const FIRST_REALTIME: i32 = 35;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalAction {
    /// The terminal has a new size.
    Resize,
    /// Forward this signal to the init process.
    Forward(i32),
}

/// A descriptor for the handled signals.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Blocks the handled signals. To be called before the first thread is started, so that all threads inherit the
    /// mask.
    pub fn block() -> io::Result<Signals> {
        let realtime = FIRST_REALTIME..=libc::SIGRTMAX();
        let fd = sys::signalfd(FORWARDED.into_iter().chain([libc::SIGWINCH]).chain(realtime))?;
        Ok(Signals { fd })
    }

    /// Returns a descriptor that is readable when a signal is pending.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Takes the next signal; `None` if none is pending.
    pub fn next(&self) -> io::Result<Option<SignalAction>> {
        Ok(sys::next_signal(self.fd.as_fd())?.map(|signal| match signal {
            libc::SIGWINCH => SignalAction::Resize,
            other => SignalAction::Forward(other),
        }))
    }
}

/// Whether a signal requests termination. Before the init process exists, `vmm` itself must obey such a signal.
pub fn requests_termination(signal: i32) -> bool {
    matches!(signal, libc::SIGHUP | libc::SIGINT | libc::SIGQUIT | libc::SIGTERM)
}
