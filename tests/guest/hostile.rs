//! A hostile agent: PID 1 of the guest, with the real agent's ports.
//!
//! `guest hostile SCENARIO` plays a scenario and then stays silent, so that the host ends the run.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};

use agent_proto::command::{
    API_VERSION, CONTROL_PORT, Code, EXTENSION_VERSION, STREAM_FRAME_MAX, STREAM_HEADER, STREAM_PORT,
    STREAM_WINDOW,
};
use agent_proto::control::{ControlCodec, ControlFrame};
use agent_proto::payload::{Container, Exit, ProcessEvent, Ready};
use agent_proto::stream::encode_header;
use rustix::mount::{MountFlags, mount};

/// Name of the init process.
const PROCESS: &str = "init";
/// Stream of the init process's standard output.
const STDOUT: u64 = 1;

/// Plays `scenario`, and then stays silent.
pub fn run(scenario: &str) -> ! {
    for (kind, target) in [("devtmpfs", "/dev"), ("sysfs", "/sys")] {
        fs::create_dir_all(target).expect("create a mount point");
        // The kernel may have mounted it already.
        let _ = mount(kind, target, kind, MountFlags::empty(), None);
    }
    let mut peer =
        Peer { control: port(CONTROL_PORT), streams: port(STREAM_PORT), codec: ControlCodec::new() };
    peer.play(scenario);
    loop {
        rustix::event::pause();
    }
}

/// Opens the port called `name` when it exists.
fn port(name: &str) -> File {
    loop {
        for number in 1..16 {
            let path = format!("/sys/class/virtio-ports/vport0p{number}/name");
            if fs::read_to_string(path).is_ok_and(|found| found.trim_end() == name) {
                let device = format!("/dev/vport0p{number}");
                return OpenOptions::new().read(true).write(true).open(device).expect("open the port");
            }
        }
        std::thread::yield_now();
    }
}

struct Peer {
    control: File,
    streams: File,
    codec: ControlCodec,
}

impl Peer {
    fn play(&mut self, scenario: &str) {
        let mut noise = Noise::new();
        match scenario {
            "noise" => self.send(&noise.bytes(64 << 10)),
            "noise-after-ready" => {
                self.ready();
                self.send(&noise.bytes(64 << 10));
            }
            "length" => {
                self.ready();
                self.send(&[0, 0, 0, 9, 0xff, 0xff, 0xff, 0xff]);
            }
            "order" => {
                self.ready();
                self.frame(Code::Ack, 4711, b"");
            }
            "half-a-frame" => {
                self.ready();
                self.send(&[0, 0, 0, 9, 0, 1]);
            }
            "flood" => {
                self.ready();
                let event = event("nobody", Exit::default());
                loop {
                    self.frame(Code::ProcessAsyncEvent, 0, &event);
                }
            }
            "silent-at-pod" => {
                self.obey_before(Code::StartPod);
                self.ignore();
            }
            "silent-at-start" => {
                self.obey_before(Code::NewContainer);
                self.ignore();
            }
            "trickle-at-start" => {
                self.obey_before(Code::NewContainer);
                self.trickle();
            }
            // Not hostile: the bench of round trips compares it with the agent.
            "echo" => {
                let mut buffer = [0; 4096];
                loop {
                    let count = self.streams.read(&mut buffer).expect("read the stream port");
                    self.streams.write_all(&buffer[..count]).expect("write to the stream port");
                }
            }
            later => {
                let container = self.obey();
                self.play_later(later, &container);
            }
        }
    }

