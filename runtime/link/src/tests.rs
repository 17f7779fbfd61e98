use agent_proto::payload::FileCommand;
use proptest::prelude::*;

use super::*;

impl AgentLink {
    /// Queues WRITEFILE, whose data follow its JSON.
    pub(crate) fn send_file(
        &mut self,
        step: &'static str,
        command: &FileCommand,
        data: &[u8],
    ) -> Result<CommandId> {
        let payload = [&encode(command)?[..], data].concat();
        self.queue(Code::WriteFile, step, payload, Reader::Sender)
    }

    /// Whether a reply is outstanding.
    pub(crate) fn is_waiting(&self) -> bool {
        self.commands.iter().any(|command| command.reply.is_none())
    }
}

/// The agent's end of a channel, controlled by the test.
struct Agent {
    socket: UnixStream,
    codec: ControlCodec,
}

impl Agent {
    fn pair() -> (AgentLink, Agent) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (
            AgentLink::new(ours, Protocol::Extended).unwrap(),
            Agent { socket: theirs, codec: ControlCodec::new() },
        )
    }

    /// Returns a link and its agent after READY and EXTEND.
    fn extended() -> (AgentLink, Agent) {
        let (mut link, mut peer) = Agent::pair();
        peer.ready(EXTENSION_VERSION, STREAM_WINDOW);
        link.flush().unwrap();
        assert_eq!(peer.command().code, Code::Extend as u32);
        peer.say(Code::Ack, 0, b"");
        link.receive().unwrap();
        assert!(!link.is_waiting());
        (link, peer)
    }

    fn ready(&mut self, extension: u32, window: u32) {
        let payload = serde_json::to_vec(&Ready { api: API_VERSION, extension, window }).unwrap();
        let mut bytes = Vec::new();
        ControlFrame { code: Code::Ready as u32, id: 0, payload }.encode(false, &mut bytes);
        self.socket.write_all(&bytes).unwrap();
    }

    fn say(&mut self, code: Code, id: u32, payload: &[u8]) {
        let mut bytes = Vec::new();
        ControlFrame { code: code as u32, id, payload: payload.to_vec() }.encode(true, &mut bytes);
        self.socket.write_all(&bytes).unwrap();
    }

    /// Reads the next command. Like the agent, it switches to the extended form after EXTEND.
    fn command(&mut self) -> ControlFrame {
        loop {
            if let Some(frame) = self.codec.next().unwrap() {
                if frame.code == Code::Extend as u32 {
                    self.codec.set_extended(true);
                }
                return frame;
            }
            let mut buffer = [0; 4096];
            let count = self.socket.read(&mut buffer).unwrap();
            assert_ne!(count, 0, "the link is closed");
            self.codec.push(&buffer[..count]);
        }
    }
}

#[test]
fn commands_are_written_before_ready_and_their_replies_come_in_any_order() {
    let (mut link, mut peer) = Agent::pair();
    let pod = link.send(Code::StartPod, "start the pod", &"pod").unwrap();
    let container = link.send(Code::NewContainer, "start the container", &"container").unwrap();
    link.flush().unwrap();
    let commands = [peer.command(), peer.command(), peer.command()];
    assert_eq!(commands.each_ref().map(|frame| (frame.code, frame.id)), [(64, 0), (1, 1), (17, 2)]);
    assert_eq!(commands[1].payload, b"\"pod\"");

    assert!(link.ready().is_none());
    peer.ready(EXTENSION_VERSION, 4096);
    peer.say(Code::Ack, 0, b"");
    peer.say(Code::Ack, 2, b"second");
    peer.say(Code::Ack, 1, b"first");
    assert!(link.receive().unwrap());
    assert_eq!(link.ready().unwrap().window, 4096);
    assert_eq!(link.reply(pod).unwrap().unwrap(), b"first");
    assert_eq!(link.reply(container).unwrap().unwrap(), b"second");
    assert!(link.reply(container).is_none());
    assert!(!link.receive().unwrap());
}

#[test]
fn an_error_of_the_agent_has_its_code_and_a_printable_text() {
    let (mut link, mut peer) = Agent::extended();
    let id = link.send_bare(Code::Ping, "ping").unwrap();
    let reply =
        ErrorReply { code: ErrorCode::NotExecutableMissing, message: "exec \x1b[2Jx: not found".into() };
    peer.say(Code::Error, 1, &serde_json::to_vec(&reply).unwrap());
    link.receive().unwrap();
    let error = link.reply(id).unwrap().unwrap_err();
    assert_eq!(error.to_string(), "ping: exec \\u{1b}[2Jx: not found");
    assert!(matches!(error, LinkError::Refused { code: ErrorCode::NotExecutableMissing, .. }));
}

