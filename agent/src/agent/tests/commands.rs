//! The commands of API 4244 except those that start and end processes, in both forms, and their errors.

use std::path::PathBuf;

use agent_proto::payload::{FileCommand, Interface, IpAddress, Resolver, Route, Routes};

use super::*;
use crate::files::READ_MAX;

const ACK: u32 = Code::Ack as u32;
const ERROR: u32 = Code::Error as u32;

/// A temporary directory, which is removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("agent-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().into()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A host with a container `c1` that waits for the end of its input.
fn with_container(extended: bool) -> Host {
    let mut host = if extended { Host::extended() } else { Host::base() };
    if !extended {
        assert_eq!(call(&mut host, Code::StartPod, b"{}"), Ok(vec![]));
    }
    let spec = serde_json::to_vec(&container("exec cat")).unwrap();
    assert_eq!(call(&mut host, Code::NewContainer, &spec), Ok(vec![]));
    host
}

/// Sends a command and returns its reply in either form.
fn call(host: &mut Host, code: Code, payload: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
    let id = host.send_raw(code as u32, payload.to_vec());
    host.reply(id)
}

fn call_json(host: &mut Host, code: Code, payload: &impl Serialize) -> Result<Vec<u8>, Vec<u8>> {
    call(host, code, &serde_json::to_vec(payload).unwrap())
}

fn message(error: Result<Vec<u8>, Vec<u8>>) -> String {
    serde_json::from_slice::<ErrorReply>(&error.unwrap_err()).unwrap().message
}

fn file(path: &str) -> FileCommand {
    FileCommand { container: "c1".into(), file: path.into(), ..FileCommand::default() }
}

fn write(host: &mut Host, command: &FileCommand, data: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
    let mut payload = serde_json::to_vec(command).unwrap();
    payload.extend_from_slice(data);
    call(host, Code::WriteFile, &payload)
}

#[test]
fn file_is_written_whole_and_read_back_in_both_forms() {
    let scratch = Scratch::new("whole");
    for extended in [false, true] {
        let mut host = with_container(extended);
        // A brace in the name, a missing directory, data that look like JSON, and no data.
        let path = scratch.file("new/odd } name");
        for data in [&b"{\"a\":1} \xff\0}"[..], b"", b"short"] {
            assert_eq!(write(&mut host, &file(&path), data), Ok(vec![]));
            assert_eq!(std::fs::read(&path).unwrap(), data);
            assert_eq!(call_json(&mut host, Code::ReadFile, &file(&path)), Ok(data.to_vec()));
        }
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777 & !0o644, 0);
    }
}

#[test]
fn file_is_written_and_read_in_parts() {
    let scratch = Scratch::new("parts");
    let mut host = with_container(true);
    let path = scratch.file("parts");
    assert_eq!(write(&mut host, &file(&path), b"0123456789"), Ok(vec![]));
    let part = |offset, length| FileCommand { offset: Some(offset), length, ..file(&path) };
    assert_eq!(write(&mut host, &part(8, None), b"xyz"), Ok(vec![]));
    assert_eq!(std::fs::read(&path).unwrap(), b"01234567xyz");
    for (offset, length, data) in
        [(0, Some(4), "0123"), (8, Some(100), "xyz"), (6, None, "67xyz"), (50, Some(4), ""), (2, Some(0), "")]
    {
        let read = call_json(&mut host, Code::ReadFile, &part(offset, length));
        assert_eq!(read, Ok(data.as_bytes().to_vec()), "{offset} {length:?}");
    }
}

#[test]
fn file_of_proc_without_a_size_is_read() {
    for extended in [false, true] {
        let mut host = with_container(extended);
        let read = call_json(&mut host, Code::ReadFile, &file("/proc/self/status")).unwrap();
        assert!(read.starts_with(b"Name:"));
    }
}

