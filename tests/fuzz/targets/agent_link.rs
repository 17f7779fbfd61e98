//! The host's end of the control channel against an agent that says anything at any time.
//!
//! The first byte of each step says what happens: the agent's bytes come, or the host asks, looks for replies, or for
//! events. Every second input begins with a proper READY, so that what is behind it is reached.
#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use agent_proto::command::Code;
use agent_proto::control::ControlFrame;
use libfuzzer_sys::fuzz_target;
use runtime::link::AgentLink;

const READY: &[u8] = br#"{"api":4244,"extension":1,"window":262144}"#;

fuzz_target!(|data: &[u8]| {
    let Some((&seed, mut data)) = data.split_first() else { return };
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut link = AgentLink::new(ours).unwrap();
    if seed & 1 == 1 {
        let mut ready = Vec::new();
        ControlFrame { code: Code::Ready as u32, id: 0, payload: READY.to_vec() }.encode(false, &mut ready);
        theirs.write_all(&ready).unwrap();
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
        while theirs.read(&mut sink).is_ok_and(|count| count > 0) {}
    }
    assert!(link.outstanding() <= asked.len() + 1, "more replies are waited for than commands were sent");
});
