//! Tests of [`Containers`] against the agent's own code over two socket pairs, without VM and root. A container is a
//! plain process of the host.

use std::io::Write;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::Duration;

use agent::agent::{Agent, Setting, Turn};
use agent_proto::command::Protocol;
use agent_proto::payload::{self, Env, OciProcess, Pod, Process};
use link::testing::{Host, Stdio};
use oci::exec::ProcessChanges;
use oci::spec;
use plan::INIT_PROCESS;

use super::*;
use crate::pod::log::reader::{LineFilter, LogReader};
use crate::pod::log::{Limits, Stream};
use crate::pod::output::PodOutput;
use crate::pod::podfile::RestartPolicy;

mod member;
mod own;

/// Deadline of each step.
const PATIENCE: Duration = Duration::from_secs(20);
/// Number of exec processes in a row, to detect leaks.
const EXECS: usize = 200;
/// Tokens of the streams' descriptors, with room for many processes.
const TOKENS: Range<u16> = 0..64;
/// Number of containers in a full pod.
const CONTAINERS: usize = 64;

/// Host and agent, run in turns by one thread.
struct Rig {
    agent: Agent,
    host: Host,
    containers: Containers,
    outputs: PodOutput,
    turn: Turn,
    events: Vec<Event>,
    folder: tempfile::TempDir,
}