#[test]
fn largest_file_of_one_reply_is_read_and_a_larger_one_is_refused() {
    let scratch = Scratch::new("large");
    let mut host = with_container(true);
    let path = scratch.file("large");
    let data: Vec<u8> = (0..READ_MAX).map(|at| (at % 251) as u8).collect();
    std::fs::write(&path, &data).unwrap();
    assert!(call_json(&mut host, Code::ReadFile, &file(&path)) == Ok(data.clone()));
    std::fs::write(&path, [&data[..], b"x"].concat()).unwrap();
    let text = message(call_json(&mut host, Code::ReadFile, &file(&path)));
    assert_eq!(text, format!("read {path}: larger than {READ_MAX} bytes, the limit of one reply"));
    let rest = FileCommand { offset: Some(READ_MAX as u64), ..file(&path) };
    assert_eq!(call_json(&mut host, Code::ReadFile, &rest), Ok(b"x".to_vec()));
}

#[test]
fn missing_and_special_files_are_refused() {
    let scratch = Scratch::new("odd");
    let mut host = with_container(true);
    let missing = scratch.file("missing");
    let text = message(call_json(&mut host, Code::ReadFile, &file(&missing)));
    assert_eq!(text, format!("open {missing}: no such file or directory"));
    for (path, cause) in [("/", "is a directory"), ("/dev/null", "operation not supported")] {
        let text = message(call_json(&mut host, Code::ReadFile, &file(path)));
        assert_eq!(text, format!("open {path}: {cause}"));
        assert_eq!(message(write(&mut host, &file(path), b"x")), format!("open {path}: {cause}"));
    }
    // A FIFO without a reader would block a writer forever.
    let pipe = scratch.file("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &*pipe, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    assert_eq!(
        message(write(&mut host, &file(&pipe), b"x")),
        format!("open {pipe}: operation not supported")
    );
    let unknown = FileCommand { container: "c2".into(), ..file("/etc/passwd") };
    assert_eq!(message(call_json(&mut host, Code::ReadFile, &unknown)), "no such container: c2");
    host.input(1, b"");
    host.exit("init");
    let text = message(call_json(&mut host, Code::ReadFile, &file("/etc/passwd")));
    assert_eq!(text, "container c1 is not running");
}

#[test]
fn network_commands_are_done_or_refused_by_name_in_both_forms() {
    for extended in [false, true] {
        let mut host = if extended { Host::extended() } else { Host::base() };
        let interface = |address: &str, mask: &str| Interface {
            device: "eth0".into(),
            ip_addresses: vec![IpAddress {
                ip_address: address.into(),
                net_mask: mask.into(),
                ..IpAddress::default()
            }],
            ..Interface::default()
        };
        let routes = |dest: &str| Routes { routes: vec![Route { dest: dest.into(), ..Route::default() }] };
        for (address, mask) in [("10.0.0.2", "24"), ("-10.0.0.2", "255.255.255.0"), ("fd00::2", "64")] {
            let done = call_json(&mut host, Code::SetupInterface, &interface(address, mask));
            assert_eq!(done, Ok(vec![]), "{address}");
        }
        assert_eq!(call_json(&mut host, Code::SetupRoute, &routes("default")), Ok(vec![]));
        assert_eq!(call_json(&mut host, Code::DeleteInterface, &interface("10.0.0.2", "24")), Ok(vec![]));
        let resolver = |address: &str| Resolver { address: address.into() };
        assert_eq!(call_json(&mut host, Code::Resolver, &resolver("127.0.0.11")), Ok(vec![]));
        let refused = [
            call_json(&mut host, Code::SetupInterface, &interface("10.0.0", "24")),
            call_json(&mut host, Code::SetupInterface, &Interface::default()),
            call_json(&mut host, Code::SetupRoute, &routes("10.0.0.0/33")),
            call_json(&mut host, Code::DeleteInterface, &Interface::default()),
            call_json(&mut host, Code::Resolver, &resolver("::1")),
        ];
        let expected = [
            "invalid IP address \"10.0.0\"",
            "interface has neither a name nor a hardware address",
            "address 10.0.0.0: invalid mask \"33\"",
            "interface has neither a name nor a hardware address",
            "resolver: invalid IPv4 address \"::1\"",
        ];
        for (reply, expected) in refused.into_iter().zip(expected) {
            if extended {
                assert_eq!(message(reply), expected);
            } else {
                // API 4244's errors have no text.
                assert_eq!(reply, Err(vec![]));
            }
        }
    }
}

