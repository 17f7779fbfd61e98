//! The life of PID 1: mounts, ports, main loop, reset.

use alloc::format;

use agent_proto::command::Mark;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::system::RebootCommand;

use crate::agent::{Agent, Setting, Turn};
use crate::error::{Error, Step};
use crate::pod;
use crate::ports::{self, Ports};
use crate::sys;

/// The first descriptor that is not stdin, stdout or stderr.
const FIRST_FREE: i32 = 3;
/// Nanoseconds without a command after which the guest prepares more than is common to all pods.
const IDLE_NANOSECONDS: i64 = 20_000_000;
/// Seconds that the host has to read the last reply.
const HANG_UP_SECONDS: i64 = 2;

/// Runs the agent. When the agent ends for any reason, it resets the machine.
pub fn main() -> ! {
    sys::mark(Mark::AgentStarted);
    if let Err(error) = run() {
        say(&format!("agent: {}\n", error.text));
    }
    reset()
}

/// Writes to the console, or to the kernel's log if there is no console. Ignores failures, because there is no other
/// place to report them. Never blocks: a container with SYS_ADMIN can mount the agent's devtmpfs and replace the
/// console by a named pipe.
pub fn say(text: &str) {
    let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = |path| rustix::fs::open(path, flags, Mode::empty());
    let out = open(c"/dev/console").or_else(|_| open(c"/dev/kmsg"));
    let _ = out.and_then(|out| rustix::io::write(&out, text.as_bytes()));
}

/// Resets the machine. The host then ends it.
pub fn reset() -> ! {
    let _ = rustix::system::reboot(RebootCommand::Restart);
    // The process is not PID 1 or has no privilege to reset: it can only exit.
    sys::exit(1)
}

/// Whether the host has asked for nothing for a while. One that starts a pod asks at once; one that saves the machine, for others
/// to continue from, does not ask at all.
fn is_idle(control: BorrowedFd<'_>) -> bool {
    let timeout = Timespec { tv_sec: 0, tv_nsec: IDLE_NANOSECONDS };
    poll(&mut [PollFd::from_borrowed_fd(control, PollFlags::IN)], Some(&timeout)) == Ok(0)
}

fn run() -> Result<(), Error> {
    // Device nodes, and the attributes with the names of the ports: nothing else is needed before READY.
    mount("devtmpfs", "/dev")?;
    mount("sysfs", "/sys")?;
    let ports = keep_above_stdio(ports::open()?)?;
    let mut agent = Agent::new(ports.control, ports.streams, Setting::Guest)?;
    // The agent's own /proc, for kernel parameters and OOM scores: a container's /proc cannot be trusted.
    mount("proc", "/proc")?;
    pod::prepare()?;
    if is_idle(agent.control()) {
        pod::rehearse();
    }
    while agent.run_once(None)? != Turn::PowerOff {
        // Continue if the host has closed a port: the host may open it again.
    }
    await_hang_up(agent.control());
    Ok(())
}

/// Waits until the host has closed the control channel. The last reply is in a queue of the device, and a reset
/// discards what the host has not read. After reading it, the host usually ends the machine itself.
fn await_hang_up(control: BorrowedFd<'_>) {
    let timeout = Timespec { tv_sec: HANG_UP_SECONDS, tv_nsec: 0 };
    // Without requested events, poll(2) waits only for the hang-up.
    let _ = poll(&mut [PollFd::from_borrowed_fd(control, PollFlags::empty())], Some(&timeout));
}

fn mount(kind: &str, target: &str) -> Result<(), Error> {
    match rustix::mount::mount(kind, target, kind, MountFlags::empty(), None) {
        // The kernel may already have mounted the file system.
        Err(Errno::BUSY) => Ok(()),
        other => other.step("mount", target),
    }
}

/// Ensures that the first three file descriptors are not the agent's ports, because every child inherits these
/// descriptors.
///
/// The kernel opens the console as these descriptors, unless the console's port appears after the start of PID 1. In
/// that case this function opens /dev/null for them.
fn keep_above_stdio(ports: Ports) -> Result<Ports, Error> {
    if ports.control.as_raw_fd() >= FIRST_FREE {
        return Ok(ports);
    }
    let above = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, FIRST_FREE).step("duplicate", "port");
    let moved = Ports { control: above(&ports.control)?, streams: above(&ports.streams)? };
    drop(ports);
    loop {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).step("open", "/dev/null")?;
        if null.as_raw_fd() >= FIRST_FREE {
            return Ok(moved);
        }
        // Leave the descriptor open.
        let _ = null.into_raw_fd();
    }
}