impl Rig {
    fn new() -> Rig {
        let (mut host, [control, channel]) = Host::new(&[], Protocol::Extended);
        let agent = Agent::new(control.into(), channel.into(), Setting::Host).unwrap();
        host.link.notify(Code::StartPod, "start the pod", &Pod::default()).unwrap();
        Rig {
            agent,
            host,
            containers: Containers::new().unwrap(),
            outputs: PodOutput::default(),
            turn: Turn::Continue,
            events: Vec::new(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Returns a rig with a container that runs `script`.
    fn running(script: &str) -> Rig {
        let mut rig = Rig::new();
        rig.add("a", script, RestartPolicy::Never);
        rig.until(|rig| rig.container("a").phase == Phase::Running);
        rig
    }

    fn add(&mut self, name: &str, script: &str, restart: RestartPolicy) {
        let plan = self.plan(name, script, restart);
        let log = LogFile::open(&self.folder.path().join(name), Limits { size: 1 << 20, files: 2 }).unwrap();
        self.containers.add(plan, Some(log), None);
    }

    fn plan(&self, name: &str, script: &str, restart: RestartPolicy) -> ContainerSpec {
        let process = Process {
            id: INIT_PROCESS.into(),
            args: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            envs: vec![Env { env: "PATH".into(), value: "/usr/bin:/bin".into() }],
            workdir: "/".into(),
            oci: Some(OciProcess::default()),
            ..Process::default()
        };
        let container = payload::Container { id: name.into(), process, ..payload::Container::default() };
        let plan = plan::ContainerPlan { container, ..plan::ContainerPlan::default() };
        let own =
            spec::Process { cwd: "/".into(), env: vec!["PATH=/usr/bin:/bin".into()], ..Default::default() };
        ContainerSpec { restart, ..ContainerSpec::unattended(plan, own) }
    }

    fn container(&self, name: &str) -> &Container {
        self.containers.all.iter().find(|container| container.spec.name() == name).unwrap()
    }

    /// Runs both sides in turns until `done` returns true.
    #[track_caller]
    fn until(&mut self, mut done: impl FnMut(&mut Rig) -> bool) {
        let start = Instant::now();
        loop {
            self.host.link.receive().unwrap();
            let mut guest = Guest { link: &mut self.host.link, streams: &mut self.host.streams.handle };
            let events = self.containers.step(&mut guest, Instant::now()).unwrap();
            self.events.extend(events);
            let outputs = &mut self.outputs;
            let mut all = std::iter::repeat(true);
            self.containers
                .all
                .iter_mut()
                .for_each(|container| container.read_output(outputs, true, &mut all));
            if done(self) {
                return;
            }
            let states: Vec<_> = self.containers.all.iter().map(Container::state).collect();
            assert!(start.elapsed() < PATIENCE, "no progress: {states:?} {:?}", self.events);
            if self.turn != Turn::PowerOff {
                self.turn = self.agent.run_once(Some(Duration::from_millis(1))).unwrap();
            }
            self.host.carry(TOKENS);
        }
    }

    fn exec(&mut self, client: ClientId, script: &str) -> Stdio {
        let (stdio, fds) = Stdio::new();
        let request = ExecRequest {
            container: "a".into(),
            changes: ProcessChanges {
                args: ["/bin/sh", "-c", script].map(str::to_owned).into(),
                env: vec!["VALUE=given".into()],
                ..ProcessChanges::default()
            },
            ..ExecRequest::default()
        };
        let mut guest = Guest { link: &mut self.host.link, streams: &mut self.host.streams.handle };
        assert_eq!(self.containers.exec(&mut guest, client, &request, &fds).unwrap(), None);
        stdio
    }

    /// Returns the last answer to the client.
    #[track_caller]
    fn last(&mut self, client: ClientId) -> Reply {
        let mut found = None;
        self.until(|rig| {
            let of = |event: &mut Event| matches!(event, Event::Last(whose, _) if *whose == client);
            if let Some(Event::Last(_, reply)) = rig.events.extract_if(.., of).next() {
                found = Some(reply);
            }
            found.is_some()
        });
        // The stream table drops the client's descriptors.
        self.host.carry(TOKENS);
        found.unwrap()
    }

    fn logged(&self, name: &str) -> Vec<(Stream, String)> {
        let (_, lines) = LogReader::open(&self.folder.path().join(name), &LineFilter::default()).unwrap();
        lines.into_iter().map(|line| (line.stream, line.log)).collect()
    }
}

/// Returns the number of open descriptors of this process.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn two_containers_run_side_by_side_and_their_output_is_logged() {
    let mut rig = Rig::new();
    rig.add("a", "echo from a; exit 3", RestartPolicy::Never);
    rig.add("b", "echo from b >&2", RestartPolicy::Never);
    rig.until(|rig| rig.containers.is_over());
    assert_eq!(rig.logged("a"), [(Stream::Stdout, "from a\n".to_owned())]);
    assert_eq!(rig.logged("b"), [(Stream::Stderr, "from b\n".to_owned())]);
    assert_eq!(
        (rig.container("a").exit, rig.container("b").exit, rig.containers.exit_code()),
        (Some(3), Some(0), 3)
    );
    assert!(rig.containers.is_started());
}

#[test]
fn a_container_s_input_is_empty() {
    let mut rig = Rig::new();
    rig.add("a", "cat; echo end", RestartPolicy::Never);
    rig.until(|rig| rig.containers.is_over());
    assert_eq!(rig.logged("a"), [(Stream::Stdout, "end\n".to_owned())]);
}

#[test]
fn a_policy_restarts_until_the_container_succeeds() {
    let mut rig = Rig::new();
    let count = rig.folder.path().join("count").display().to_string();
    let script = format!("echo x >> {count}; echo run; [ $(wc -l < {count}) -ge 3 ]");
    rig.add("a", &script, RestartPolicy::OnFailure);
    rig.until(|rig| rig.containers.is_over());
    let state = rig.container("a").state();
    assert_eq!((state.exit_code, state.restarts, state.status.as_str()), (Some(0), 2, "stopped"));
    assert_eq!(rig.logged("a").len(), 3);
    assert_eq!(rig.containers.exit_code(), 0);
}

#[test]
fn a_container_that_always_runs_ends_when_the_pod_is_stopped() {
    let mut rig = Rig::new();
    rig.add("a", "true", RestartPolicy::Always);
    rig.add("b", "trap 'exit 7' TERM; while :; do sleep 0.01; done", RestartPolicy::Always);
    rig.until(|rig| rig.container("a").state().restarts >= 2 && rig.container("b").phase == Phase::Running);
    rig.containers.stop(Instant::now() + PATIENCE);
    rig.until(|rig| rig.containers.is_over());
    assert_eq!((rig.container("a").exit, rig.container("b").exit), (Some(0), Some(7)));
}

#[test]
fn a_container_that_ignores_its_stop_signal_is_killed_at_the_deadline() {
    let mut rig = Rig::running("trap '' TERM; echo ready; while :; do sleep 0.01; done");
    rig.until(|rig| !rig.logged("a").is_empty());
    rig.containers.stop(Instant::now() + Duration::from_millis(50));
    rig.until(|rig| rig.containers.is_over());
    assert_eq!(rig.container("a").exit, Some(137));
    assert!(rig.containers.deadline(Instant::now()).is_none());
}

#[test]
fn an_exec_has_its_client_s_streams_and_every_exit_code_comes_back() {
    let mut rig = Rig::running("exec sleep 1000");
    let mut client = rig.exec(1, "cat; echo $VALUE >&2; exit 9");
    let mut stdin = client.stdin.take().unwrap();
    stdin.write_all(b"typed").unwrap();
    drop(stdin);
    assert_eq!(rig.last(1), Reply::Exited(9));
    assert_eq!(client.output(), ("typed".to_owned(), "given\n".to_owned()));
    for code in 0..=255 {
        rig.exec(2, &format!("exit {code}"));
        assert_eq!(rig.last(2), Reply::Exited(code));
    }
    rig.exec(3, "kill -9 $$");
    assert_eq!(rig.last(3), Reply::Exited(137));
}

#[test]
fn an_exec_that_fails_reports_why() {
    let mut rig = Rig::running("exec sleep 1000");
    let mut exec = |request: ExecRequest, fds: &[OwnedFd]| {
        let mut guest = Guest { link: &mut rig.host.link, streams: &mut rig.host.streams.handle };
        rig.containers.exec(&mut guest, 1, &request, fds).unwrap()
    };
    let request = |container: &str, args: &[&str]| ExecRequest {
        container: container.into(),
        changes: ProcessChanges {
            args: args.iter().map(|arg| arg.to_string()).collect(),
            ..ProcessChanges::default()
        },
        ..ExecRequest::default()
    };
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let message = |reply: Option<Reply>| match reply {
        Some(Reply::Failed { code: 125, message }) => message,
        other => panic!("{other:?}"),
    };
    let three = [null(), null(), null()];
    assert_eq!(message(exec(request("x", &["true"]), &three)), "the pod has no container \"x\"");
    assert_eq!(message(exec(request("a", &[]), &three)), "exec: no program");
    assert_eq!(message(exec(request("a", &["true"]), &[])), "exec: the client's descriptors are missing");
    assert_eq!(exec(request("a", &["/nonexistent"]), &three), None);
    assert_eq!(message(exec(request("a", &["true"]), &three)), "exec: the connection already has a process");
    let Reply::Failed { code: 127, message } = rig.last(1) else { panic!() };
    assert!(message.contains("/nonexistent"), "{message}");
}

#[test]
fn a_client_s_signals_reach_its_process_even_before_it_runs() {
    let mut rig = Rig::running("exec sleep 1000");
    rig.exec(1, "exec sleep 1000");
    let mut guest = Guest { link: &mut rig.host.link, streams: &mut rig.host.streams.handle };
    rig.containers.exec_of(1).unwrap().process.signal(&mut guest, libc::SIGTERM, false).unwrap();
    assert_eq!(rig.last(1), Reply::Exited(143));
}

#[test]
fn the_process_of_a_client_that_vanishes_is_killed() {
    let mut rig = Rig::running("exec sleep 1000");
    drop(rig.exec(1, "exec sleep 1000"));
    rig.until(|rig| rig.containers.execs[0].process.phase == process::ProcessPhase::Running);
    let mut guest = Guest { link: &mut rig.host.link, streams: &mut rig.host.streams.handle };
    rig.containers.forget(&mut guest, 1).unwrap();
    rig.until(|rig| rig.containers.execs.is_empty());
    assert!(!rig.events.iter().any(|events| matches!(events, Event::Last(..))));
}

#[test]
fn many_execs_in_a_row_leave_nothing_behind() {
    let mut rig = Rig::running("exec sleep 1000");
    let run = |rig: &mut Rig, count: usize| {
        for client in 0..count as u64 {
            let mut ours = rig.exec(client, "echo out; echo err >&2");
            assert_eq!(rig.last(client), Reply::Exited(0));
            assert_eq!(ours.output(), ("out\n".to_owned(), "err\n".to_owned()));
        }
        rig.until(|rig| rig.host.link.outstanding() == 0);
        rig.host.carry(TOKENS);
    };
    run(&mut rig, 1);
    let before = descriptors();
    run(&mut rig, EXECS);
    // A leak would be several for each exec process, for good. Other tests of this process open more, for a while.
    let deadline = Instant::now() + Duration::from_secs(60);
    while descriptors() >= before + EXECS {
        assert!(Instant::now() < deadline, "{before} descriptors became {}", descriptors());
        std::thread::yield_now();
    }
    assert!(rig.containers.execs.is_empty() && rig.containers.awaited.is_empty());
}

#[test]
fn a_reader_that_stalls_does_not_block_other_streams() {
    const STREAMS: u64 = 8;
    const LINES: usize = 40_000;
    let mut rig = Rig::running("exec sleep 1000");
    let script = format!("seq {LINES}; echo end >&2");
    let mut stalled = rig.exec(0, &script);
    let readers: Vec<_> = (1..STREAMS)
        .map(|client| {
            let mut ours = rig.exec(client, &script);
            std::thread::spawn(move || ours.output())
        })
        .collect();
    for client in 1..STREAMS {
        assert_eq!(rig.last(client), Reply::Exited(0));
    }
    for reader in readers {
        let (out, err) = reader.join().unwrap();
        assert_eq!((out.lines().count(), err.as_str()), (LINES, "end\n"));
    }
    assert!(!rig.events.iter().any(|events| matches!(events, Event::Last(0, _))));
    let reader = std::thread::spawn(move || stalled.output());
    assert_eq!(rig.last(0), Reply::Exited(0));
    assert_eq!(reader.join().unwrap().0.lines().count(), LINES);
}

#[test]
fn a_pod_has_many_containers() {
    let mut rig = Rig::new();
    for number in 0..CONTAINERS {
        rig.add(&format!("c{number}"), &format!("echo {number}"), RestartPolicy::Never);
    }
    rig.until(|rig| rig.containers.is_over());
    for number in 0..CONTAINERS {
        assert_eq!(rig.logged(&format!("c{number}")), [(Stream::Stdout, format!("{number}\n"))]);
    }
    assert_eq!(rig.containers.exit_code(), 0);
}

#[test]
fn a_container_is_removed_from_a_running_pod_and_another_is_added() {
    let mut rig = Rig::running("exec sleep 1000");
    rig.add("b", "exec sleep 1000", RestartPolicy::Always);
    rig.until(|rig| rig.container("b").phase == Phase::Running);
    let refused = rig.containers.remove("b", false, 1);
    assert_eq!(refused, Some(super::refused("container \"b\" is running".to_owned())));
    assert_eq!(rig.containers.wait("b", 2), None);
    assert_eq!(rig.containers.remove("b", true, 1), None);
    let answered = |rig: &Rig, client: ClientId, reply: &Reply| {
        rig.events.iter().any(|events| matches!(events, Event::Answer(a, r) if *a == client && r == reply))
    };
    rig.until(|rig| rig.containers.all.len() == 1);
    assert!(answered(&rig, 1, &Reply::Done) && answered(&rig, 2, &Reply::Exited(137)));
    assert!(rig.events.iter().any(|events| matches!(events, Event::Left(spec) if spec.name() == "b")));
    rig.add("b", "echo again", RestartPolicy::Never);
    rig.until(|rig| rig.container("b").phase == Phase::Ended);
    assert_eq!(rig.logged("b"), [(Stream::Stdout, "again\n".to_owned())]);
    // The last container can be removed as well: an empty pod stays alive.
    assert_eq!(rig.containers.remove("b", false, 3), None);
    assert_eq!(rig.containers.remove("a", true, 4), None);
    rig.until(|rig| rig.containers.all.is_empty());
    assert!(!rig.containers.is_over());
    rig.containers.stop(Instant::now());
    assert!(rig.containers.is_over());
}

#[test]
fn a_container_that_cannot_start_fails_its_pod_or_the_client_that_added_it() {
    let mut rig = Rig::running("exec sleep 1000");
    rig.add("b", "", RestartPolicy::Always);
    rig.containers.all[1].spec.plan.container.process.args = vec!["/nonexistent".into()];
    rig.until(|rig| rig.events.iter().any(|events| matches!(events, Event::StartFailed { .. })));
    let failed = rig.events.iter().find_map(|events| match events {
        Event::StartFailed { code, message } => Some((*code, message.clone())),
        _ => None,
    });
    let (code, message) = failed.unwrap();
    assert!(code == 127 && message.starts_with("start container \"b\": "), "{message}");
    rig.add("c", "", RestartPolicy::Never);
    rig.containers.all[2].spec.plan.container.process.args = vec!["/etc/passwd".into()];
    rig.containers.all[2].starter = Some(5);
    let told = |events: &Event| matches!(events, Event::Answer(5, Reply::Failed { code: 126, .. }));
    rig.until(|rig| rig.events.iter().any(told));
    rig.until(|rig| !rig.containers.all.iter().any(|container| container.spec.name() == "c"));
}

#[test]
fn signals_go_to_one_container_or_to_all() {
    let mut rig = Rig::running("exec sleep 1000");
    rig.add("b", "exec sleep 1000", RestartPolicy::Never);
    rig.until(|rig| rig.container("b").phase == Phase::Running);
    let mut guest = Guest { link: &mut rig.host.link, streams: &mut rig.host.streams.handle };
    let unknown = rig.containers.kill(&mut guest, "x", 15, false).unwrap();
    assert_eq!(unknown, super::refused("the pod has no container \"x\"".to_owned()));
    assert_eq!(rig.containers.kill(&mut guest, "b", libc::SIGINT, false).unwrap(), Reply::Done);
    rig.until(|rig| rig.container("b").phase == Phase::Ended);
    assert_eq!((rig.container("b").exit, rig.container("a").exit), (Some(130), None));
    let mut guest = Guest { link: &mut rig.host.link, streams: &mut rig.host.streams.handle };
    assert_eq!(rig.containers.kill(&mut guest, "", libc::SIGUSR1, false).unwrap(), Reply::Done);
    rig.until(|rig| rig.containers.is_over());
    assert_eq!(rig.containers.exit_code(), 138);
}

#[test]
fn the_guest_is_asked_about_its_containers() {
    let mut rig = Rig::running("exec sleep 1000");
    let mut guest = Guest { link: &mut rig.host.link, streams: &mut rig.host.streams.handle };
    assert_eq!(rig.containers.stats(&mut guest, 1).unwrap(), None);
    assert_eq!(rig.containers.processes(&mut guest, 2).unwrap(), None);
    let (mut stats, mut processes) = (false, false);
    rig.until(|rig| {
        for events in rig.events.drain(..) {
            match events {
                Event::Answer(1, Reply::Stats(all)) => stats = all[0].container == "a",
                Event::Answer(2, Reply::Processes(all)) => processes = all[0].container == "a",
                _ => {}
            }
        }
        stats && processes
    });
    let mut guest = Guest { link: &mut rig.host.link, streams: &mut rig.host.streams.handle };
    assert_eq!(rig.containers.pause(&mut guest, 3, "a".into(), true).unwrap(), None);
    rig.until(|rig| rig.container("a").paused);
    assert_eq!(rig.container("a").state().status, "paused");
    let mut guest = Guest { link: &mut rig.host.link, streams: &mut rig.host.streams.handle };
    assert_eq!(rig.containers.pause(&mut guest, 3, "a".into(), false).unwrap(), None);
    rig.until(|rig| !rig.container("a").paused);
}

#[test]
fn limits_of_a_running_container_are_updated() {
    let mut rig = Rig::running("exec sleep 1000");
    let files = BTreeMap::from([("pids.max".to_owned(), "7".to_owned())]);
    let mut guest = Guest { link: &mut rig.host.link, streams: &mut rig.host.streams.handle };
    let mut update =
        |container: &str| rig.containers.update(&mut guest, 1, container.to_owned(), files.clone()).unwrap();
    assert_eq!(update("x"), Some(super::refused("the pod has no container \"x\"".to_owned())));
    assert_eq!(update("a"), None);
    let answered = |events: Event| matches!(events, Event::Answer(1, Reply::Done));
    rig.until(|rig| rig.events.drain(..).any(answered));
}
