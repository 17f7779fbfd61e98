use std::io::Write;
use std::net::Shutdown;

use super::*;

/// Sends a request, and lets the pod answer meanwhile.
fn answer(clients: &mut Clients, client: &mut Connection, id: ClientId) -> Result<Reply, ControlError> {
    client.send(&Request::Stats).unwrap();
    client.flush().unwrap();
    assert!(clients.receive(id));
    assert_eq!(clients.next(id).unwrap().0, Request::Stats);
    clients.answer(id, &Reply::Done);
    assert!(clients.flush().is_empty());
    next(client)
}

/// Returns the next message of the pod.
fn next(client: &mut Connection) -> Result<Reply, ControlError> {
    loop {
        if let Some((reply, _)) = client.take()? {
            return Ok(reply);
        }
        if !client.receive()? {
            return Err(ControlError::Ended);
        }
    }
}

/// Returns a socket in a folder, and its clients, none so far.
fn none() -> (tempfile::TempDir, Clients) {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    listener.set_nonblocking(true).unwrap();
    (folder, Clients::new(Some(listener)))
}

fn connect(folder: &tempfile::TempDir) -> UnixStream {
    UnixStream::connect(folder.path().join("s")).unwrap()
}

/// Returns the clients of a socket in a folder, one of which is connected.
fn one() -> (tempfile::TempDir, Clients, Connection, ClientId) {
    let (folder, mut clients) = none();
    let client = Connection::new(connect(&folder)).unwrap();
    clients.accept(Instant::now());
    let id = clients.interests(false, Instant::now())[0].0.unwrap();
    (folder, clients, client, id)
}

#[test]
fn a_client_is_heard_and_answered() {
    let (_folder, mut clients, mut client, id) = one();
    assert_eq!(answer(&mut clients, &mut client, id).unwrap(), Reply::Done);
    assert!(clients.next(id).is_none());
    clients.answer_last(id, &Reply::Exited(1));
    assert!(clients.flush().is_empty());
    assert_eq!(next(&mut client).unwrap(), Reply::Exited(1));
    assert!(matches!(next(&mut client), Err(ControlError::Ended)));
    // The client to be answered is gone.
    clients.answer(id, &Reply::Done);
}

#[test]
fn a_client_that_sends_invalid_data_or_leaves_is_disconnected() {
    let (folder, mut clients, client, id) = one();
    drop(client);
    assert!(!clients.receive(id));
    assert_eq!(clients.interests(false, Instant::now()).len(), 1);
    for bytes in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x01x"] {
        let mut socket = connect(&folder);
        socket.write_all(bytes).unwrap();
        clients.accept(Instant::now());
        let id = clients.interests(false, Instant::now())[0].0.unwrap();
        assert!(clients.receive(id));
        assert!(clients.next(id).is_none());
        assert_eq!(clients.flush(), [id]);
    }
}

#[test]
fn a_busy_pod_reads_no_requests_and_sends_answers() {
    let (_folder, mut clients, _client, id) = one();
    assert_eq!(clients.interests(true, Instant::now()).len(), 0);
    clients.answer(id, &Reply::Done);
    assert_eq!(clients.interests(true, Instant::now())[0].1.1, libc::POLLOUT);
}

#[test]
fn a_client_without_a_request_is_disconnected() {
    let (folder, mut clients, mut client, id) = one();
    clients.expire(Instant::now());
    assert!(clients.flush().is_empty());
    // A client that has sent its request may stay, for example to wait for a process.
    assert_eq!(answer(&mut clients, &mut client, id).unwrap(), Reply::Done);
    assert_eq!(clients.deadline(), None);
    let mut half = connect(&folder);
    half.write_all(b"\0\0").unwrap();
    clients.accept(Instant::now());
    let other = clients.clients[1].id;
    assert!(clients.receive(other) && clients.next(other).is_none());
    clients.expire(clients.deadline().unwrap());
    assert_eq!(clients.flush(), [other]);
    assert_eq!(clients.deadline(), None);
}

#[test]
fn a_client_above_the_limit_is_told_so() {
    let (folder, mut clients) = none();
    let mut all: Vec<_> = (0..CLIENTS_MAX)
        .map(|_| {
            let socket = connect(&folder);
            clients.accept(Instant::now());
            socket
        })
        .collect();
    let mut further = Connection::new(connect(&folder)).unwrap();
    clients.accept(Instant::now());
    let told = next(&mut further).unwrap();
    assert_eq!(told, refused("limit of 512 clients reached".into()));
    assert!(matches!(next(&mut further), Err(ControlError::Ended)));
    // A process that another test is starting may still have a descriptor of it.
    all.pop().unwrap().shutdown(Shutdown::Both).unwrap();
    let gone = clients.clients[CLIENTS_MAX - 1].id;
    assert!(!clients.receive(gone));
    let _next = connect(&folder);
    clients.accept(Instant::now());
    assert_eq!(clients.clients.len(), CLIENTS_MAX);
}

#[test]
fn a_client_that_waits_for_the_guest_is_told_of_its_end() {
    let (_folder, mut clients, mut client, id) = one();
    clients.accepted(id);
    clients.fail(&refused("no answer".into()));
    assert_eq!(next(&mut client).unwrap(), Reply::Accepted);
    assert_eq!(next(&mut client).unwrap(), refused("no answer".into()));
    assert!(matches!(next(&mut client), Err(ControlError::Ended)));
}
