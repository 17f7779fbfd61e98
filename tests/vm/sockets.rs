//! Listening sockets of the host in a container.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;

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
    let peer = rustix::net::sockopt::socket_peercred(&connection).unwrap();
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
