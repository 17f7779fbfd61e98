//! Sockets in a shared directory, whose servers and clients are processes of several machines and of the host.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, sockopt};
use serde_json::json;
use tempfile::TempDir;
use tests::{Bundle, Running};

use super::pattern;

/// A directory that is /v in each machine.
struct Volume(TempDir);

impl Volume {
    fn new() -> Volume {
        let volume = Volume(TempDir::new().unwrap());
        fs::set_permissions(volume.0.path(), fs::Permissions::from_mode(0o777)).unwrap();
        volume
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("s")
    }

    fn listen(&self) -> UnixListener {
        UnixListener::bind(self.path()).unwrap()
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path()).unwrap()
    }

    /// Why no connection can be made.
    fn refused(&self) -> ErrorKind {
        UnixStream::connect(self.path()).unwrap_err().kind()
    }

    /// A container whose program of tests/guest connects to the socket.
    fn client(&self, words: &[&str]) -> Bundle {
        bundle(self.0.path(), "rw", &[&["/bin/guest", "socket", "/v/s"], words].concat())
    }

    /// Starts a container whose program of tests/guest listens on the socket.
    fn server(&self, words: &[&str]) -> Running {
        let bundle = bundle(self.0.path(), "rw", &[&["/bin/guest", "serve", "/v/s"], words].concat());
        ready(bundle)
    }
}

fn ready(bundle: Bundle) -> Running {
    let mut server = bundle.start();
    server.wait_for("ready\n");
    server
}

fn bundle(volume: &Path, access: &str, args: &[&str]) -> Bundle {
    let bundle = Bundle::new(args);
    bundle.copy_guest_program();
    let options = ["rbind", access];
    bundle.mount(json!({"destination": "/v", "type": "bind", "source": volume, "options": options}))
}

fn user(bundle: Bundle) -> Bundle {
    bundle.with(|c| c["process"]["user"] = json!({"uid": 1000, "gid": 1001, "umask": 0o027}))
}

/// Runs a container whose program fails with this kind of error.
#[track_caller]
fn fails(bundle: &Bundle, kind: &str) {
    let run = bundle.run();
    assert!(String::from_utf8_lossy(&run.stderr).contains(kind), "{run}");
}

