//! Client side of a D-Bus connection without a bus daemon (D-Bus specification). A library encodes the messages.
//!
//! The library's own connection waits for the answer to its credentials before it sends BEGIN, and then sends a call
//! immediately. If systemd receives both in one read, its library takes the call for part of the handshake and waits
//! for more, while the client waits for the reply. As systemd's own clients do, this module sends the complete
//! handshake first, and nothing else until the server has answered.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use rustbus::MessageType;
use rustbus::message_builder::MarshalledMessage;
use rustbus::wire::errors::{MarshalError, UnmarshalError};
use rustbus::wire::marshal::marshal;
use rustbus::wire::unmarshal::{unmarshal_dynamic_header, unmarshal_header, unmarshal_next_message};

use crate::user::User;

/// Length in bytes of the fixed part of a message's header, with the length of its fields.
const HEADER: usize = 16;
/// Maximum length of a received message in bytes; the specification's limit is 128 MiB.
const MESSAGE_MAX: usize = 1 << 20;
/// Maximum length of a line of the handshake in bytes.
const LINE_MAX: usize = 512;
/// Maximum number of queued signals.
const SIGNALS_MAX: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum DbusError {
    /// A system call on the socket failed or timed out.
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("authentication rejected: {0}")]
    Rejected(String),
    #[error("received more than the limit")]
    Limit,
    #[error("parse a message")]
    Parse(#[from] UnmarshalError),
    #[error("encode a message")]
    Encode(#[from] MarshalError),
}

type Result<T, E = DbusError> = std::result::Result<T, E>;

/// A connection with a deadline.
pub struct Connection {
    stream: UnixStream,
    until: Instant,
    serial: u32,
    signals: VecDeque<MarshalledMessage>,
}

impl Connection {
    /// Connects to a socket with the credentials of the effective user. All calls fail after `until`.
    pub fn connect(path: &Path, until: Instant) -> Result<Connection> {
        Connection::over(UnixStream::connect(path)?, until)
    }

    fn over(stream: UnixStream, until: Instant) -> Result<Connection> {
        let mut connection = Connection { stream, until, serial: 0, signals: VecDeque::new() };
        let user = User::of_process().outside().to_string();
        let hex: String = user.bytes().map(|digit| format!("{digit:02x}")).collect();
        connection.write(format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            connection.read(&mut byte)?;
            line.push(byte[0]);
            if line.len() > LINE_MAX {
                return Err(DbusError::Limit);
            }
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if line.starts_with("OK ") { Ok(connection) } else { Err(DbusError::Rejected(line)) }
    }

    /// Sends a call and waits for its reply, which may be an error message.
    pub fn call(&mut self, call: &MarshalledMessage) -> Result<MarshalledMessage> {
        self.serial += 1;
        let mut bytes = Vec::new();
        marshal(call, self.serial, &mut bytes)?;
        bytes.extend_from_slice(call.get_buf());
        self.write(&bytes)?;
        loop {
            let message = self.next()?;
            if message.dynheader.response_serial == Some(self.serial) {
                return Ok(message);
            }
            self.keep(message)?;
        }
    }

    /// Returns the next signal, queued or received.
    pub fn signal(&mut self) -> Result<MarshalledMessage> {
        loop {
            if let Some(signal) = self.signals.pop_front() {
                return Ok(signal);
            }
            let message = self.next()?;
            self.keep(message)?;
        }
    }

    /// Queues a signal, and drops other messages.
    fn keep(&mut self, message: MarshalledMessage) -> Result<()> {
        if matches!(message.typ, MessageType::Signal) {
            if self.signals.len() == SIGNALS_MAX {
                return Err(DbusError::Limit);
            }
            self.signals.push_back(message);
        }
        Ok(())
    }

    fn next(&mut self) -> Result<MarshalledMessage> {
        let mut bytes = vec![0; HEADER];
        self.read(&mut bytes)?;
        let number = |at: usize| {
            let four = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
            let number = if bytes[0] == b'B' { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) };
            number as usize
        };
        let (body, fields) = (number(4), number(12));
        if body > MESSAGE_MAX || fields > MESSAGE_MAX {
            return Err(DbusError::Limit);
        }
        bytes.resize((HEADER + fields).next_multiple_of(8) + body, 0);
        self.read(&mut bytes[HEADER..])?;
        let (at, header) = unmarshal_header(&bytes, 0)?;
        let (len, fields) = unmarshal_dynamic_header(&header, &bytes, at)?;
        Ok(unmarshal_next_message(&header, fields, &bytes, at + len)?.1)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            self.stream.set_read_timeout(Some(self.left()?))?;
            match self.stream.read(rest) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(len) => rest = &mut rest[len..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Kind of error after the socket's timeout.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        Ok(self.stream.write_all(bytes)?)
    }

    fn left(&self) -> Result<std::time::Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::Error::from(io::ErrorKind::TimedOut).into()) } else { Ok(left) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustbus::MessageBuilder;

    use super::*;

    /// Returns the result of a connection to a server that has sent `bytes` in advance, and the server's end.
    fn heard(bytes: &[u8]) -> (Result<Connection>, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).unwrap();
        (Connection::over(ours, Instant::now() + Duration::from_secs(5)), theirs)
    }

    fn bytes_of(message: &MarshalledMessage, serial: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        marshal(message, serial, &mut bytes).unwrap();
        bytes.extend_from_slice(message.get_buf());
        bytes
    }

    #[test]
    fn a_call_has_its_reply_and_signals_wait() {
        let mut call = MessageBuilder::new().call("Start").on("/a").build();
        let mut signal = MessageBuilder::new().signal("a.b", "Ended", "/a").build();
        signal.body.push_param("x").unwrap();
        call.dynheader.serial = Some(1);
        let mut reply = call.dynheader.make_response();
        reply.body.push_param(7_u32).unwrap();
        let mut all = b"OK 0123\r\n".to_vec();
        all.extend(bytes_of(&signal, 1));
        all.extend(bytes_of(&reply, 2));
        let (connection, mut theirs) = heard(&all);
        let mut connection = connection.unwrap();
        let said = connection.call(&call).unwrap();
        assert_eq!(said.body.parser().get::<u32>().unwrap(), 7);
        assert_eq!(connection.signal().unwrap().body.parser().get::<String>().unwrap(), "x");
        drop(connection);
        let mut sent = Vec::new();
        theirs.read_to_end(&mut sent).unwrap();
        assert!(sent.starts_with(b"\0AUTH EXTERNAL 3"));
        assert!(sent.windows(7).any(|window| window == b"BEGIN\r\n"));
        assert!(sent.ends_with(&bytes_of(&call, 1)));
    }

    #[test]
    fn an_invalid_answer_is_an_error() {
        assert!(
            matches!(heard(b"REJECTED EXTERNAL\r\n").0, Err(DbusError::Rejected(line)) if line == "REJECTED EXTERNAL")
        );
        assert!(matches!(heard(&[b'x'; LINE_MAX + 1]).0, Err(DbusError::Limit)));
        for message in [[0xff; 64], [0; 64]] {
            let mut bytes = b"OK 0\r\n".to_vec();
            bytes.extend(message);
            let (connection, theirs) = heard(&bytes);
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            connection.unwrap().signal().unwrap_err();
        }
    }
}
