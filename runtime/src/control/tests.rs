use std::fs::File;
use std::io::Read;

use proptest::prelude::*;

use super::*;

/// A pod's end and a client's.
fn pair() -> (Connection, Connection) {
    let (pod, client) = UnixStream::pair().unwrap();
    (Connection::new(pod, false).unwrap(), Connection::new(client, true).unwrap())
}

fn take(pod: &mut Connection) -> Option<(Request, Vec<OwnedFd>)> {
    while pod.receive().unwrap() {
        if let Some(found) = pod.take().unwrap() {
            return Some(found);
        }
        if !sys::is_ready(pod.fd(), libc::POLLIN) {
            return None;
        }
    }
    None
}

#[test]
fn a_request_comes_with_its_descriptors() {
    let (mut pod, mut client) = pair();
    let (mut reader, writer) = io::pipe().unwrap();
    let exec = ExecRequest { container: "a".into(), args: vec!["true".into()], ..ExecRequest::default() };
    client.send(&Request::Exec(exec.clone())).unwrap();
    client.flush_with(&[writer.as_fd(), writer.as_fd(), writer.as_fd()]).unwrap();
    client.send(&Request::Signal(15)).unwrap();
    client.flush().unwrap();
    let (request, fds) = take(&mut pod).unwrap();
    assert_eq!(request, Request::Exec(exec));
    assert_eq!(fds.len(), 3);
    drop(writer);
    for fd in fds {
        File::from(fd).write_all(b"x").unwrap();
    }
    let mut all = String::new();
    reader.read_to_string(&mut all).unwrap();
    assert_eq!(all, "xxx");
    let (signal, fds) = take(&mut pod).unwrap();
    assert_eq!((signal, fds.len()), (Request::Signal(15), 0));
}

#[test]
fn an_answer_comes_back_and_an_end_is_no_answer() {
    let (mut pod, mut client) = pair();
    let reply = Reply::Failed { code: 127, message: "no".into() };
    pod.send(&reply).unwrap();
    pod.send(&Reply::Exited(3)).unwrap();
    pod.flush().unwrap();
    assert_eq!(client.ask(&Request::Status, &[]).unwrap(), reply);
    assert_eq!(client.wait().unwrap(), Reply::Exited(3));
    drop(pod);
    assert!(matches!(client.wait(), Err(ControlError::Ended)));
}

#[test]
fn a_request_has_its_limits() {
    let (mut pod, client) = pair();
    (&client.socket).write_all(&(MESSAGE_MAX as u32 + 1).to_be_bytes()).unwrap();
    assert!(pod.receive().unwrap());
    assert!(matches!(pod.take::<Request>(), Err(ControlError::TooLong(_))));

    let (mut pod, client) = pair();
    (&client.socket).write_all(b"\0\0\0\x02{}").unwrap();
    assert!(pod.receive().unwrap());
    assert!(matches!(pod.take::<Request>(), Err(ControlError::Parse(_))));

    let (mut pod, client) = pair();
    let null = File::open("/dev/null").unwrap();
    let mut last = Ok(true);
    for _ in 0..3 {
        sys::send_with_fds(client.fd(), b"\0", &[null.as_fd(), null.as_fd()]).unwrap();
        last = last.and_then(|_| pod.receive());
    }
    assert!(matches!(last, Err(ControlError::Descriptors)));
}

#[test]
fn a_client_that_does_not_read_is_not_answered_for_ever() {
    let (mut pod, _client) = pair();
    let long = Reply::Failed { code: 1, message: "x".repeat(1 << 20) };
    let result = (0..100).try_for_each(|_| {
        pod.send(&long)?;
        pod.flush()
    });
    assert!(matches!(result, Err(ControlError::Stalled)));
    assert!(pod.outgoing.len() <= OUTGOING_MAX);
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let (mut pod, client) = pair();
        (&client.socket).write_all(&bytes).unwrap();
        drop(client);
        while pod.receive().unwrap() {
            while let Ok(Some(_)) = pod.take::<Request>() {}
        }
    }
}
