//! Tells the host's kernel that the guest's has killed a process for the container's memory limit.
//!
//! Engines learn of such a kill from the host: containerd's shim and conmon watch `memory.events` of the cgroup in which
//! they found the container's process. The limit is kept in the guest, so nothing is killed there. For each report, a
//! process of this module is therefore really killed by the host's kernel for a limit of memory, in a cgroup below the
//! container's, whose counters include it.
//!
//! A cgroup of version 2 with processes has no children with a memory limit. So the first report moves the machine's
//! processes one level down, to [`MACHINE`]; the limits, which stay where they are, include both children. Version 1 has
//! no such hierarchy of events: nothing is reported there.
//!
//! The machine's process may not fork once it has threads. So a process is forked before, for containers with a memory limit
//! only. It waits in read(2), knows nothing of the guest, and dies with the machine.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::hierarchies::Hierarchies;
use super::{Cgroup, Result, Version, write_file};
use crate::HostError;
use crate::confine::{self, Paths, Role};
use crate::sys;

/// The child of the container's cgroup with the machine's processes.
const MACHINE: &str = "machine";
/// The child in which a process is killed.
const KILLED: &str = "killed";
/// Memory limit of [`KILLED`] in bytes, and what its process touches.
const LIMIT: usize = 1 << 20;
const TOUCHED: usize = 4 * LIMIT;
/// Rounds in which processes are moved: one more for each time that a process was forked meanwhile.
const ROUNDS: usize = 8;
/// Maximum time for the kernel to tell those who watch the cgroup: it tells them at most once in 10 ms.
const TOLD: Duration = Duration::from_secs(1);
/// Maximum time for the last reports at a machine's end.
pub const SETTLED: Duration = Duration::from_secs(3);
/// Limit of reports that the process has not answered. More are one report, as they are for those who watch.
const PENDING_MAX: usize = 16;

/// The machine's end of a connection to the reporting process.
#[derive(Debug)]
pub struct KillReporter {
    /// Process id of the reporting process, which must be moved to the machine's cgroup.
    pub pid: u32,
    socket: UnixStream,
    pending: usize,
}

impl KillReporter {
    /// Forks the process. `None` if the host's controllers are in hierarchies of version 1.
    ///
    /// # Errors
    ///
    /// Also if this process has a second thread.
    pub fn start() -> Result<Option<KillReporter>> {
        if Hierarchies::find()?.version() != Version::Two {
            return Ok(None);
        }
        let pair = UnixStream::pair().and_then(|(own, other)| {
            own.set_nonblocking(true)?;
            Ok((own, other))
        });
        let (own, other) = pair.map_err(HostError::step("create a socket pair"))?;
        let pid = sys::fork_tied(other.as_fd()).map_err(HostError::step("fork the reporter of kills"))?;
        if pid != 0 {
            return Ok(Some(KillReporter { pid, socket: own, pending: 0 }));
        }
        serve(other);
    }

    /// Asks for a report. Does not wait.
    pub fn report(&mut self) {
        self.take_answers();
        if self.pending < PENDING_MAX && self.socket.write(&[0]).is_ok_and(|count| count == 1) {
            self.pending += 1;
        }
    }

    /// Waits until every report has reached those who watch the cgroup, for [`SETTLED`] at most.
    pub fn settle(&mut self) {
        let until = Instant::now() + SETTLED;
        self.take_answers();
        while self.pending > 0 && Instant::now() < until {
            let fds = [(self.socket.as_fd(), libc::POLLIN)];
            if sys::poll(fds, Some(until.saturating_duration_since(Instant::now()))).is_err() {
                return;
            }
            self.take_answers();
        }
    }

    fn take_answers(&mut self) {
        let mut answers = [0; PENDING_MAX];
        match self.socket.read(&mut answers) {
            Ok(0) => self.pending = 0,
            Ok(count) => self.pending = self.pending.saturating_sub(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.pending = 0,
        }
    }
}

/// The reporting process. It confines itself when it has something to do, so that a start does not wait for that. It does
/// not log, because it has none of the descriptors of the logger.
fn serve(mut socket: UnixStream) -> ! {
    let mut asked = [0; PENDING_MAX];
    let mut opened = None;
    while let Ok(count @ 1..) = socket.read(&mut asked) {
        let opened = opened.get_or_insert_with(|| {
            let directory = own_cgroup()?;
            let danger = File::options().read(true).write(true).open("/proc/self/oom_score_adj")?;
            let write = vec![directory.clone()];
            confine::enter_main(Role::Reporter, &Paths { write, ..Paths::default() });
            Ok::<_, io::Error>((directory, danger))
        });
        // Whatever fails, the machine must not wait.
        let _ = opened.as_ref().is_ok_and(|(directory, danger)| report(directory, danger).is_ok());
        if socket.write_all(&asked[..count]).is_err() {
            break;
        }
    }
    std::process::exit(0)
}

/// Returns the directory of the machine's cgroup, to which this process was moved.
fn own_cgroup() -> io::Result<PathBuf> {
    let own = Cgroup::of_process(std::process::id()).map_err(io::Error::other)?;
    own.directories().next().ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Has a process killed. Returns when those who watch the cgroup have been told.
fn report(directory: &Path, danger: &File) -> io::Result<()> {
    let place = divided(directory)?;
    let events = sys::watch_file(&directory.join("memory.events"))?;
    let child = in_danger(danger, || match sys::fork_tied(events.as_fd()) {
        Ok(0) => be_killed(&place),
        other => other,
    })?;
    sys::wait_for_child(child)?;
    sys::poll([(events.as_fd(), libc::POLLIN)], Some(TOLD)).map(drop)
}

/// Joins the cgroup and uses more memory than its limit.
fn be_killed(place: &Path) -> ! {
    let joined = write_file(&place.join("cgroup.procs"), "0");
    joined.map(|()| std::hint::black_box(vec![1_u8; TOUCHED])).ok();
    std::process::exit(1)
}

/// Runs `fork` while this process is the first that the kernel would kill, which is inherited. The engine may have made it
/// one that the kernel never kills.
fn in_danger<T>(danger: &File, fork: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let mut before = [0; 8];
    let count = danger.read_at(&mut before, 0)?;
    danger.write_at(b"1000", 0)?;
    let forked = fork();
    danger.write_at(&before[..count], 0)?;
    forked
}

/// Moves the machine's processes one level down and returns the cgroup with a limit, unless that was done before.
fn divided(directory: &Path) -> io::Result<PathBuf> {
    let place = directory.join(KILLED);
    if place.exists() {
        return Ok(place);
    }
    let machine = directory.join(MACHINE);
    make(&machine)?;
    for _ in 0..ROUNDS {
        let processes = fs::read_to_string(directory.join("cgroup.procs"))?;
        if processes.is_empty() {
            break;
        }
        for process in processes.lines() {
            match write_file(&machine.join("cgroup.procs"), process) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
                _ => {}
            }
        }
    }
    write_file(&directory.join("cgroup.subtree_control"), "+memory")?;
    make(&place)?;
    write_file(&place.join("memory.max"), &LIMIT.to_string())?;
    // The host may have no swap.
    let _ = write_file(&place.join("memory.swap.max"), "0");
    Ok(place)
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
