//! The agent's ports, found by their names.
//!
//! The kernel's console driver makes ports as the host announces them, which may be after process 1 has started, and
//! names them a little later still. Each step is told to user space as an event on a netlink socket; it is opened only
//! if a port is not there yet.

use alloc::format;
use alloc::string::String;

use agent_proto::command::{CONTROL_PORT, STREAM_PORT};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::fault::{Fault, Step};

/// The highest number that a port of the first console device may have here.
const NUMBER_MAX: u32 = 15;
/// Seconds without any news of devices after which there will be none.
const PATIENCE_SECONDS: i64 = 10;
/// The longest port name that is looked at.
const NAME_MAX: usize = 64;

/// The two channels, non-blocking.
#[derive(Debug)]
pub struct Ports {
    /// `sh.hyper.channel.0`.
    pub control: OwnedFd,
    /// `sh.hyper.channel.1`.
    pub streams: OwnedFd,
}

/// Opens the two ports, and waits for them if they are not there yet.
pub fn open() -> Result<Ports, Fault> {
    if let Some(ports) = find()? {
        return Ok(ports);
    }
    let events = listen()?;
    // What happened before the socket was there sends no event.
    loop {
        if let Some(ports) = find()? {
            return Ok(ports);
        }
        wait(&events)?;
    }
}

/// Opens both ports if both have their names. Neither is opened before: to close one again would throw away what the host
/// has sent to it in the meantime, its first commands.
fn find() -> Result<Option<Ports>, Fault> {
    let (mut control, mut streams) = (None, None);
    for number in 1..=NUMBER_MAX {
        let mut buffer = [0; NAME_MAX];
        let Some(name) = name(number, &mut buffer) else { continue };
        if name == CONTROL_PORT.as_bytes() {
            control = Some(number);
        } else if name == STREAM_PORT.as_bytes() {
            streams = Some(number);
        }
        if let (Some(control), Some(streams)) = (control, streams) {
            return Ok(Some(Ports { control: device(control)?, streams: device(streams)? }));
        }
    }
    Ok(None)
}

/// Returns a port's name; `None` while there is no such port or it has no name.
fn name(number: u32, buffer: &mut [u8; NAME_MAX]) -> Option<&[u8]> {
    let path: String = format!("/sys/class/virtio-ports/vport0p{number}/name");
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let count = rustix::io::read(&file, &mut buffer[..]).ok()?;
    Some(buffer[..count].trim_ascii_end())
}

fn device(number: u32) -> Result<OwnedFd, Fault> {
    let path = format!("/dev/vport0p{number}");
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path.as_str(), flags, Mode::empty()).step("open", &path)
}

fn listen() -> Result<OwnedFd, Fault> {
    /// The kernel's own events; group 2 would be udev's.
    const KERNEL: u32 = 1;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol = Some(KOBJECT_UEVENT);
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)
        .step("listen for", "devices")?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL)).step("listen for", "devices")?;
    Ok(socket)
}

/// Waits for news of a device and forgets what they say.
fn wait(events: &OwnedFd) -> Result<(), Fault> {
    let patience = Timespec { tv_sec: PATIENCE_SECONDS, tv_nsec: 0 };
    let mut list = [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::IN)];
    match poll(&mut list, Some(&patience)) {
        Ok(0) => return Err(Errno::TIMEDOUT).step("find", "ports sh.hyper.channel.0 and sh.hyper.channel.1"),
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(errno).step("wait for", "devices"),
    }
    // ENOBUFS says that events were lost: looking again makes up for it.
    let mut text = [0; 2048];
    while rustix::io::read(events, &mut text[..]).is_ok() {}
    Ok(())
}
