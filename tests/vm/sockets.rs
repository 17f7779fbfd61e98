//! Listening sockets of the host in a container.

mod shared;

use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags,
    SocketType, recvmsg, socket_with, sockopt,
};
use serde_json::json;
use tempfile::TempDir;
use tests::{Bundle, Running};

/// A listening socket of the host.
struct Server {
    listener: UnixListener,
    dir: TempDir,
}

impl Server {
    fn new() -> Server {
        let dir = TempDir::new().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let server = Server { listener, dir };
        fs::set_permissions(server.path(), fs::Permissions::from_mode(0o666)).unwrap();
        server
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// A container whose program of tests/guest has the socket.
    fn bundle(&self, words: &[&str]) -> Bundle {
        let args = [&["/bin/guest", "socket", "/run/server.sock"], words].concat();
        let bundle = Bundle::new(&args);
        bundle.copy_guest_program();
        let options = json!(["rbind", "rprivate"]);
        bundle.mount(
            json!({"destination": "/run/server.sock", "type": "bind", "source": self.path(), "options": options}),
        )
    }

    fn accept(&self) -> UnixStream {
        self.listener.accept().unwrap().0
    }
}

#[test]
fn a_client_in_a_container_talks_to_a_server_of_the_host() {
    let server = Server::new();
    let client = server.bundle(&["ask", "question"]).start();
    let mut connection = server.accept();
    let mut question = String::new();
    // The client ends its direction, and reads on.
    connection.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    connection.write_all(b"answer").unwrap();
    drop(connection);
    client.finish().code(0).stdout("answer\n");
}

/// Bytes that are different from those of any other offset nearby.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).flat_map(u32::to_le_bytes).take(len).collect()
}

#[test]
fn large_transfers_in_both_directions_at_once_are_exact() {
    const LEN: usize = 8 << 20;
    let server = Server::new();
    let client = server.bundle(&["echo", &LEN.to_string()]).start();
    let mut connection = server.accept();
    let mut writer = connection.try_clone().unwrap();
    let writing = thread::spawn(move || {
        writer.write_all(&pattern(LEN)).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut came = Vec::new();
    connection.read_to_end(&mut came).unwrap();
    writing.join().unwrap();
    assert!(came == pattern(LEN), "{} bytes", came.len());
    client.finish().code(0).stdout("ok\n");
}

#[test]
fn many_connections_are_open_at_once() {
    const COUNT: usize = 300;
    let server = Server::new();
    let client = server.bundle(&["many", &COUNT.to_string()]).start();
    // More than the machine carries at a time: the others wait until some are closed.
    for number in 0..COUNT {
        let mut connection = server.accept();
        let mut byte = [0];
        connection.read_exact(&mut byte).unwrap();
        connection.write_all(&[byte[0].wrapping_add(1)]).unwrap();
        assert!(number < COUNT);
    }
    client.finish().code(0).stdout("ok\n");
}

#[test]
fn the_end_of_either_side_reaches_the_other() {
    let server = Server::new();
    // The client exits with the connection open, and then a machine is killed.
    for killed in [false, true] {
        let client = server.bundle(&["hold", if killed { "" } else { "exit" }]).start();
        let mut connection = server.accept();
        connection.write_all(b"x").unwrap();
        let mut byte = [0];
        connection.read_exact(&mut byte).unwrap();
        if killed {
            client.signal("KILL");
        }
        let mut rest = Vec::new();
        // The client may have been killed with unread data.
        let _ = connection.read_to_end(&mut rest);
        assert!(rest.is_empty());
        drop(client.finish());
    }
    // The server closes, and its socket is removed.
    let client = server.bundle(&["hold"]).start();
    let mut connection = server.accept();
    connection.write_all(b"x").unwrap();
    let mut byte = [0];
    connection.read_exact(&mut byte).unwrap();
    drop((connection, server));
    client.finish().code(0).stdout("end\n");
}

#[test]
fn the_server_sees_the_user_of_the_client_and_the_mode_keeps_others_out() {
    let server = Server::new();
    let user = |bundle: Bundle| bundle.with(|c| c["process"]["user"] = json!({"uid": 1000, "gid": 1001}));
    let client = user(server.bundle(&["ask", "who"])).start();
    let mut connection = server.accept();
    let peer = sockopt::socket_peercred(&connection).unwrap();
    assert_eq!((peer.uid.as_raw(), peer.gid.as_raw()), (1000, 1001));
    connection.read_to_string(&mut String::new()).unwrap();
    drop(connection);
    client.finish().code(0);
    fs::set_permissions(server.path(), fs::Permissions::from_mode(0o660)).unwrap();
    let refused = user(server.bundle(&["ask", "who"])).run();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("PermissionDenied"), "{refused}");
}

#[test]
fn what_a_container_sends_last_arrives() {
    let server = Server::new();
    let client: Running = server.bundle(&["leave", "last words"]).start();
    let mut text = String::new();
    server.accept().read_to_string(&mut text).unwrap();
    assert_eq!(text, "last words");
    client.finish().code(0);
}

#[test]
fn descriptors_are_not_carried_and_end_the_connection_with_a_warning() {
    let server = Server::new();
    let client = server.bundle(&["pass"]).start();
    let mut connection = server.accept();
    let mut before = [0; 6];
    connection.read_exact(&mut before).unwrap();
    assert_eq!(&before, b"before");
    connection.write_all(b"x").unwrap();
    let mut rest = Vec::new();
    connection.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "data without its descriptor");
    let warning = format!(
        "socket {}: a process of the container passes descriptors (SCM_RIGHTS), which are not carried",
        server.path().display()
    );
    client.finish().code(0).stdout("closed\n").says(&[&warning]);
}

