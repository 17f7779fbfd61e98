//! Tests of the container that the process represents, which waits for its start.

use super::*;
use crate::exit;

/// The client that requests the start.
const STARTER: ClientId = 7;

impl Rig {
    /// Returns a rig with a container that was created.
    fn created(script: &str) -> Rig {
        let mut rig = Rig::new();
        let plan = rig.plan("a", script, RestartPolicy::Never);
        rig.containers.add_own(plan, Phase::Created);
        rig
    }

    fn kill(&mut self, signal: i32) -> Reply {
        let mut guest = Guest { link: &mut self.host.link, streams: &mut self.host.streams.handle };
        self.containers.kill(&mut guest, "a", signal, false).unwrap()
    }

    fn answer(&self) -> Option<&Reply> {
        self.events.iter().find_map(|events| match events {
            Event::Answer(STARTER, reply) => Some(reply),
            _ => None,
        })
    }
}

#[test]
fn it_starts_once_on_request() {
    let mut rig = Rig::created("exit 3");
    rig.until(|rig| rig.containers.is_started());
    assert_eq!(rig.container("a").state().status, "created");
    assert!(!rig.containers.is_over());
    assert_eq!(rig.containers.start("a", STARTER), None);
    rig.until(|rig| rig.answer() == Some(&Reply::Done));
    rig.until(|rig| rig.containers.is_over());
    assert_eq!(rig.containers.exit_code(), 3);
    let again = rig.containers.start("a", STARTER);
    assert_eq!(again, Some(refused("cannot start a container that has stopped".into())));
    assert_eq!(rig.kill(libc::SIGTERM), refused("container not running".into()));
}

#[test]
fn before_its_start_a_signal_to_terminate_ends_it() {
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let mut rig = Rig::created("exit 3");
        assert_eq!(rig.kill(libc::SIGUSR1), Reply::Done);
        assert_eq!(rig.container("a").phase, Phase::Created);
        assert_eq!(rig.kill(signal), Reply::Done);
        rig.until(|rig| rig.containers.is_over());
        assert_eq!(rig.containers.exit_code(), exit::of_signal(signal));
    }
}

#[test]
fn a_signal_during_its_start_reaches_its_process() {
    let mut rig = Rig::created("exec sleep 1000");
    assert_eq!(rig.containers.start("a", STARTER), None);
    assert_eq!(rig.kill(libc::SIGKILL), Reply::Done);
    rig.until(|rig| rig.containers.is_over());
    assert_eq!(rig.containers.exit_code(), 137);
}

#[test]
fn a_missing_program_is_reported_to_the_client_and_ends_it() {
    let mut rig = Rig::created("");
    rig.containers.all[0].spec.plan.container.process.args = vec!["no-such-program".into()];
    assert_eq!(rig.containers.start("a", STARTER), None);
    rig.until(|rig| rig.containers.is_over());
    let message = "exec: \"no-such-program\": executable file not found in $PATH".to_owned();
    assert_eq!(rig.answer(), Some(&Reply::Failed { code: 127, message }));
    assert_eq!(rig.containers.exit_code(), 127);
}

/// Returns the events of containers whose agent stops answering, `after` the longest time that it may take.
fn silent(rig: &mut Rig, after: Duration) -> Vec<Event> {
    let mut guest = Guest { link: &mut rig.host.link, streams: &mut rig.host.streams.handle };
    let now = Instant::now();
    let asked = rig.containers.step(&mut guest, now).unwrap();
    assert!(!asked.iter().any(|events| matches!(events, Event::Unkilled(_))), "{asked:?}");
    rig.containers.step(&mut guest, now + after).unwrap()
}

fn is_unkilled(events: &[Event]) -> bool {
    events.iter().any(|events| matches!(events, Event::Unkilled(name) if name == "a"))
}

#[test]
fn a_kill_that_the_guest_does_not_answer_ends_the_machine() {
    let mut rig = Rig::created("exec sleep 1000");
    assert_eq!(rig.containers.start("a", STARTER), None);
    rig.until(|rig| rig.container("a").phase == Phase::Running);
    assert_eq!(rig.kill(libc::SIGTERM), Reply::Done);
    assert_eq!(rig.containers.deadline(Instant::now()), None, "a process may ignore it");
    assert_eq!(rig.kill(libc::SIGKILL), Reply::Done);
    let due = rig.containers.deadline(Instant::now()).unwrap();
    assert!(due <= Instant::now() + rig.containers.kill_patience);
    // A second SIGKILL does not extend the deadline.
    assert_eq!(rig.kill(libc::SIGKILL), Reply::Done);
    assert_eq!(rig.containers.deadline(Instant::now()), Some(due));
    let after = rig.containers.kill_patience;
    assert!(is_unkilled(&silent(&mut rig, after)));
    assert_eq!(rig.container("a").state().exit_code, Some(137));
}

#[test]
fn a_killed_container_has_more_time_if_the_host_gives_the_machine_no_cpu() {
    let mut rig = Rig::created("exec sleep 1000");
    assert_eq!(rig.containers.start("a", STARTER), None);
    rig.until(|rig| rig.container("a").phase == Phase::Running);
    assert_eq!(rig.kill(libc::SIGKILL), Reply::Done);
    let due = rig.containers.deadline(Instant::now()).unwrap();
    let starved = Duration::from_secs(7);
    rig.containers.excuse_starved(starved);
    assert_eq!(rig.containers.deadline(Instant::now()), Some(due + starved));
    let after = rig.containers.kill_patience + starved;
    assert!(is_unkilled(&silent(&mut rig, after)));
}

#[test]
fn a_kill_during_a_start_that_is_not_answered_ends_the_machine() {
    let mut rig = Rig::created("exec sleep 1000");
    assert_eq!(rig.containers.start("a", STARTER), None);
    assert_eq!(rig.kill(libc::SIGKILL), Reply::Done);
    let after = rig.containers.kill_patience;
    assert!(is_unkilled(&silent(&mut rig, after)));
}

#[test]
fn a_container_whose_exec_process_is_not_reported_to_exit_is_killed() {
    let mut rig = Rig::created("exec sleep 1000");
    assert_eq!(rig.containers.start("a", STARTER), None);
    rig.until(|rig| rig.container("a").phase == Phase::Running);
    let _client = rig.exec(8, "exec sleep 1000");
    rig.until(|rig| rig.containers.execs[0].process.phase == process::ProcessPhase::Running);
    // The guest reports the exit of the init process only.
    rig.containers.all[0].exited(agent_proto::payload::Exit::default());
    assert_eq!(rig.container("a").state().status, "running");
    assert_eq!(rig.kill(libc::SIGTERM), refused("container not running".into()));
    assert_eq!(rig.kill(libc::SIGKILL), Reply::Done);
    let after = rig.containers.kill_patience;
    assert!(is_unkilled(&silent(&mut rig, after)));
}