fn ask(mut stream: UnixStream, question: &str) -> String {
    stream.write_all(question.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_client_in_a_container_talks_to_a_server_of_the_host() {
    let volume = Volume::new();
    let listener = volume.listen();
    for access in ["rw", "ro"] {
        let client =
            bundle(volume.0.path(), access, &["/bin/guest", "socket", "/v/s", "ask", "question"]).start();
        let mut connection = listener.accept().unwrap().0;
        let mut question = String::new();
        connection.read_to_string(&mut question).unwrap();
        assert_eq!(question, "question");
        connection.write_all(b"answer").unwrap();
        drop(connection);
        client.finish().code(0).stdout("answer\n");
    }
    // Its file is left.
    drop(listener);
    fails(&volume.client(&["ask", "x"]), "ConnectionRefused");
}

#[test]
fn a_client_of_the_host_talks_to_a_server_in_a_container() {
    let volume = Volume::new();
    let server = volume.server(&["answer", "2"]);
    assert_eq!(ask(volume.connect(), "one"), "answer to one");
    assert_eq!(ask(volume.connect(), "two"), "answer to two");
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    server.finish().code(0).stdout(&format!("one from {uid} {gid}\ntwo from {uid} {gid}\n"));
    assert_eq!(volume.refused(), ErrorKind::ConnectionRefused);
}

#[test]
fn two_machines_meet_and_the_one_that_listens_may_end_first() {
    let volume = Volume::new();
    let server = volume.server(&["answer", "2"]);
    for question in ["one", "two"] {
        let answer = format!("answer to {question}\n");
        volume.client(&["ask", question]).run().code(0).stdout(&answer);
    }
    server.finish().code(0).stdout("one from 0 0\ntwo from 0 0\n");
    fails(&volume.client(&["ask", "three"]), "ConnectionRefused");
    // A process that comes later finds the name in use, until it removes it.
    let again = bundle(volume.0.path(), "rw", &["/bin/guest", "serve", "/v/s", "answer", "1"]);
    fails(&again, "AddrInUse");
    fs::remove_file(volume.path()).unwrap();
    let server = ready(again);
    volume.client(&["ask", "four"]).run().code(0).stdout("answer to four\n");
    server.finish().code(0).stdout("four from 0 0\n");
}

#[test]
fn a_machine_that_is_killed_ends_its_connections_and_refuses_new_ones() {
    let volume = Volume::new();
    let server = volume.server(&["hold"]);
    let mut connection = volume.connect();
    connection.write_all(b"x").unwrap();
    connection.read_exact(&mut [0]).unwrap();
    server.signal("KILL");
    let mut rest = Vec::new();
    // It may be killed with unread data.
    let _ = connection.read_to_end(&mut rest);
    assert!(rest.is_empty());
    drop(server.finish());
    assert_eq!(volume.refused(), ErrorKind::ConnectionRefused);
    fs::remove_file(volume.path()).unwrap();
    // The client is killed.
    let listener = volume.listen();
    let client = volume.client(&["hold"]).start();
    let mut connection = listener.accept().unwrap().0;
    connection.write_all(b"x").unwrap();
    connection.read_exact(&mut [0]).unwrap();
    client.signal("KILL");
    assert_eq!(connection.read(&mut [0]).unwrap_or_default(), 0);
    drop(client.finish());
}

#[test]
fn a_listener_that_closes_while_its_machine_runs_refuses_connections() {
    let volume = Volume::new();
    let mut server = volume.server(&["close"]);
    let mut connection = volume.connect();
    assert_eq!(connection.read(&mut [0]).unwrap_or_default(), 0);
    server.wait_for("closed\n");
    assert_eq!(volume.refused(), ErrorKind::ConnectionRefused);
    server.feed(b"x").finish().code(0);
}

#[test]
fn names_are_used_removed_and_bound_again_as_on_one_kernel() {
    let volume = Volume::new();
    let listener = volume.listen();
    let server = bundle(volume.0.path(), "rw", &["/bin/guest", "serve", "/v/s", "answer", "1"]);
    fails(&server, "AddrInUse");
    drop(listener);
    let script =
        "rm /v/s; /bin/guest serve /v/s answer 1 & while [ ! -S /v/s ]; do :; done; mv /v/s /v/t; wait";
    let bundle = bundle(volume.0.path(), "rw", &["/bin/sh", "-c", script]);
    let mut server = bundle.start();
    server.wait_for("ready\n");
    let moved = volume.0.path().join("t");
    while !moved.exists() {
        thread::yield_now();
    }
    assert_eq!(volume.refused(), ErrorKind::NotFound);
    assert_eq!(ask(UnixStream::connect(moved).unwrap(), "x"), "answer to x");
    server.finish().code(0);
}

#[test]
fn owner_and_mode_are_those_of_the_process_and_keep_others_out() {
    let volume = Volume::new();
    let server = ready(user(bundle(volume.0.path(), "rw", &["/bin/guest", "serve", "/v/s", "answer", "1"])));
    let file = fs::metadata(volume.path()).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o777), (1000, 1001, 0o750));
    let connection = volume.connect();
    let peer = sockopt::socket_peercred(&connection).unwrap();
    assert_eq!((peer.uid.as_raw(), peer.gid.as_raw()), (1000, 1001));
    ask(connection, "x");
    server.finish().code(0);
    fs::remove_file(volume.path()).unwrap();
    // The other way round, and who may.
    let listener = volume.listen();
    fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o644)).unwrap();
    fails(&user(volume.client(&["ask", "x"])), "PermissionDenied");
    fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o666)).unwrap();
    let client = user(volume.client(&["peer"])).start();
    let connection = listener.accept().unwrap().0;
    let peer = sockopt::socket_peercred(&connection).unwrap();
    assert_eq!((peer.uid.as_raw(), peer.gid.as_raw()), (1000, 1001));
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    client.finish().code(0).stdout(&format!("{uid} {gid}\n"));
}

