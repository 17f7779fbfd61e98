use std::fs::File;
use std::io::{Read, Write};

use proptest::prelude::*;

use super::*;

/// Returns a pod's end and a client's end of a connection.
fn pair() -> (Connection, Connection) {
    let (pod, client) = UnixStream::pair().unwrap();
    let patience = Duration::from_millis(50);
    (Connection::new(pod).unwrap(), Connection::to("p", patience, client).unwrap())
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
    let exec = ExecRequest { container: "a".into(), user: "ann".into(), ..ExecRequest::default() };
    client.send(&Request::Exec(Box::new(exec.clone()))).unwrap();
    client.flush_with(&[writer.as_fd(), writer.as_fd(), writer.as_fd()]).unwrap();
    client.send(&Request::Signal(15)).unwrap();
    client.flush().unwrap();
    let (request, fds) = take(&mut pod).unwrap();
    assert_eq!(request, Request::Exec(Box::new(exec)));
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
fn an_answer_arrives_and_end_of_file_is_an_error() {
    let (mut pod, mut client) = pair();
    let reply = Reply::Failed { code: 127, message: "no".into() };
    pod.send(&reply).unwrap();
    pod.send(&Reply::Exited(3)).unwrap();
    pod.flush().unwrap();
    assert_eq!(client.ask(&Request::Stats, &[]).unwrap(), reply);
    assert_eq!(client.ask(&Request::Stats, &[]).unwrap(), Reply::Exited(3));
    drop(pod);
    assert!(matches!(client.ask(&Request::Stats, &[]), Err(ControlError::Ended)));
}

#[test]
fn the_wait_for_a_silent_pod_is_limited() {
    let (_pod, mut client) = pair();
    let kill = Request::Kill { container: "c".into(), signal: 15, all: false };
    let error = client.ask(&kill, &[]).unwrap_err();
    assert_eq!(error.to_string(), "kill p: no answer from its machine within 0 s");
    // A pod that does not even read.
    let add = Request::Add { base: String::new(), container: serde_json::json!("x".repeat(MESSAGE_MAX / 2)) };
    assert!(matches!(client.ask(&add, &[]), Err(ControlError::Silent { command: "add to", .. })));
    let error = client.wait_for_end("stop", Duration::from_millis(1)).unwrap_err();
    assert!(matches!(error, ControlError::Silent { command: "stop", .. }));
}

#[test]
fn an_answer_that_was_accepted_may_take_as_long_as_the_guest() {
    let (mut pod, mut client) = pair();
    pod.send(&Reply::Accepted).unwrap();
    pod.flush().unwrap();
    let longest = deadlines::AGENT * deadlines::STARVED + deadlines::ANSWER;
    assert_eq!(Request::Stats.answer_within(deadlines::AGENT), Some(longest));
    let paused = ExecRequest { ignore_paused: true, ..ExecRequest::default() };
    assert_eq!(Request::Exec(Box::new(paused)).answer_within(deadlines::AGENT), None);
    let answer = std::thread::spawn(move || {
        while take(&mut pod).is_none() {}
        pod.send(&Reply::Done).unwrap();
        pod.flush().unwrap();
        pod
    });
    assert_eq!(client.ask(&Request::Stats, &[]).unwrap(), Reply::Done);
    answer.join().unwrap();
}

#[test]
fn requests_are_limited() {
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
    for _ in 0..=sys::FDS_MAX / 2 {
        sys::send_with_fds(client.fd(), b"\0", &[null.as_fd(), null.as_fd()]).unwrap();
        last = last.and_then(|_| pod.receive());
    }
    assert!(matches!(last, Err(ControlError::Descriptors)));
}

#[test]
fn answers_to_a_client_that_does_not_read_are_limited() {
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
