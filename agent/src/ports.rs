//! Opening the agent's ports by name.
//!
//! The kernel's console driver creates ports when the host announces them, which may be after PID 1 has started, and
//! sets their names a little later. The kernel reports each step as an event on a netlink socket, which is opened only
//! if a port is still missing.

use alloc::format;
use alloc::string::String;

use agent_proto::command::{CONTROL_PORT, RESOLVER_PORT, SOCKETS_PORT, STREAM_PORT};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::error::{Error, Step};

/// Highest port number of the first console device that is searched.
const NUMBER_MAX: u32 = 15;
/// Seconds without device events after which the agent gives up.
const TIMEOUT_SECONDS: i64 = 10;
/// Limit of the length of a port name.
const NAME_MAX: usize = 64;

/// The two channels, non-blocking.
#[derive(Debug)]
pub struct Ports {
    /// The control channel, `sh.hyper.channel.0`.
    pub control: OwnedFd,
    /// The stream channel, `sh.hyper.channel.1`.
    pub streams: OwnedFd,
}

/// Opens the two ports, and waits for them if necessary.
///
/// No port is opened before both exist, because closing one again would discard the commands that the host has sent in
/// the meantime.
pub fn open() -> Result<Ports, Error> {
    let [control, streams] = await_named([CONTROL_PORT, STREAM_PORT])?;
    Ok(Ports { control: device(control)?, streams: device(streams)? })
}

/// Opens the port for name queries, non-blocking, and waits for it if necessary.
pub fn open_resolver() -> Result<OwnedFd, Error> {
    let [number] = await_named([RESOLVER_PORT])?;
    device(number)
}

/// Opens the port for connections to sockets of the host, non-blocking, and waits for it if necessary.
pub fn open_sockets() -> Result<OwnedFd, Error> {
    let [number] = await_named([SOCKETS_PORT])?;
    device(number)
}

fn await_named<const N: usize>(names: [&str; N]) -> Result<[u32; N], Error> {
    if let Some(numbers) = find(names) {
        return Ok(numbers);
    }
    let events = listen()?;
    // Search before waiting: ports that appeared before the socket was opened cause no event.
    loop {
        if let Some(numbers) = find(names) {
            return Ok(numbers);
        }
        wait(&events, names[0])?;
    }
}

/// Returns the ports' numbers if all have their names.
fn find<const N: usize>(names: [&str; N]) -> Option<[u32; N]> {
    // Port 0 is the console and has no name.
    let mut numbers = [0; N];
    for number in 1..=NUMBER_MAX {
        let mut buffer = [0; NAME_MAX];
        let Some(name) = name(number, &mut buffer) else { continue };
        if let Some(wanted) = names.iter().position(|wanted| wanted.as_bytes() == name) {
            numbers[wanted] = number;
        }
        if numbers.iter().all(|number| *number != 0) {
            return Some(numbers);
        }
    }
    None
}

/// Returns a port's name; `None` while there is no such port or it has no name.
fn name(number: u32, buffer: &mut [u8; NAME_MAX]) -> Option<&[u8]> {
    let path: String = format!("/sys/class/virtio-ports/vport0p{number}/name");
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let count = rustix::io::read(&file, &mut buffer[..]).ok()?;
    Some(buffer[..count].trim_ascii_end())
}

fn device(number: u32) -> Result<OwnedFd, Error> {
    let path = format!("/dev/vport0p{number}");
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path.as_str(), flags, Mode::empty()).step("open", &path)
}

fn listen() -> Result<OwnedFd, Error> {
    /// The multicast group of the kernel's events; group 2 is udev's.
    const KERNEL: u32 = 1;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol = Some(KOBJECT_UEVENT);
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)
        .step("listen for", "device events")?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL)).step("listen for", "device events")?;
    Ok(socket)
}

/// Waits for device events and discards them. Port `name` may have appeared with one of them.
fn wait(events: &OwnedFd, name: &str) -> Result<(), Error> {
    let timeout = Timespec { tv_sec: TIMEOUT_SECONDS, tv_nsec: 0 };
    let mut list = [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::IN)];
    match poll(&mut list, Some(&timeout)) {
        Ok(0) => return Err(Errno::TIMEDOUT).step("find port", name),
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(errno).step("wait for", "device events"),
    }
    // ENOBUFS means that events were lost, which is harmless because the caller searches again.
    let mut text = [0; 2048];
    while rustix::io::read(events, &mut text[..]).is_ok() {}
    Ok(())
}
