//! The keeper against the agent's own code over a socket pair. The agent reads this host's clock and sets none.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use agent::agent::{Agent, Setting};
use agent_proto::command::Protocol;
use agent_proto::control::{ControlCodec, ControlFrame};
use agent_proto::payload::clock::ClockAdjustment;
use agent_proto::payload::{ErrorReply, Ready};

use super::*;

/// Deadline of each step.
const PATIENCE: Duration = Duration::from_secs(20);

struct Rig {
    agent: Agent,
    link: AgentLink,
    clock: GuestClock,
    _streams: UnixStream,
}

impl Rig {
    fn new() -> Rig {
        let (control, agent_control) = UnixStream::pair().unwrap();
        let (streams, agent_streams) = UnixStream::pair().unwrap();
        for socket in [&agent_control, &agent_streams] {
            socket.set_nonblocking(true).unwrap();
        }
        let agent = Agent::new(agent_control.into(), agent_streams.into(), Setting::Host).unwrap();
        let link = AgentLink::new(control, Protocol::Extended).unwrap();
        let clock = GuestClock { due: Some(Instant::now()), kept: None };
        Rig { agent, link, clock, _streams: streams }
    }

    fn discipline(&mut self) -> &mut Discipline {
        &mut self.clock.kept.as_mut().unwrap().discipline
    }

    fn until(&mut self, mut done: impl FnMut(&mut Rig) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "no progress");
            self.agent.run_once(Some(Duration::ZERO)).unwrap();
            self.link.receive().unwrap();
            self.clock.step(&mut self.link, false).unwrap();
        }
    }
}

/// Whether the answer of the agent arrived and no question is open.
fn is_quiet(rig: &mut Rig) -> bool {
    rig.clock.kept.as_ref().is_some_and(|kept| kept.asked.is_none())
}

#[test]
fn nothing_is_opened_or_asked_before_the_first_check() {
    let mut rig = Rig::new();
    let now = Instant::now();
    rig.clock = GuestClock::new(&rig.link, now);
    assert_eq!(rig.clock.due(), Some(now + FIRST));
    rig.clock.step(&mut rig.link, false).unwrap();
    assert!(rig.clock.kept.is_none() && rig.clock.fd().is_none());
    // EXTEND alone.
    assert_eq!(rig.link.outstanding(), 1);
}

#[test]
fn the_agent_s_clock_is_measured_once_and_its_answer_is_owed_by_nobody() {
    let mut rig = Rig::new();
    rig.clock.step(&mut rig.link, false).unwrap();
    assert!(rig.clock.fd().is_some());
    rig.link.pass(Duration::from_secs(100));
    // Only EXTEND is owed.
    assert_eq!(rig.link.owed().map(|(step, _)| step), Some("wait for the agent"));
    rig.until(is_quiet);
    assert_eq!(rig.link.owed(), None);
    let now = clock::sample();
    assert_eq!(rig.discipline().check(now, false), None);
}

#[test]
fn an_adjustment_is_answered_with_a_reading() {
    let mut rig = Rig::new();
    rig.until(is_quiet);
    // The agent sets no clock here, so this changes nothing.
    let change = ClockAdjustment { tick: 10_000, frequency: 1, step: -600_000_000 };
    rig.clock.kept.as_mut().unwrap().send(&mut rig.link, Some(Order::Adjust(change))).unwrap();
    rig.until(is_quiet);
    assert!(rig.clock.due().is_some());
}

#[test]
fn an_agent_without_the_commands_or_with_malformed_readings_is_not_asked_again() {
    let unsupported = ErrorReply { code: ErrorCode::Unsupported, message: "no such command: 71".into() };
    let replies = [
        (Code::Error, serde_json::to_vec(&unsupported).unwrap()),
        (Code::Ack, Vec::new()),
        (Code::Ack, br#"{"realtime":-1}"#.to_vec()),
        (Code::Ack, br#"{"realtime":18446744073709551615}"#.to_vec()),
    ];
    for (code, payload) in replies {
        let (control, mut peer) = UnixStream::pair().unwrap();
        let mut link = AgentLink::new(control, Protocol::Extended).unwrap();
        let mut clock = GuestClock { due: Some(Instant::now()), kept: None };
        clock.step(&mut link, false).unwrap();
        let mut codec = ControlCodec::new();
        let mut frames = Vec::new();
        while frames.len() < 2 {
            let mut bytes = [0; 256];
            let count = peer.read(&mut bytes).unwrap();
            codec.push(&bytes[..count]);
            while let Some(frame) = codec.next().unwrap() {
                // EXTEND is the last frame of the base form.
                codec.set_extended(true);
                frames.push(frame);
            }
        }
        let ready = Ready { api: 4244, extension: 1, window: 1024 };
        let mut out = Vec::new();
        let frame =
            ControlFrame { code: Code::Ready as u32, id: 0, payload: serde_json::to_vec(&ready).unwrap() };
        frame.encode(false, &mut out);
        ControlFrame { code: code as u32, id: frames[1].id, payload }.encode(true, &mut out);
        peer.write_all(&out).unwrap();
        link.receive().unwrap();
        clock.step(&mut link, true).unwrap();
        assert!(clock.due().is_none() && clock.fd().is_none());
        clock.step(&mut link, true).unwrap();
        // EXTEND's reply was never given here; nothing else is open.
        assert_eq!(link.outstanding(), 1);
    }
}

#[test]
fn an_agent_of_api_4244_is_not_asked() {
    let (control, _peer) = UnixStream::pair().unwrap();
    let link = AgentLink::new(control, Protocol::Api4244).unwrap();
    assert_eq!(GuestClock::new(&link, Instant::now()).due(), None);
}