#[test]
fn events_are_queued_and_a_refused_notification_is_no_failure() {
    let (mut link, mut peer) = Agent::extended();
    link.notify(Code::KillContainer, "forward a signal", &"x").unwrap();
    let event = ProcessEvent { container: "c".into(), process: "init".into(), ..ProcessEvent::default() };
    peer.say(Code::ProcessAsyncEvent, 0, &serde_json::to_vec(&event).unwrap());
    peer.say(Code::Error, 1, br#"{"code":"notFound","message":"no such container"}"#);
    link.receive().unwrap();
    assert_eq!(link.event().unwrap(), event);
    assert!(link.event().is_none());
    assert!(!link.is_waiting());
}

#[test]
fn an_unusable_agent_is_refused_with_a_reason() {
    let fails = |peer: &mut Agent, link: &mut AgentLink, message: &str| {
        let error = link.receive().unwrap_err().to_string();
        assert_eq!(error, message);
        let _ = peer;
    };
    let needs = |offer: &str| {
        format!(
            "the agent offers {offer}, not API 4244 with extension 1 (with --agent api-4244 vmm runs an agent without \
             the extension, and omits features that need it)"
        )
    };
    let (mut link, mut peer) = Agent::pair();
    peer.socket.write_all(&[0, 0, 0, 8, 0, 0, 0, 8]).unwrap();
    fails(&mut peer, &mut link, &needs("API 4244 alone"));
    let (mut link, mut peer) = Agent::pair();
    peer.ready(0, 1);
    fails(&mut peer, &mut link, &needs("API 4244 with extension 0"));
    let (mut link, mut peer) = Agent::pair();
    peer.ready(1, STREAM_WINDOW + 1);
    fails(
        &mut peer,
        &mut link,
        "the agent's control channel: READY: window of 524289 bytes, not 1 to 524288",
    );
    let (mut link, mut peer) = Agent::pair();
    peer.socket.write_all(&[0, 0, 0, 9, 0, 0, 0, 8]).unwrap();
    fails(&mut peer, &mut link, "the agent's control channel: code 9 before READY");
    let (mut link, mut peer) = Agent::extended();
    peer.say(Code::Ack, 77, b"");
    fails(&mut peer, &mut link, "the agent's control channel: unexpected reply to command 77");
    let (mut link, mut peer) = Agent::extended();
    peer.say(Code::Ping, 0, b"");
    fails(&mut peer, &mut link, "the agent's control channel: code 12 is neither a reply nor an event");
    let (mut link, mut peer) = Agent::extended();
    peer.say(Code::ProcessAsyncEvent, 0, b"{");
    assert!(link.receive().unwrap_err().to_string().contains("malformed event"));
    drop(peer);
}

#[test]
fn a_refused_extension_and_a_closed_channel_end_the_link() {
    let (mut link, mut peer) = Agent::pair();
    peer.ready(EXTENSION_VERSION, 1);
    peer.say(Code::Error, 0, b"no");
    assert_eq!(link.receive().unwrap_err().to_string(), "agree on the protocol: no");
    let (mut link, peer) = Agent::extended();
    drop(peer);
    let error = link.receive().unwrap_err();
    assert!(matches!(error, LinkError::Channel(_)), "{error}");
    assert_eq!(error.to_string(), "read the agent's control channel");
}

#[test]
fn a_command_larger_than_the_socket_buffer_is_written_completely() {
    let (mut link, mut peer) = Agent::extended();
    let long = "x".repeat(3 << 20);
    link.send(Code::NewContainer, "start the container", &long).unwrap();
    link.flush().unwrap();
    assert_eq!(link.interest(), libc::POLLIN | libc::POLLOUT);
    peer.socket.set_nonblocking(true).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let frame = loop {
        link.receive().unwrap();
        let count = peer.socket.read(&mut buffer).unwrap();
        peer.codec.push(&buffer[..count]);
        if let Some(frame) = peer.codec.next().unwrap() {
            break frame;
        }
    };
    assert_eq!(frame.payload.len(), long.len() + 2);
    assert_eq!(link.interest(), libc::POLLIN);
}

#[test]
fn commands_without_replies_and_events_without_readers_are_bounded() {
    let (mut link, mut peer) = Agent::extended();
    for _ in 0..OUTSTANDING_MAX {
        link.send_bare(Code::Ping, "ping").unwrap();
    }
    assert!(matches!(link.send_bare(Code::Ping, "ping"), Err(LinkError::Protocol(_))));
    let event = serde_json::to_vec(&ProcessEvent::default()).unwrap();
    let result = (0..=EVENTS_MAX).try_for_each(|_| {
        peer.say(Code::ProcessAsyncEvent, 0, &event);
        link.receive().map(drop)
    });
    assert!(matches!(result, Err(LinkError::Protocol(_))));
}

/// Returns the step that has been outstanding for longest after one second in which the agent does what `peer` does.
fn owed_after(link: &mut AgentLink, second: impl FnOnce()) -> Option<(&'static str, u64)> {
    second();
    link.receive().unwrap();
    let owed = link.owed().map(|(step, waited)| (step, waited.as_secs()));
    link.pass(Duration::from_secs(1));
    owed
}

#[test]
fn a_partial_frame_does_not_reset_the_waiting_time() {
    let (mut link, mut peer) = Agent::extended();
    link.send_bare(Code::Ping, "ping").unwrap();
    let mut frame = Vec::new();
    ControlFrame { code: Code::Ack as u32, id: 1, payload: vec![0; 64] }.encode(true, &mut frame);
    for (second, byte) in frame[..frame.len() - 1].iter().enumerate() {
        let owed = owed_after(&mut link, || peer.socket.write_all(&[*byte]).unwrap());
        assert_eq!(owed, Some(("ping", second as u64)));
    }
    assert_eq!(owed_after(&mut link, || peer.socket.write_all(&[0]).unwrap()), None);
}

#[test]
fn a_reply_resets_the_waiting_time_of_later_commands_only() {
    let (mut link, mut peer) = Agent::extended();
    for step in ["first", "second", "third"] {
        link.send_bare(Code::Ping, step).unwrap();
    }
    link.pass(Duration::from_secs(5));
    assert_eq!(owed_after(&mut link, || peer.say(Code::Ack, 2, b"")), Some(("first", 5)));
    // The waiting time of the third command was reset, that of the first was not.
    assert_eq!(owed_after(&mut link, || peer.say(Code::Ack, 1, b"")), Some(("third", 0)));
    let event = serde_json::to_vec(&ProcessEvent::default()).unwrap();
    assert_eq!(owed_after(&mut link, || peer.say(Code::ProcessAsyncEvent, 0, &event)), Some(("third", 1)));
}

#[test]
fn an_excused_command_does_not_count_as_outstanding() {
    let (mut link, _peer) = Agent::extended();
    let id = link.send_bare(Code::Ping, "ping").unwrap();
    link.excuse(id, true);
    link.pass(Duration::from_secs(5));
    assert_eq!(link.owed(), None);
    link.excuse(id, false);
    assert_eq!(link.owed(), Some(("ping", Duration::ZERO)));
}

#[test]
fn before_ready_the_outstanding_step_is_the_start_of_the_agent() {
    let (mut link, mut peer) = Agent::pair();
    link.send(Code::StartPod, "start the pod", &"pod").unwrap();
    link.pass(Duration::from_secs(5));
    assert_eq!(link.owed(), Some(("wait for the agent", Duration::from_secs(5))));
    peer.ready(EXTENSION_VERSION, STREAM_WINDOW);
    peer.say(Code::Ack, 0, b"");
    link.receive().unwrap();
    link.send(Code::NewContainer, "start the container", &"container").unwrap();
    assert_eq!(link.owed(), Some(("start the pod", Duration::ZERO)));
}

#[test]
fn events_of_unknown_processes_are_limited() {
    let (mut link, mut peer) = Agent::extended();
    let event = ProcessEvent { process: "x\u{202e}\n".into(), ..ProcessEvent::default() };
    let flood = |link: &mut AgentLink| (0..=UNDUE_MAX).try_for_each(|_| link.ignore(&event));
    assert!(flood(&mut link).unwrap_err().to_string().contains("events of processes that are not running"));
    // Expected frames in between reset the count.
    link.send_bare(Code::Ping, "ping").unwrap();
    peer.say(Code::Ack, 1, b"");
    link.receive().unwrap();
    link.ignore(&event).unwrap();
}

#[test]
fn a_flood_of_bytes_does_not_keep_receive_busy() {
    let (mut link, mut peer) = Agent::extended();
    let writer = std::thread::spawn(move || {
        // The beginning of one frame that never ends.
        peer.socket.write_all(&[0, 0, 0, 9, 0, 0x3f, 0, 0]).unwrap();
        peer.socket.write_all(&vec![0; READS_MAX * READ_SIZE * 3]).unwrap();
        peer
    });
    while !writer.is_finished() {
        link.receive().unwrap();
    }
    let _peer = writer.join().unwrap();
    while link.receive().unwrap() {}
    assert!(link.owed().is_none());
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..2048),
        frames in prop::collection::vec((0u32..30, 0u32..4, ".{0,40}"), 0..20),
        ready: bool,
    ) {
        let (mut link, mut peer) = if ready { Agent::extended() } else { Agent::pair() };
        link.send_bare(Code::Ping, "ping").unwrap();
        for (code, id, text) in frames {
            let mut out = Vec::new();
            ControlFrame { code, id, payload: text.into_bytes() }.encode(ready, &mut out);
            peer.socket.write_all(&out).unwrap();
        }
        peer.socket.write_all(&bytes).unwrap();
        let _ = link.receive();
        while let Some(event) = link.event() {
            drop(event);
        }
    }
}

