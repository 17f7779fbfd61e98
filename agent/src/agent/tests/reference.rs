//! API 4244's reference session, to the byte. The host writes as the original host did: a header, then its payload,
//! each followed by a wait for NEXT.

use super::*;

/// A step of the session.
enum Step<'a> {
    /// The host writes a command: code and payload. The agent takes header and payload, each with its NEXT.
    Says(u32, &'a str),
    /// These bytes come on the control channel.
    Hears(&'a [u8]),
    /// The host writes these bytes to the stream channel.
    Sends(&'a [u8]),
    /// These bytes come on the stream channel.
    Gets(&'a [u8]),
}

use Step::{Gets, Hears, Says, Sends};

const ACK: &[u8] = &[0, 0, 0, 9, 0, 0, 0, 8];

/// A host that compares bytes.
struct Wire {
    agent: Agent,
    control: OwnedFd,
    streams: OwnedFd,
    heard: Vec<u8>,
    got: Vec<u8>,
    turn: Turn,
}

impl Wire {
    fn turn(&mut self) {
        let turn = self.agent.run_once(Some(Duration::from_millis(200))).unwrap();
        if turn != Turn::Continue {
            self.turn = turn;
        }
        while sys::read_append(self.control.as_fd(), &mut self.heard, 4096).is_ok_and(|count| count > 0) {}
        while sys::read_append(self.streams.as_fd(), &mut self.got, 4096).is_ok_and(|count| count > 0) {}
    }

    fn until(&mut self, what: &str, done: impl Fn(&Wire) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !done(self) {
            assert!(Instant::now() < end, "{what}: heard {:?}, got {:?}", self.heard, self.got);
            self.turn();
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        assert_eq!(rustix::io::write(&self.control, bytes), Ok(bytes.len()));
        let next = [&[0, 0, 0, 14, 0, 0, 0, 12][..], &(bytes.len() as u32).to_be_bytes()].concat();
        self.hears(&next);
    }

    fn hears(&mut self, expected: &[u8]) {
        self.until("control", |wire| wire.heard.len() >= expected.len());
        assert_eq!(self.heard.drain(..expected.len()).as_slice(), expected);
    }

    fn play(&mut self, step: &Step<'_>) {
        match *step {
            Says(code, payload) => {
                let length = 8 + payload.len() as u32;
                self.write(&[code.to_be_bytes(), length.to_be_bytes()].concat());
                if !payload.is_empty() {
                    self.write(payload.as_bytes());
                }
            }
            Hears(bytes) => self.hears(bytes),
            Sends(bytes) => assert_eq!(rustix::io::write(&self.streams, bytes), Ok(bytes.len())),
            Gets(bytes) => {
                self.until("streams", |wire| wire.got.len() >= bytes.len());
                assert_eq!(self.got.drain(..bytes.len()).as_slice(), bytes);
            }
        }
    }
}

fn event(json: &str) -> Vec<u8> {
    [&[0, 0, 0, 23, 0, 0, 0, 8 + json.len() as u8][..], json.as_bytes()].concat()
}

#[test]
fn reference_session_has_the_bytes_of_api_4244() {
    let (control, agent_control) = pair();
    let (streams, agent_streams) = pair();
    let agent = Agent::new(agent_control, agent_streams, Setting::Host).unwrap();
    let (heard, got, turn) = (Vec::new(), Vec::new(), Turn::Continue);
    let mut wire = Wire { agent, control, streams, heard, got, turn };
    // READY's payload is the offer of the extension, which a host of API 4244 skips by its length.
    let offer = br#"{"api":4244,"extension":1,"window":524288}"#;
    let ready = [&[0, 0, 0, 8, 0, 0, 0, 8 + offer.len() as u8][..], offer].concat();
    let ended = event(r#"{"container":"c1","process":"init","event":"finished","status":0}"#);
    let exec_ended = event(r#"{"container":"c1","process":"e1","event":"finished","status":3}"#);
    let steps = [
        Hears(&ready),
        Says(0, ""),
        Hears(&[0, 0, 0, 9, 0, 0, 0, 12, 0, 0, 0x10, 0x94]),
        Says(1, r#"{"hostname":"h","dns":["1.1.1.1"],"shareDir":"share_dir"}"#),
        Hears(ACK),
        Says(
            20,
            r#"{"device":"eth0","newDeviceName":"eth0","ipAddresses":[{"ipAddress":"10.0.0.2","netMask":"24"}],
        "mtu":1500}"#,
        ),
        Hears(ACK),
        Says(21, r#"{"routes":[{"dest":"default","gateway":"10.0.0.1","device":"eth0"}]}"#),
        Hears(ACK),
        Says(
            17,
            r#"{"id":"c1","rootfs":"rootfs","image":"c1","process":{"id":"init","terminal":false,"stdio":1,"stderr":2,
        "args":["sh","-c","read line; echo $line $A >&2; cat"],"envs":[{"env":"A","value":"b"}],"workdir":"/"},
        "restartPolicy":"never","initialize":true,"readOnly":false}"#,
        ),
        Hears(ACK),
        Sends(b"\0\0\0\0\0\0\0\x01\0\0\0\x10one\n"),
        Gets(b"\0\0\0\0\0\0\0\x02\0\0\0\x12one b\n"),
        Says(
            6,
            r#"{"container":"c1","process":{"id":"e1","terminal":true,"stdio":3,
        "args":["sh","-c","tty >/dev/null && exit 3"],"workdir":"/"}}"#,
        ),
        Hears(ACK),
        Gets(b"\0\0\0\0\0\0\0\x03\0\0\0\x0c"),
        Hears(&exec_ended),
        Sends(b"\0\0\0\0\0\0\0\x01\0\0\0\x10two\n"),
        Gets(b"\0\0\0\0\0\0\0\x01\0\0\0\x10two\n"),
        Sends(b"\0\0\0\0\0\0\0\x01\0\0\0\x0c"),
        // One end frame for the whole process, on the stdio stream; none on the stderr stream.
        Gets(b"\0\0\0\0\0\0\0\x01\0\0\0\x0c"),
        Hears(&ended),
        Says(4, ""),
        Hears(ACK),
    ];
    steps.iter().for_each(|step| wire.play(step));
    wire.until("power off", |wire| wire.turn == Turn::PowerOff);
    assert!(wire.heard.is_empty() && wire.got.is_empty());
}
