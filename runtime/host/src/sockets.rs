//! Connecting to listening sockets of the host as the users of a guest.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Gid, Uid};
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
    /// Opens the sockets, which does not connect to them.
    pub fn open(paths: &[PathBuf]) -> io::Result<HostSockets> {
        let open = |path: &PathBuf| {
            OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).map(OwnedFd::from)
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

impl Connector {
    /// Connects to a socket as a user and group of the guest. The guest's kernel has checked whether the user may. An error
    /// of kind `WouldBlock` means that the server has not accepted enough earlier connections.
    pub fn connect(&self, socket: u16, uid: u32, gid: u32) -> io::Result<UnixStream> {
        let target = self.sockets.get(usize::from(socket)).ok_or(Errno::NOENT)?;
        let path = SocketAddrUnix::new(target.as_raw_fd().to_string())?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let connection = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // The server sees the user that connects.
        let acting = Acting::begin(self.privileged, uid, gid)?;
        connect(connection.as_fd(), &path)?;
        drop(acting);
        Ok(UnixStream::from(connection))
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
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc::channel;
    use std::thread;

    use rustix::net::sockopt::socket_peercred;

    use super::*;

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