    /// Plays a scenario that begins after the reply that the container runs.
    fn play_later(&mut self, scenario: &str, container: &str) {
        match scenario {
            // It answers PAUSE, for tests of a paused container.
            "silent" => loop {
                let frame = self.next();
                if frame.code == Code::Pause as u32 {
                    self.frame(Code::Ack, frame.id, b"");
                }
            },
            "trickle" => {
                self.trickle();
            }
            // It acknowledges every command, and no process ends.
            "acks" => loop {
                let frame = self.next();
                self.frame(Code::Ack, frame.id, b"");
            },
            "flood-later" => {
                let event = event("nobody", Exit::default());
                loop {
                    self.frame(Code::ProcessAsyncEvent, 0, &event);
                }
            }
            "stream-noise" => {
                let bytes = Noise::new().bytes(1 << 20);
                self.streams.write_all(&bytes).expect("write to the stream port");
            }
            "endless-output" => {
                let data = vec![b'x'; STREAM_FRAME_MAX - STREAM_HEADER];
                loop {
                    self.streams.write_all(&encode_header(STDOUT, data.len())).expect("write a header");
                    self.streams.write_all(&data).expect("write to the stream port");
                }
            }
            "owed-output" => {
                let exit = Exit { code: Some(0), stdout_bytes: u64::MAX, ..Exit::default() };
                self.frame(Code::ProcessAsyncEvent, 0, &event(container, exit));
            }
            "no-farewell" => {
                self.frame(
                    Code::ProcessAsyncEvent,
                    0,
                    &event(container, Exit { code: Some(3), ..Exit::default() }),
                );
                while self.next().code != Code::DestroyPod as u32 {}
                let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
            }
            other => panic!("no scenario {other:?}"),
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.control.write_all(bytes).expect("write to the control port");
    }

    fn ready(&mut self) {
        let offer = Ready { api: API_VERSION, extension: EXTENSION_VERSION, window: STREAM_WINDOW };
        self.frame(Code::Ready, 0, &serde_json::to_vec(&offer).expect("print the offer"));
        self.codec.set_extended(true);
    }

    fn frame(&mut self, code: Code, id: u32, payload: &[u8]) {
        let mut bytes = Vec::new();
        let frame = ControlFrame { code: code as u32, id, payload: payload.to_vec() };
        frame.encode(self.codec.is_extended(), &mut bytes);
        self.send(&bytes);
    }

    /// Acknowledges every command up to NEWCONTAINER. Returns the container's name.
    fn obey(&mut self) -> String {
        let frame = self.obey_before(Code::NewContainer);
        self.frame(Code::Ack, frame.id, b"");
        let spec: Container = serde_json::from_slice(&frame.payload).expect("parse the container");
        spec.id
    }

    /// Acknowledges every command before `last`, which it returns.
    fn obey_before(&mut self, last: Code) -> ControlFrame {
        self.ready();
        // The host's first frame, EXTEND, is in the base form.
        self.codec.set_extended(false);
        loop {
            let frame = self.next();
            self.codec.set_extended(true);
            if frame.code == last as u32 {
                return frame;
            }
            self.frame(Code::Ack, frame.id, b"");
        }
    }

    /// Reads everything and answers nothing.
    fn ignore(&mut self) -> ! {
        let mut buffer = [0; 4096];
        loop {
            let _ = self.control.read(&mut buffer).expect("read the control port");
        }
    }

    /// Sends one byte per second of a frame, and never the whole frame.
    fn trickle(&mut self) -> ! {
        let mut frame = vec![0; 1 << 16];
        frame[..8].copy_from_slice(&[0, 0, 0, Code::Ack as u8, 0, 1, 0, 0]);
        for byte in frame {
            self.send(&[byte]);
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
        self.ignore()
    }

    fn next(&mut self) -> ControlFrame {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.codec.next().expect("the host sends frames") {
                return frame;
            }
            let count = self.control.read(&mut buffer).expect("read the control port");
            self.codec.push(&buffer[..count]);
        }
    }
}

fn event(container: &str, exit: Exit) -> Vec<u8> {
    let event = ProcessEvent {
        container: container.to_owned(),
        process: PROCESS.to_owned(),
        event: "finished".to_owned(),
        status: 0,
        exit: Some(exit),
    };
    serde_json::to_vec(&event).expect("print an event")
}

/// Pseudo-random bytes (xorshift), the same in every run.
struct Noise(u64);

impl Noise {
    fn new() -> Noise {
        Noise(0x2545_f491_4f6c_dd1d)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut next = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 as u8
        };
        (0..len).map(|_| next()).collect()
    }
}
