//! A connection that the agent carries: its socket in the guest, and what is under way.

use alloc::vec::Vec;
use core::mem::MaybeUninit;

use agent_proto::sockets::{DATA_MAX, Flow, Frame, OUT_MAX};
use rustix::event::PollFlags;
use rustix::fd::OwnedFd;
use rustix::fs::{Gid, Uid};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, UCred,
};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};

/// Does something as a user and group.
pub fn as_user<T>(uid: Uid, gid: Gid, act: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    set_thread_res_gid(Gid::ROOT, gid, Gid::ROOT)?;
    set_thread_res_uid(Uid::ROOT, uid, Uid::ROOT)?;
    let done = act();
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    done
}

/// A process of the host that connects to a socket of the guest.
#[derive(Clone, Copy)]
pub(super) struct Arrival {
    /// The file server's number of the socket's file.
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
}

impl Arrival {
    /// Connects as the process. EAGAIN: the server has not accepted enough earlier connections.
    fn connect(&self) -> Result<OwnedFd, Errno> {
        if self.uid == u32::MAX || self.gid == u32::MAX {
            return Err(Errno::ACCESS);
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let name = [&b"fuse\0"[..], &self.node.to_le_bytes()].concat();
        let address = SocketAddrUnix::new_abstract_name(&name)?;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        as_user(uid, gid, || rustix::net::connect(&socket, &address))?;
        Ok(socket)
    }

    /// Sends data as the process, for a server that looks at SCM_CREDENTIALS: the kernel would name the agent.
    fn send(&self, socket: &OwnedFd, data: &[u8]) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let pid = rustix::process::getpid();
        let user = UCred { pid, uid: Uid::from_raw(self.uid), gid: Gid::from_raw(self.gid) };
        ancillary.push(SendAncillaryMessage::ScmCredentials(user));
        rustix::net::sendmsg(socket, &[IoSlice::new(data)], &mut ancillary, SEND)
    }
}

const SEND: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT);

pub(super) struct Connection {
    pub number: u32,
    /// It is one of a mounted socket.
    pub mounted: bool,
    /// A process of the host has opened it.
    arrival: Option<Arrival>,
    /// `None` once it is closed, and before it is connected. The connection is over when the host has closed it as well.
    pub socket: Option<OwnedFd>,
    /// The socket must still be connected.
    waits: bool,
    pub flow: Flow,
}

impl Connection {
    /// A connection that a process of the guest has opened.
    pub fn accepted(number: u32, socket: OwnedFd, mounted: bool) -> Connection {
        let socket = Some(socket);
        Connection { number, mounted, arrival: None, socket, waits: false, flow: Flow::default() }
    }

    /// A connection that a process of the host has opened.
    pub fn arriving(number: u32, arrival: Arrival) -> Connection {
        let arrival = Some(arrival);
        Connection { number, mounted: false, arrival, socket: None, waits: true, flow: Flow::default() }
    }

    /// Whether it is not connected yet.
    pub fn is_arriving(&self) -> bool {
        self.waits
    }

    /// Connects to the server in the guest, if that is still to be done.
    fn connect(&mut self, outgoing: &mut Vec<u8>) {
        let Some(arrival) = self.arrival.filter(|_| self.waits) else { return };
        let connected = arrival.connect();
        self.waits = matches!(connected, Err(Errno::AGAIN));
        match connected {
            Ok(socket) => self.socket = Some(socket),
            Err(Errno::AGAIN) => {}
            Err(_) => self.close(outgoing),
        }
    }
    /// Returns the events to wait for. `None` while there is nothing to do: the end of a connection that cannot be passed
    /// on would be reported again and again.
    pub fn events(&self, full: bool) -> Option<PollFlags> {
        self.socket.as_ref()?;
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, !full && self.flow.room() > 0);
        events.set(PollFlags::OUT, !self.flow.pending().is_empty());
        (!events.is_empty() || self.flow.has_ended()).then_some(events)
    }

    /// Moves data. Returns whether the connection goes on.
    pub fn serve(&mut self, ready: bool, outgoing: &mut Vec<u8>) -> bool {
        let Some(socket) = self.socket.as_ref().filter(|_| ready) else { return self.write(outgoing) };
        if self.flow.has_ended() && self.flow.pending().is_empty() {
            // Both directions are closed.
            self.close(outgoing);
            return self.write(outgoing);
        }
        let room = if outgoing.len() < OUT_MAX { self.flow.room() } else { 0 };
        if room > 0 {
            let mut data = [0; DATA_MAX];
            let mut pieces = [IoSliceMut::new(&mut data[..room])];
            let mut nothing = RecvAncillaryBuffer::default();
            match rustix::net::recvmsg(socket, &mut pieces, &mut nothing, RecvFlags::CMSG_CLOEXEC) {
                // Data without the descriptors that belong to it would have another meaning.
                Ok(message) if message.flags.contains(ReturnFlags::CTRUNC) => {
                    Frame::Descriptors.encode(self.number, outgoing);
                    self.close(outgoing);
                }
                Ok(message) => self.flow.send(self.number, &data[..message.bytes], outgoing),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => self.close(outgoing),
            }
        }
        self.write(outgoing)
    }

    /// Writes what came from the host. Returns whether the connection goes on.
    pub fn write(&mut self, outgoing: &mut Vec<u8>) -> bool {
        self.connect(outgoing);
        if self.waits {
            return true;
        }
        while let (Some(socket), pending @ [_, ..]) = (&self.socket, self.flow.pending()) {
            let sent = match &self.arrival {
                Some(arrival) => arrival.send(socket, pending),
                None => rustix::net::send(socket, pending, SEND),
            };
            match sent {
                Ok(count) => self.flow.wrote(count),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => self.close(outgoing),
            }
        }
        let Some(socket) = &self.socket else { return !self.flow.is_closed() };
        if outgoing.len() < OUT_MAX {
            self.flow.give_credit(self.number, outgoing);
        }
        if self.flow.must_shut() {
            let _ = rustix::net::shutdown(socket, Shutdown::Write);
        }
        !(self.flow.is_closed() && self.flow.pending().is_empty())
    }

    /// Closes the socket, and tells the host.
    fn close(&mut self, outgoing: &mut Vec<u8>) {
        self.socket = None;
        Frame::Close.encode(self.number, outgoing);
    }
}
