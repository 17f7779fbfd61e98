//! The host's end of the control channel, with an agent that sends arbitrary bytes at any time.
//!
//! The first byte of each step selects what happens: bytes of the agent arrive, or the host sends a command, or it
//! takes replies and events. Half of the inputs begin with a valid READY, so that the code behind it is reached. The
//! input also selects the protocol.
#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use agent_proto::command::{Code, Protocol};
use agent_proto::control::ControlFrame;
use libfuzzer_sys::fuzz_target;
use link::AgentLink;

const READY: &[u8] = br#"{"api":4244,"extension":1,"window":262144}"#;
/// Reply to GETVERSION.
const VERSION: [u8; 4] = 4244u32.to_be_bytes();

fuzz_target!(|data: &[u8]| {
    let Some((&seed, mut data)) = data.split_first() else { return };
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let protocol = [Protocol::Extended, Protocol::Negotiated, Protocol::Api4244][usize::from(seed >> 1) % 3];
    let mut link = AgentLink::new(ours, protocol).unwrap();
    let base = protocol == Protocol::Api4244;
    let send = |mut to: &UnixStream, code: Code, payload: &[u8]| {
        let mut frame = Vec::new();
        ControlFrame { code: code as u32, id: 0, payload: payload.to_vec() }.encode(false, &mut frame);
        to.write_all(&frame).is_ok()
    };
    if seed & 1 == 1 {
        send(&theirs, Code::Ready, if base { &[] } else { READY });
        link.receive().unwrap();
        if base {
            send(&theirs, Code::Ack, &VERSION);
            link.receive().unwrap();
        }
    }
    let mut asked = Vec::new();
    let mut sink = [0; 4096];
    while let Some((&what, rest)) = data.split_first() {
        data = rest;
        match what & 3 {
            0 | 1 => {
                let (bytes, rest) = data.split_at(data.len().min(usize::from(what >> 2)));
                data = rest;
                if theirs.write_all(bytes).is_err() || link.receive().is_err() {
                    return;
                }
            }
            2 => match link.send_bare(Code::Ping, "ask") {
                Ok(id) => asked.push(id),
                Err(_) => return,
            },
            _ => {
                while link.event().is_some() {}
                asked.retain(|id| link.reply(*id).is_none());
            }
        }
        if link.flush().is_err() {
            return;
        }
        let mut taken = 0;
        while let Ok(count @ 1..) = theirs.read(&mut sink) {
            taken += count as u32;
        }
        // An agent of API 4244 reports the bytes that it has read, so that the host sends more.
        if base && taken > 0 && what & 4 == 0 && !send(&theirs, Code::Next, &taken.to_be_bytes()) {
            return;
        }
    }
    assert!(link.outstanding() <= asked.len() + 1, "more replies are outstanding than commands were sent");
});