#[test]
fn commands_without_payload_are_done_in_both_forms() {
    for extended in [false, true] {
        let mut host = if extended { Host::extended() } else { Host::base() };
        assert_eq!(call(&mut host, Code::GetVersion, b""), Ok(4244u32.to_be_bytes().into()));
        for code in [Code::Ping, Code::Ready, Code::OnlineCpuMem] {
            assert_eq!(call(&mut host, code, b""), Ok(vec![]), "{code:?}");
        }
    }
}

#[test]
fn obsolete_and_unknown_codes_are_errors_and_the_connection_stays_open() {
    let mut host = Host::base();
    // Commands for containers also fail before STARTPOD.
    for code in [2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 17, 22, 23, 24, 26, 63, 1000, u32::MAX] {
        let id = host.send_raw(code, b"{}".to_vec());
        assert_eq!(host.reply(id), Err(vec![]), "{code}");
    }
    assert_eq!(call(&mut host, Code::Ping, b""), Ok(vec![]));
}

#[test]
fn errors_of_kill_are_the_texts_of_api_4244() {
    let mut host = with_container(false);
    let kill = |container: &str, signal| KillCommand { container: container.into(), signal, ..killed(0) };
    for (command, text) in [
        (kill("c2", 9), "no such container\0"),
        (kill("c1", 0), "invalid signal\0"),
        (kill("c1", 65), "invalid signal\0"),
    ] {
        let reply = call_json(&mut host, Code::KillContainer, &command);
        assert_eq!(reply, Err(text.into()), "{command:?}");
    }
    assert_eq!(call(&mut host, Code::KillContainer, b"x"), Err(b"kill failed\0".to_vec()));
    assert_eq!(call_json(&mut host, Code::KillContainer, &kill("c1", 9)), Ok(vec![]));
    host.exit("init");
    assert_eq!(call_json(&mut host, Code::KillContainer, &kill("c1", 9)), Err(b"no such process\0".to_vec()));
}

#[test]
fn unknown_keys_do_not_break_a_pod() {
    for extended in [false, true] {
        let mut host = if extended { Host::extended() } else { Host::base() };
        if !extended {
            let pod = br#"{"hostname":"h","iptableRules":"x","newKey":{"a":[1]}}"#;
            assert_eq!(call(&mut host, Code::StartPod, pod), Ok(vec![]));
        }
        let spec =
            br#"{"id":"c1","rootfs":"","image":"c1","odd":[],"process":{"id":"init","stdio":1,"stderr":2,
            "args":["/bin/true"],"workdir":"/","rlimits":[{"type":"RLIMIT_NOFILE","hard":64,"soft":64,"x":0}],
            "envs":[{"env":"A","value":"b","x":null}],"unheardOf":true},"initialize":true}"#;
        assert_eq!(call(&mut host, Code::NewContainer, spec), Ok(vec![]));
        assert_eq!(host.exit("init").status, 0);
    }
}

#[test]
fn unknown_key_of_the_extension_is_refused() {
    let mut host = Host::extended();
    let spec = br#"{"id":"c1","process":{"id":"init","stdio":1,"stderr":2,"args":["/bin/true"],
        "oci":{"restriction":true}}}"#;
    assert!(message(call(&mut host, Code::NewContainer, spec)).contains("unknown field `restriction`"));
}

