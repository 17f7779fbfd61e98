//! Reports from a child to the agent between fork and exec, over a socket that exec closes: the child's terminal, or
//! why its program does not run. The end of the socket without an error means that the program runs.

use alloc::string::String;
use alloc::vec::Vec;
use core::mem::MaybeUninit;

use agent_proto::payload::ErrorCode;
use rustix::cmsg_space;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::error::{Error, Step};

/// Limit of a message in bytes, and so of the text of an error.
const MESSAGE_MAX: usize = 4 << 10;
const TERMINAL: u8 = b'T';

/// One message of a child.
#[derive(Debug)]
pub enum Report {
    /// The child has opened its terminal; this is the master.
    Terminal(OwnedFd),
    /// The child could not start its program, and exits.
    Error(Error),
    /// The program runs, or the child has exited.
    Started,
    /// There is no message.
    Nothing,
}

/// Returns the agent's and the child's end.
pub fn channel() -> Result<(OwnedFd, OwnedFd), Error> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .step("create", "socket pair")
}

/// Sends the terminal's master.
pub fn send_terminal(to: &OwnedFd, master: &OwnedFd) -> Result<(), Error> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [master.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(to, &[IoSlice::new(&[TERMINAL])], &mut control, SendFlags::empty())
        .map(drop)
        .step("send", "terminal")
}

/// Sends why the program does not run.
pub fn send_error(to: &OwnedFd, error: &Error) {
    let text = error.text.as_bytes();
    let mut message = Vec::with_capacity(MESSAGE_MAX);
    message.push(error.code as u8);
    message.extend_from_slice(&text[..text.len().min(MESSAGE_MAX - 1)]);
    // A failure means that the agent is gone.
    let _ = rustix::net::send(to, &message, SendFlags::NOSIGNAL);
}

/// Receives the child's next message.
pub fn receive(from: &OwnedFd) -> Report {
    let mut bytes = [0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let count = match rustix::net::recvmsg(from, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
        Ok(message) => message.bytes,
        Err(Errno::AGAIN | Errno::INTR) => return Report::Nothing,
        Err(_) => 0,
    };
    let master = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    match (bytes[..count].split_first(), master) {
        (None, _) => Report::Started,
        (Some((&TERMINAL, _)), Some(master)) => Report::Terminal(master),
        (Some((&code, text)), _) => {
            Report::Error(Error::new(error_code(code), String::from_utf8_lossy(text)))
        }
    }
}

fn error_code(byte: u8) -> ErrorCode {
    const CODES: [ErrorCode; 6] = [
        ErrorCode::Unsupported,
        ErrorCode::BadRequest,
        ErrorCode::NotFound,
        ErrorCode::Exists,
        ErrorCode::NotExecutableMissing,
        ErrorCode::NotExecutable,
    ];
    CODES.into_iter().find(|code| *code as u8 == byte).unwrap_or(ErrorCode::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_arrives_complete_and_then_the_end() {
        let (ours, theirs) = channel().unwrap();
        assert!(matches!(receive(&ours), Report::Nothing));
        let error = Error::new(ErrorCode::NotExecutable, "execute /bin/x: permission denied");
        send_error(&theirs, &error);
        drop(theirs);
        let Report::Error(seen) = receive(&ours) else { panic!("no error") };
        assert_eq!(seen, error);
        assert!(matches!(receive(&ours), Report::Started));
    }

    #[test]
    fn terminal_arrives_as_a_descriptor() {
        let (ours, theirs) = channel().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        send_terminal(&theirs, &write).unwrap();
        drop(write);
        let Report::Terminal(write) = receive(&ours) else { panic!("no terminal") };
        rustix::io::write(&write, b"x").unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&read, &mut byte), Ok(1));
    }
}