#[test]
fn a_server_that_asks_for_credentials_sees_the_user_of_each_message() {
    let server = Server::new();
    for (user, group) in [(1000, 1001), (0, 0)] {
        let bundle = server.bundle(&["ask", "who"]);
        let client = bundle.with(|c| c["process"]["user"] = json!({"uid": user, "gid": group})).start();
        let connection = server.accept();
        sockopt::set_socket_passcred(&connection, true).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut text = [0; 3];
        let flags = RecvFlags::empty();
        recvmsg(&connection, &mut [IoSliceMut::new(&mut text)], &mut ancillary, flags).unwrap();
        let seen: Vec<_> = ancillary
            .drain()
            .map(|message| match message {
                RecvAncillaryMessage::ScmCredentials(who) => (who.uid.as_raw(), who.gid.as_raw()),
                _ => panic!("another message"),
            })
            .collect();
        assert_eq!(seen, [(user, group)]);
        drop(connection);
        client.finish().code(0);
    }
}

#[test]
fn a_client_sees_the_owner_of_the_socket_as_its_server() {
    let server = Server::new();
    std::os::unix::fs::chown(server.path(), Some(1000), Some(1001)).unwrap();
    let client = server.bundle(&["peer"]).start();
    drop(server.accept());
    client.finish().code(0).stdout("1000 1001\n");
}

#[test]
fn sockets_of_other_types_are_refused_by_name() {
    let server = Server::new();
    fs::remove_file(server.path()).unwrap();
    let datagrams = UnixDatagram::bind(server.path()).unwrap();
    let refusal = format!("{} is a socket of type SOCK_DGRAM", server.path().display());
    server.bundle(&["ask", "x"]).run().code(125).says(&[&refusal]);
    drop(datagrams);
    fs::remove_file(server.path()).unwrap();
    let flags = SocketFlags::CLOEXEC;
    let messages = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    rustix::net::bind(&messages, &SocketAddrUnix::new(server.path()).unwrap()).unwrap();
    rustix::net::listen(&messages, 1).unwrap();
    let refusal = format!("{} is a socket of type SOCK_SEQPACKET", server.path().display());
    server.bundle(&["ask", "x"]).run().code(125).says(&[&refusal]);
}

#[test]
fn without_virtio_fs_a_socket_in_a_shared_directory_refuses_connections_and_the_user_is_told() {
    let server = Server::new();
    let script = "/bin/guest socket /v/socket try stream; /bin/guest socket /v/socket try datagram; ls /v";
    let bundle = Bundle::sh(script);
    bundle.copy_guest_program();
    let options = json!(["rbind", "rw"]);
    let bind = json!({"destination": "/v", "type": "bind", "source": server.dir.path(), "options": options});
    let run = bundle
        .flag("--share")
        .flag("9p")
        .mount(bind)
        .run()
        .code(0)
        .stdout("ConnectionRefused\nConnectionRefused\nsocket\n");
    let text = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(text.matches("the socket \"socket\" in a shared directory").count(), 1, "{run}");
}