#[test]
fn pod_starts_its_first_containers_in_order_and_is_answered_once() {
    for extended in [false, true] {
        let mut host = Host::base();
        if extended {
            host.extend();
        }
        let second =
            Container { id: "c2".into(), process: shell("second", "cat", 3, 4), ..Container::default() };
        let pod = Pod { containers: vec![container("cat"), second], ..Pod::default() };
        assert_eq!(call_json(&mut host, Code::StartPod, &pod), Ok(vec![]));
        assert_eq!(call(&mut host, Code::Ping, b""), Ok(vec![]));
        for (seq, process) in [(1, "init"), (3, "second")] {
            host.input(seq, process.as_bytes());
            host.input(seq, b"");
            host.exit(process);
            assert_eq!(host.output(seq), process.as_bytes());
        }
        assert!(!host.frames.iter().any(|frame| frame.code == ACK || frame.code == ERROR));
    }
}

#[test]
fn pod_with_a_container_that_does_not_start_is_an_error_and_in_the_base_form_powers_off() {
    for extended in [false, true] {
        let mut host = Host::base();
        if extended {
            host.extend();
        }
        let mut broken = Container { id: "c2".into(), ..container("true") };
        broken.process = shell("init", "true", 3, 4);
        broken.process.workdir = "/no/such/place".into();
        let pod = Pod { containers: vec![container("true"), broken, container("true")], ..Pod::default() };
        let reply = call_json(&mut host, Code::StartPod, &pod);
        if extended {
            assert_eq!(message(reply), "enter working directory /no/such/place: no such file or directory");
            assert_eq!(host.turn, Turn::Continue);
        } else {
            assert_eq!(reply, Err(vec![]));
            host.work(|host| host.turn == Turn::PowerOff);
        }
    }
}

#[test]
fn port_mapping_is_refused_unless_it_is_empty() {
    let mut host = Host::base();
    let empty = br#"{"portmappingWhiteLists":{"internalNetworks":[],"externalNetworks":[]}}"#;
    assert_eq!(call(&mut host, Code::StartPod, empty), Ok(vec![]));
    let mut host = Host::base();
    let lists = br#"{"portmappingWhiteLists":{"internalNetworks":["10.0.0.0/8"]}}"#;
    assert_eq!(call(&mut host, Code::StartPod, lists), Err(vec![]));
    host.work(|host| host.turn == Turn::PowerOff);
}

#[test]
fn exec_in_the_guest_itself_needs_no_container() {
    for extended in [false, true] {
        let mut host = with_container(extended);
        let process = shell("tool", "echo here; exit 4", 3, 4);
        let exec = ExecCommand { container: "hyperstart".into(), process };
        assert_eq!(call_json(&mut host, Code::ExecCmd, &exec), Ok(vec![]));
        let event = host.exit("tool");
        assert_eq!((event.container.as_str(), event.status), ("hyperstart", 4));
        assert_eq!(host.output(3), b"here\n");
        let remove = ContainerName { container: "hyperstart".into() };
        assert!(call_json(&mut host, Code::RemoveContainer, &remove).is_err());
    }
}

#[test]
fn name_of_an_ended_container_is_free_in_the_base_form() {
    let mut host = with_container(false);
    let spec = serde_json::to_vec(&container("exit 6")).unwrap();
    assert_eq!(call(&mut host, Code::NewContainer, &spec), Err(vec![]));
    host.input(1, b"");
    host.exit("init");
    host.output.clear();
    assert_eq!(call(&mut host, Code::NewContainer, &spec), Ok(vec![]));
    assert_eq!(host.exit("init").status, 6);
}

#[test]
fn signal_right_behind_a_start_is_not_lost() {
    for extended in [false, true] {
        let mut host = with_container(extended);
        let exec = ExecCommand { container: "c1".into(), process: shell("e1", "exec sleep 1000", 3, 4) };
        let signal = SignalCommand { container: "c1".into(), process: "e1".into(), signal: 15 };
        let ids = [host.send(Code::ExecCmd, &exec), host.send(Code::SignalProcess, &signal)];
        assert_eq!(ids.map(|id| host.reply(id)), [Ok(vec![]), Ok(vec![])]);
        let event = host.exit("e1");
        assert_eq!((event.status, event.exit.and_then(|exit| exit.signal)), (0, extended.then_some(15)));
    }
}