#[test]
fn connections_beyond_the_limit_wait_for_others_to_end() {
    const COUNT: usize = 300;
    let volume = Volume::new();
    let listener = volume.listen();
    let client = volume.client(&["crowd", &COUNT.to_string()]).start();
    // Each of them stays open in the container.
    for _ in 0..COUNT {
        let mut connection = listener.accept().unwrap().0;
        connection.read_exact(&mut [0]).unwrap();
    }
    client.finish().code(0).stdout("ok\n");
}

#[test]
fn a_client_waits_for_a_server_that_does_not_accept() {
    let volume = Volume::new();
    let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(volume.path()).unwrap()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let listener = UnixListener::from(listener);
    // It fills the backlog.
    let first = volume.connect();
    let script = "echo asks; /bin/guest socket /v/s ask question";
    let mut client = bundle(volume.0.path(), "rw", &["/bin/sh", "-c", script]).start();
    client.wait_for("asks\n");
    drop(first);
    drop(listener.accept().unwrap());
    let mut connection = listener.accept().unwrap().0;
    let mut question = String::new();
    connection.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    drop(connection);
    client.finish().code(0);
}

#[test]
fn large_transfers_are_exact_and_a_slow_reader_stops_only_itself() {
    const LEN: usize = 8 << 20;
    let volume = Volume::new();
    let server = volume.server(&["echo", &LEN.to_string()]);
    let mut connection = volume.connect();
    let mut writer = connection.try_clone().unwrap();
    let writing = thread::spawn(move || {
        writer.write_all(&pattern(LEN)).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut came = Vec::new();
    connection.read_to_end(&mut came).unwrap();
    writing.join().unwrap();
    assert!(came == pattern(LEN), "{} bytes", came.len());
    server.finish().code(0).stdout("ok\n");
    fs::remove_file(volume.path()).unwrap();
    let server = volume.server(&["lazy", &LEN.to_string()]);
    let mut slow = volume.connect();
    let writing = thread::spawn(move || slow.write_all(&pattern(LEN)).unwrap());
    let mut quick = volume.connect();
    quick.write_all(b"x").unwrap();
    quick.read_exact(&mut [0]).unwrap();
    assert!(!writing.is_finished());
    drop(quick);
    writing.join().unwrap();
    server.finish().code(0).stdout("end\nok\n");
}

#[test]
fn datagrams_and_descriptors_are_refused_with_a_warning() {
    let volume = Volume::new();
    let listener = volume.listen();
    let run = volume.client(&["try", "datagram"]).run().code(0).stdout("ConnectionRefused\n");
    run.says(&["with a socket of type SOCK_DGRAM: only those of type SOCK_STREAM are carried"]);
    let client = volume.client(&["pass"]).start();
    let mut connection = listener.accept().unwrap().0;
    connection.read_exact(&mut [0; 6]).unwrap();
    connection.write_all(b"x").unwrap();
    let mut rest = Vec::new();
    connection.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "data without its descriptor");
    client
        .finish()
        .code(0)
        .stdout("closed\n")
        .says(&["socket in a shared directory: a process of the container"]);
}

#[test]
fn sockets_of_the_root_and_processes_of_one_machine_need_no_host() {
    let volume = Volume::new();
    let script = "for s in /s /v/s; do /bin/guest serve $s answer 1 > /out & while [ ! -s /out ]; do :; done; \
                  /bin/guest socket $s ask x; wait; cat /out; rm /out; done";
    let bundle = bundle(volume.0.path(), "rw", &["/bin/sh", "-c", script]);
    let each = "answer to x\nready\nx from 0 0\n";
    bundle.run().code(0).stdout(&format!("{each}{each}"));
    assert_eq!(volume.refused(), ErrorKind::ConnectionRefused);
}
