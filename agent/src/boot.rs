//! Process 1 from its first instruction to its last.

use alloc::format;

use agent_proto::command::Mark;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::system::RebootCommand;

use crate::agent::{Agent, Setting, Turn};
use crate::fault::{Fault, Step};
use crate::ports::{self, Ports};
use crate::sys;

/// The first descriptor that is not stdin, stdout or stderr.
const FIRST_FREE: i32 = 3;
/// Seconds that the host has for reading the last reply.
const HANG_UP_SECONDS: i64 = 2;

/// Runs the agent; when it ends, for whatever reason, so does the machine.
pub fn main() -> ! {
    sys::mark(Mark::AgentStarted);
    if let Err(fault) = run() {
        say(&format!("agent: {}\n", fault.text));
    }
    reset()
}

/// Writes to the console, or where there is none to the kernel's log; if that fails there is nobody to tell. Never blocks: a
/// container with SYS_ADMIN can mount the agent's devtmpfs and replace the console by a named pipe.
pub fn say(text: &str) {
    let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = |path| rustix::fs::open(path, flags, Mode::empty());
    let out = open(c"/dev/console").or_else(|_| open(c"/dev/kmsg"));
    let _ = out.and_then(|out| rustix::io::write(&out, text.as_bytes()));
}

/// Resets the machine, which the host takes for its end.
pub fn reset() -> ! {
    let _ = rustix::system::reboot(RebootCommand::Restart);
    // It is not process 1, or has no right: then its own end is all it can give.
    sys::exit(1)
}

fn run() -> Result<(), Fault> {
    // The devices' nodes and, for the names of the ports, their attributes: nothing else is needed to say READY.
    mount("devtmpfs", "/dev")?;
    mount("sysfs", "/sys")?;
    let ports = keep_stdio_apart(ports::open()?)?;
    let mut agent = Agent::new(ports.control, ports.streams, Setting::Guest)?;
    // The agent's own view of processes: for kernel parameters and scores, which containers must not be trusted with.
    mount("proc", "/proc")?;
    while agent.run_once(None)? != Turn::PowerOff {
        // A port that the host has not opened yet, or closed, may be opened again.
    }
    await_hang_up(agent.control());
    Ok(())
}

/// Waits until the host has closed the control channel. The last reply is in a queue of the device now, and the reset
/// takes back what the host has not read of it; a host that has read it as a rule ends the machine itself.
fn await_hang_up(control: BorrowedFd<'_>) {
    let patience = Timespec { tv_sec: HANG_UP_SECONDS, tv_nsec: 0 };
    // Without an event to ask for it is the hang-up that is waited for.
    let _ = poll(&mut [PollFd::from_borrowed_fd(control, PollFlags::empty())], Some(&patience));
}

fn mount(kind: &str, target: &str) -> Result<(), Fault> {
    match rustix::mount::mount(kind, target, kind, MountFlags::empty(), None) {
        // The kernel may have mounted it itself.
        Err(Errno::BUSY) => Ok(()),
        other => other.step("mount", target),
    }
}

/// Keeps the first three descriptors from being anything of the agent's, which would be every child's.
///
/// The kernel gives process 1 the console there, unless the console's port came up later than process 1; /dev/null takes
/// its place then.
fn keep_stdio_apart(ports: Ports) -> Result<Ports, Fault> {
    if ports.control.as_raw_fd() >= FIRST_FREE {
        return Ok(ports);
    }
    let apart = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, FIRST_FREE).step("move", "port");
    let moved = Ports { control: apart(&ports.control)?, streams: apart(&ports.streams)? };
    drop(ports);
    loop {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).step("open", "/dev/null")?;
        if null.as_raw_fd() >= FIRST_FREE {
            return Ok(moved);
        }
        // Left open for good.
        let _ = null.into_raw_fd();
    }
}