#[test]
fn a_machine_that_continues_is_told_time_and_entropy_before_all_else() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut peer = Agent { socket: theirs, codec: ControlCodec::new() };
    let mut link = AgentLink::revived(ours, [7; ENTROPY_LEN], || 1234).unwrap();
    assert_eq!(link.ready().map(|ready| ready.window), Some(STREAM_WINDOW));
    let pod = link.send(Code::StartPod, "start the pod", &"pod").unwrap();
    link.flush().unwrap();
    let commands = [peer.command(), peer.command(), peer.command()];
    assert_eq!(commands.each_ref().map(|frame| frame.code), [64, 73, 1]);
    assert_eq!(commands[1].payload, Revival { realtime: 1234, entropy: [7; ENTROPY_LEN] }.encode());
    for frame in &commands {
        peer.say(Code::Ack, frame.id, b"");
    }
    link.receive().unwrap();
    assert_eq!(link.reply(pod).unwrap().unwrap(), b"");
    assert_eq!(link.outstanding(), 0);
}

#[test]
fn a_machine_that_keeps_the_random_numbers_of_others_is_refused() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut peer = Agent { socket: theirs, codec: ControlCodec::new() };
    let mut link = AgentLink::revived(ours, [7; ENTROPY_LEN], || 1234).unwrap();
    link.flush().unwrap();
    let [extend, revive] = [peer.command(), peer.command()];
    peer.say(Code::Ack, extend.id, b"");
    peer.say(Code::Error, revive.id, br#"{"code":"failed","message":"reseed"}"#);
    let error = link.receive().unwrap_err().to_string();
    assert!(error.starts_with("make the machine one of its own: "), "{error}");
}

