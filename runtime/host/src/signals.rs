//! Signals as a descriptor: what is sent to `vmm` goes on to the container's first process.
//!
//! As with runc everything that can be caught is forwarded, but SIGCHLD, SIGURG, and:
//! * SIGWINCH becomes a new window size;
//! * SIGTSTP, SIGTTIN, SIGTTOU and SIGCONT keep their meaning for `vmm` itself, so that job control stops and continues
//!   the whole VM, as it would a process;
//! * SIGPIPE is an error of a write;
//! * SIGSEGV and its like are our own faults; SIGABRT is how a panic ends;
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

/// The first real-time signal that is not the VMM's kick.
const FIRST_REALTIME: i32 = 35;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The terminal has another size.
    Resize,
    /// The container's first process gets this signal.
    Forward(i32),
}

/// The signals that are ours to take.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Blocks them. To be called before a thread is started, so that each inherits it.
    pub fn block() -> io::Result<Signals> {
        let realtime = FIRST_REALTIME..=sys::sigrtmax();
        let fd = sys::signalfd(FORWARDED.into_iter().chain([libc::SIGWINCH]).chain(realtime))?;
        Ok(Signals { fd })
    }

    /// Readable when a signal has come.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Takes the next one.
    pub fn next(&self) -> io::Result<Option<Asked>> {
        Ok(sys::next_signal(self.fd.as_fd())?.map(|signal| match signal {
            libc::SIGWINCH => Asked::Resize,
            other => Asked::Forward(other),
        }))
    }
}

/// Whether a signal asks for an end: before the container's process is there, nothing else could heed it.
pub fn asks_for_an_end(signal: i32) -> bool {
    matches!(signal, libc::SIGHUP | libc::SIGINT | libc::SIGQUIT | libc::SIGTERM)
}
