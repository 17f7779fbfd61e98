//! Connecting to listening sockets of the host, and listening on them, as the users of a guest.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, UCred, accept_with, connect, listen, recvmsg,
    sendmsg, socket_with, sockopt,
};
use rustix::process::{Gid, Uid, getpid};
use rustix::thread::{
    CapabilitySet, capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::confine::{self, Role};

/// Sockets to which the guest may connect. They were opened before the machine runs, so no path of the guest leads to one.
#[derive(Debug)]
pub struct HostSockets {
    sockets: Vec<OwnedFd>,
    /// /proc/self/fd.
    own_descriptors: File,
}

/// The sockets, for the confined thread that connects to them.
#[derive(Debug)]
pub struct Connector {
    sockets: Vec<OwnedFd>,
    /// The thread can act as other users.
    privileged: bool,
}

impl HostSockets {
    /// Opens the sockets, which does not connect to them. Refuses those that are not for byte streams.
    pub fn open(paths: &[PathBuf]) -> io::Result<HostSockets> {
        let open = |path: &PathBuf| {
            let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
            check_type(&file, path)?;
            Ok(OwnedFd::from(file))
        };
        let own_descriptors = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open("/proc/self/fd")?;
        Ok(HostSockets { sockets: paths.iter().map(open).collect::<io::Result<_>>()?, own_descriptors })
    }

    /// Confines the calling thread, which connects from now on.
    pub fn enter(self) -> io::Result<Connector> {
        let held = capabilities(None)?.effective;
        let privileged = rustix::process::geteuid().is_root()
            && held.contains(CapabilitySet::SETUID.union(CapabilitySet::SETGID));
        if privileged {
            // Of this thread alone: a server must not see the groups of this process.
            set_thread_groups(&[])?;
        }
        confine::enter(Role::Sockets);
        // A descriptor's number is then a path to its file. The working directory was separated from that of the process,
        // unless this thread may not have a root of its own.
        rustix::process::fchdir(&self.own_descriptors)?;
        Ok(Connector { sockets: self.sockets, privileged })
    }
}

/// Refuses a socket that is for datagrams or for messages in sequence. Connecting a socket of another type than the server's
/// fails without a trace for the server, and connecting one for datagrams sends none.
fn check_type(file: &File, path: &Path) -> io::Result<()> {
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    for (kind, name) in [(SocketType::DGRAM, "SOCK_DGRAM"), (SocketType::SEQPACKET, "SOCK_SEQPACKET")] {
        let probe = socket_with(AddressFamily::UNIX, kind, flags, None)?;
        // EAGAIN: its backlog is full.
        if matches!(connect(probe.as_fd(), &address), Ok(()) | Err(Errno::AGAIN)) {
            let path = path.display();
            let why =
                format!("{path} is a socket of type {name}; only those of type SOCK_STREAM are carried");
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
    }
    Ok(())
}

/// What a socket has received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Number of bytes, 0 at the end.
    pub bytes: usize,
    /// Descriptors came with them, and were closed.
    pub descriptors: bool,
}

/// Receives data from a socket.
pub fn receive(stream: &UnixStream, data: &mut [u8]) -> io::Result<Received> {
    let mut nothing = RecvAncillaryBuffer::default();
    let message = recvmsg(stream, &mut [IoSliceMut::new(data)], &mut nothing, RecvFlags::CMSG_CLOEXEC)?;
    Ok(Received { bytes: message.bytes, descriptors: message.flags.contains(ReturnFlags::CTRUNC) })
}

/// Sends data as a user and group of the guest, for a server that looks at SCM_CREDENTIALS.
pub fn send(stream: &UnixStream, data: &[u8], (uid, gid): (u32, u32)) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if (uid, gid) != (0, 0) {
        // Without this the kernel names the thread's real user, which is root.
        let user = UCred { pid: getpid(), uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) };
        ancillary.push(SendAncillaryMessage::ScmCredentials(user));
    }
    Ok(sendmsg(stream, &[IoSlice::new(data)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

impl Connector {
    /// Connects to a socket as a user and group of the guest. The guest's kernel has checked whether the user may. An error
    /// of kind `WouldBlock` means that the server has not accepted enough earlier connections.
    pub fn connect(&self, socket: u16, uid: u32, gid: u32) -> io::Result<UnixStream> {
        let target = self.sockets.get(usize::from(socket)).ok_or(Errno::NOENT)?;
        self.connect_to(target.as_fd(), uid, gid)
    }

    /// Like [`connect`](Self::connect), to the socket of an open file.
    pub fn connect_to(&self, target: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<UnixStream> {
        let path = SocketAddrUnix::new(target.as_raw_fd().to_string())?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let connection = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // The server sees the user that connects.
        let acting = Acting::begin(self.privileged, uid, gid)?;
        connect(connection.as_fd(), &path)?;
        drop(acting);
        Ok(UnixStream::from(connection))
    }

    /// Listens on a bound socket as a user and group of the guest, which clients see.
    pub fn listen(&self, socket: BorrowedFd<'_>, backlog: u32, uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = self.shown(uid, gid);
        let _acting = Acting::begin(self.privileged, uid, gid)?;
        Ok(listen(socket, i32::try_from(backlog).unwrap_or(i32::MAX))?)
    }

    /// Accepts a connection. An error of kind `WouldBlock` means that there is none.
    pub fn accept(&self, socket: BorrowedFd<'_>) -> io::Result<UnixStream> {
        Ok(UnixStream::from(accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?))
    }

    /// Returns user and group of a connection's other end, as in the guest.
    pub fn peer(&self, stream: &UnixStream) -> io::Result<(u32, u32)> {
        /// The user and the group that a guest sees in place of those that it does not have.
        const NOBODY: u32 = 65534;
        let peer = sockopt::socket_peercred(stream)?;
        let (uid, gid) = (peer.uid.as_raw(), peer.gid.as_raw());
        if self.privileged {
            return Ok((uid, gid));
        }
        let own = rustix::process::geteuid().as_raw() == uid;
        Ok(if own { (0, 0) } else { (NOBODY, NOBODY) })
    }

    /// Returns the user and group as which this thread can act in place of those of the guest.
    pub fn shown(&self, uid: u32, gid: u32) -> (u32, u32) {
        let can = self.privileged && uid != u32::MAX && gid != u32::MAX;
        if can { (uid, gid) } else { (0, 0) }
    }
}

/// RAII guard: the thread is a user of the guest, with the capabilities of its role.
struct Acting;

impl Acting {
    fn begin(privileged: bool, uid: u32, gid: u32) -> io::Result<Option<Acting>> {
        if (uid, gid) == (0, 0) {
            return Ok(None);
        }
        // Without privileges the guest's root is this user, and its other users are nobody.
        if !privileged || uid == u32::MAX || gid == u32::MAX {
            return Err(Errno::ACCESS.into());
        }
        let acting = Acting;
        set_thread_res_gid(Gid::ROOT, Gid::from_raw(gid), Gid::ROOT)?;
        set_thread_res_uid(Uid::ROOT, Uid::from_raw(uid), Uid::ROOT)?;
        Ok(Some(acting))
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        let back = set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
            .and_then(|()| set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT));
        if let Err(error) = back {
            log::error!("become root again: {error}");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};
    use std::sync::mpsc::channel;
    use std::thread;

    use rustix::net::sockopt::socket_peercred;

    use super::*;

    #[test]
    fn descriptors_are_noticed_and_closed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let file = File::open("/dev/null").unwrap();
        let passed = [file.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&passed)));
        let mut data = [0; 32];
        let mut next = || receive(&ours, &mut data).unwrap();
        send(&theirs, b"plain", (0, 0)).unwrap();
        assert_eq!(next(), Received { bytes: 5, descriptors: false });
        sendmsg(&theirs, &[IoSlice::new(b"with one")], &mut ancillary, SendFlags::empty()).unwrap();
        assert_eq!(next(), Received { bytes: 8, descriptors: true });
        drop(theirs);
        assert_eq!(next(), Received { bytes: 0, descriptors: false });
    }

    #[test]
    fn sockets_that_are_not_for_byte_streams_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let _datagrams = UnixDatagram::bind(path("datagrams")).unwrap();
        let _streams = UnixListener::bind(path("streams")).unwrap();
        drop(UnixListener::bind(path("nobody")).unwrap());
        let refused = HostSockets::open(&[path("datagrams")]).unwrap_err().to_string();
        assert!(refused.contains("datagrams is a socket of type SOCK_DGRAM"), "{refused}");
        HostSockets::open(&[path("streams"), path("nobody")]).unwrap();
    }

    #[test]
    fn a_server_sees_the_user_of_the_guest_and_an_unprivileged_thread_is_only_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let sockets = HostSockets::open(&[path]).unwrap();
        // The confined thread may not accept.
        let (send, connected) = channel();
        let connect = move || {
            let connector = sockets.enter().unwrap();
            for (socket, uid, gid) in [(0, u32::MAX, 0), (0, 0, 0), (0, 1000, 1001), (0, 0, 0), (1, 0, 0)] {
                send.send(connector.connect(socket, uid, gid).map_err(|error| error.kind())).unwrap();
            }
        };
        thread::spawn(connect).join().unwrap();
        let seen = connected.iter().map(|connection| {
            connection.map(|_| {
                let seen = socket_peercred(listener.accept().unwrap().0).unwrap();
                (seen.uid.as_raw(), seen.gid.as_raw())
            })
        });
        let seen: Vec<_> = seen.collect();
        let refused = Err(io::ErrorKind::PermissionDenied);
        let own = seen[1].unwrap();
        let other = if own.0 == 0 { Ok((1000, 1001)) } else { refused };
        assert_eq!(seen, [refused, Ok(own), other, Ok(own), Err(io::ErrorKind::NotFound)]);
    }
}