#[test]
fn nothing_is_written_to_a_machine_that_is_to_be_saved() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut peer = Agent { socket: theirs, codec: ControlCodec::new() };
    let mut link = AgentLink::silent(ours).unwrap();
    link.flush().unwrap();
    peer.ready(EXTENSION_VERSION, STREAM_WINDOW);
    link.receive().unwrap();
    assert!(link.ready().is_some() && !link.is_waiting());
    peer.socket.set_nonblocking(true).unwrap();
    assert_eq!(peer.socket.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_channel_continues_in_the_middle_of_a_frame_with_the_next_number() {
    let (mut link, mut peer) = Agent::extended();
    let pause = link.send_bare(Code::Pause, "pause").unwrap();
    assert!(link.save().is_err(), "a command is under way");
    link.flush().unwrap();
    let id = peer.command().id;
    peer.say(Code::Ack, id, b"");
    let mut event = Vec::new();
    let payload = br#"{"container":"c","process":"init","event":"finished","status":7}"#.to_vec();
    ControlFrame { code: Code::ProcessAsyncEvent as u32, id: 0, payload }.encode(true, &mut event);
    peer.socket.write_all(&event[..9]).unwrap();
    link.receive().unwrap();
    link.reply(pause).unwrap().unwrap();
    let state = link.save().unwrap();

    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut link = AgentLink::continued(ours, &state, [7; ENTROPY_LEN], || 5).unwrap();
    peer.socket = theirs;
    let resume = link.send_bare(Code::Resume, "resume").unwrap();
    link.flush().unwrap();
    let revive = peer.command();
    assert_eq!((revive.code, revive.id), (Code::Revive as u32, id + 1));
    assert_eq!(Revival::decode(&revive.payload), Some(Revival { realtime: 5, entropy: [7; ENTROPY_LEN] }));
    assert_eq!(peer.command().id, id + 2);
    peer.socket.write_all(&event[9..]).unwrap();
    peer.say(Code::Ack, id + 1, b"");
    peer.say(Code::Ack, id + 2, b"");
    link.receive().unwrap();
    assert_eq!(link.event().unwrap().status, 7);
    link.reply(resume).unwrap().unwrap();
}

#[test]
fn a_damaged_state_of_the_channel_is_refused() {
    let (link, _peer) = Agent::extended();
    let state = link.save().unwrap();
    let continued = |state: &[u8]| {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        AgentLink::continued(ours, state, [0; ENTROPY_LEN], || 0).map(drop)
    };
    continued(&state).unwrap();
    assert!((0..state.len()).all(|len| continued(&state[..len]).is_err()));
    assert!(continued(&[&[0; 4], &state[4..]].concat()).is_err(), "number 0");
    assert!(continued(&[&state[..4], &[255; 4], &state[8..]].concat()).is_err(), "too long a window");
}
