//! A port that is connected to a stream socket, as a byte stream in both directions.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;

use super::ports::{PortBackend, PortEvents};

/// Limit of bytes that wait for a full socket. If there are more, the socket is closed.
pub const PENDING_MAX: usize = 8 * 1024 * 1024;

const TOKEN: u16 = 0;

/// Connects a port with a stream socket. When the socket's stream ends, the guest sees the host's side close.
pub struct SocketPort {
    /// `None` after the socket has been closed.
    socket: Option<UnixStream>,
    /// Bytes from the guest that wait for the socket.
    pending: VecDeque<u8>,
    /// The last read found no data, and no event has arrived since.
    drained: bool,
    /// The socket's stream has ended, but its file descriptor is still registered.
    ended: bool,
}

impl SocketPort {
    /// Returns a port for `socket`, which becomes non-blocking when the port starts.
    pub fn new(socket: UnixStream) -> SocketPort {
        SocketPort { socket: Some(socket), pending: VecDeque::new(), drained: false, ended: false }
    }

    /// Writes the pending bytes and then `data` until the socket is full, and keeps the rest as pending.
    fn send(&mut self, mut data: &[u8]) -> io::Result<()> {
        let Some(socket) = &mut self.socket else { return Ok(()) };
        while !(self.pending.is_empty() && data.is_empty()) {
            let (front, back) = self.pending.as_slices();
            match socket.write_vectored(&[IoSlice::new(front), IoSlice::new(back), IoSlice::new(data)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => {
                    let old = sent.min(self.pending.len());
                    self.pending.drain(..old);
                    data = &data[sent - old..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if self.pending.len() + data.len() > PENDING_MAX {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the socket's reader is too far behind"));
        }
        self.pending.extend(data);
        if self.pending.is_empty() {
            // Free the memory, which may be megabytes after the reader was slow once.
            self.pending = VecDeque::new();
        }
        Ok(())
    }

    /// Sends pending bytes and `data`. Waits for a writable socket only while bytes are pending.
    fn push(&mut self, data: &[u8], events: &mut PortEvents) {
        let waited = !self.pending.is_empty();
        let sent = self.send(data);
        let waits = !self.pending.is_empty();
        let Some(socket) = &self.socket else { return };
        let result = match sent {
            Ok(()) if waits != waited => events.modify(socket.as_raw_fd(), TOKEN, interest(waits)),
            result => result,
        };
        if let Err(error) = result {
            log::warn!("console socket: {error}");
            self.close(events);
        }
    }

    fn close(&mut self, events: &mut PortEvents) {
        if let Some(socket) = self.socket.take() {
            // This fails if the file descriptor is not registered.
            let _ = events.remove(socket.as_raw_fd());
        }
        self.pending = VecDeque::new();
    }
}

/// Returns the events to register. They are edge-triggered, so that unread bytes for which the guest has no receive
/// buffers do not wake the loop.
fn interest(write: bool) -> EventSet {
    let read = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    if write { read | EventSet::OUT } else { read }
}

impl PortBackend for SocketPort {
    fn start(&mut self, events: &mut PortEvents) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        socket.set_nonblocking(true)?;
        events.add(socket.as_raw_fd(), TOKEN, interest(false))
    }

    fn output(&mut self, data: &[u8], events: &mut PortEvents) {
        self.push(data, events);
    }

    fn input(&mut self, buffer: &mut [u8]) -> usize {
        let Some(socket) = &mut self.socket else { return 0 };
        if self.drained || self.ended || buffer.is_empty() {
            return 0;
        }
        loop {
            match socket.read(buffer) {
                Ok(0) => self.ended = true,
                Ok(read) => return read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.drained = true,
                Err(error) => {
                    log::warn!("console socket: {error}");
                    self.ended = true;
                }
            }
            return 0;
        }
    }

    fn ready(&mut self, _token: u16, ready: EventSet, events: &mut PortEvents) {
        self.drained = false;
        if ready.contains(EventSet::OUT) {
            self.push(&[], events);
        }
    }

    fn is_open(&self) -> bool {
        self.socket.is_some() && !self.ended
    }
}

#[cfg(test)]
mod tests;