#[test]
fn input_before_the_reply_to_a_start_is_not_lost() {
    for extended in [false, true] {
        let mut host = with_container(extended);
        let exec = ExecCommand { container: "c1".into(), process: shell("e1", "cat", 3, 4) };
        let id = host.send(Code::ExecCmd, &exec);
        // The process is in the table once the command is taken; its program runs some time later.
        host.work(|host| host.agent.state.processes.values().any(|process| process.id == "e1"));
        host.input(3, b"early ");
        host.input(3, b"");
        assert_eq!(host.reply(id), Ok(vec![]));
        host.exit("e1");
        assert_eq!(host.output(3), b"early ");
    }
}

#[test]
fn clock_is_read_and_an_adjustment_is_checked() {
    use agent_proto::payload::clock::{ClockAdjustment, ClockReading};

    let mut host = Host::extended();
    let reading = call(&mut host, Code::ReadClock, b"").unwrap();
    let first: ClockReading = serde_json::from_slice(&reading).unwrap();
    // On a host the agent leaves the clock alone.
    let adjust = ClockAdjustment { tick: 10_000, frequency: 0, step: -600_000_000 };
    let reading = call_json(&mut host, Code::AdjustClock, &adjust).unwrap();
    let second: ClockReading = serde_json::from_slice(&reading).unwrap();
    assert!(second.realtime >= first.realtime, "{first:?} {second:?}");
    let wild = ClockAdjustment { tick: 0, ..adjust };
    assert_eq!(message(call_json(&mut host, Code::AdjustClock, &wild)), "a clock's tick of 0 us");
    let unknown = br#"{"tick":10000,"frequency":0,"offset":1}"#;
    assert!(message(call(&mut host, Code::AdjustClock, unknown)).contains("unknown field `offset`"));
}

#[test]
fn a_machine_is_made_one_of_its_own_before_and_after_its_pod_was_started() {
    use agent_proto::revival::{ENTROPY_LEN, Revival};

    let mut host = Host::base();
    host.extend();
    // On a host the agent leaves clock and random numbers alone.
    let payload = Revival { realtime: 1, entropy: [7; ENTROPY_LEN] }.encode();
    assert_eq!(call(&mut host, Code::Revive, &payload), Ok(vec![]));
    assert_eq!(message(call(&mut host, Code::Revive, &payload[1..])), "Revive: not a time and entropy");
    call(&mut host, Code::StartPod, b"{}").unwrap();
    assert_eq!(call(&mut host, Code::Revive, &payload), Ok(vec![]));
}

#[test]
fn a_connection_is_carried_in_both_directions_with_their_ends() {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener};

    let mut host = Host::extended();
    let connect = |name: &str, port, stream| payload::Connect { name: name.into(), port, stream };
    // A server that listens only on ::1 is found as well.
    for (address, stream) in [("127.0.0.1:0", 3), ("[::1]:0", 4)] {
        let listener = TcpListener::bind(address).unwrap();
        let name = format!("forward-{stream}");
        host.ok(Code::Connect, &connect(&name, listener.local_addr().unwrap().port(), stream));
        host.input(stream, b"question");
        host.input(stream, b"");
        let server = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut question = String::new();
            client.read_to_string(&mut question).unwrap();
            client.write_all(format!("answer to {question}").as_bytes()).unwrap();
            client.shutdown(Shutdown::Both).unwrap();
        });
        let event = host.exit(&name);
        server.join().unwrap();
        assert_eq!((event.container.as_str(), event.status), (payload::GUEST, 0));
        assert_eq!(host.output(stream), b"answer to question");
        assert!(host.has_ended(stream));
    }
    // Nothing listens at a port that was just free.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = host.refused(Code::Connect, &connect("refused", port, 5));
    assert_eq!(error.message, format!("connect to port {port}: connection refused"));
    assert!(!host.has_ended(5));
}
