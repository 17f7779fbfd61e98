//! Tests of containers that clients represent, beside the one that the process itself represents.

use super::*;
use crate::exit;

/// The client that requests a start.
const STARTER: ClientId = 7;
/// The client that represents the member `b`.
const CLIENT: ClientId = 8;

impl Rig {
    /// Returns a rig with the container `a` of the process, and a member that runs `script`.
    fn with_member(script: &str) -> (Rig, Stdio) {
        let mut rig = Rig::new();
        let first = rig.plan("a", "exec sleep 1000", RestartPolicy::Never);
        rig.containers.add_own(first, Phase::Created);
        assert_eq!(rig.containers.start("a", STARTER), None);
        let stdio = rig.join(script);
        (rig, stdio)
    }

    fn join(&mut self, script: &str) -> Stdio {
        let (stdio, fds) = Stdio::new();
        let plan = self.plan("b", script, RestartPolicy::Never);
        self.containers.add_member(plan, CLIENT, fds.into());
        stdio
    }

    fn has_member(&self) -> bool {
        self.containers.find("b").is_some()
    }

    fn guest<T>(&mut self, call: impl FnOnce(&mut Containers, &mut Guest<'_>) -> Result<T>) -> T {
        let mut guest = Guest { link: &mut self.host.link, streams: &mut self.host.streams.handle };
        call(&mut self.containers, &mut guest).unwrap()
    }

    #[track_caller]
    fn start_member(&mut self) {
        assert_eq!(self.containers.start("b", STARTER), None);
        self.until(|rig| rig.container("b").phase == Phase::Running);
    }
}

#[test]
fn a_member_has_its_client_s_streams_and_leaves_when_it_has_ended() {
    let (mut rig, mut stdio) = Rig::with_member("cat; echo error >&2; exit 5");
    rig.start_member();
    let mut stdin = stdio.stdin.take().unwrap();
    stdin.write_all(b"typed").unwrap();
    drop(stdin);
    assert_eq!(rig.last(CLIENT), Reply::Exited(5));
    assert_eq!(stdio.output(), ("typed".to_owned(), "error\n".to_owned()));
    assert!(rig.events.iter().any(|event| matches!(event, Event::Left(spec) if spec.name() == "b")));
    assert!(!rig.has_member() && !rig.containers.is_over());
    // Its name is free.
    let _again = rig.join("exit 6");
    assert_eq!(rig.containers.start("b", STARTER), None);
    assert_eq!(rig.last(CLIENT), Reply::Exited(6));
    rig.guest(|containers, guest| containers.kill(guest, "a", libc::SIGKILL, false));
    rig.until(|rig| rig.containers.is_over());
    assert_eq!(rig.containers.exit_code(), 137);
}

#[test]
fn signals_of_its_client_reach_a_member_alone() {
    let (mut rig, _stdio) = Rig::with_member("exit 0");
    let up = rig.folder.path().join("up");
    let script = format!("trap 'exit 9' USR1; echo > {}; while :; do sleep 0.01; done", up.display());
    rig.containers.all[1].spec.plan.container.process.args[2] = script;
    rig.start_member();
    rig.until(|_| up.exists());
    rig.guest(|containers, guest| containers.signal_of(guest, CLIENT, libc::SIGUSR1));
    assert_eq!(rig.last(CLIENT), Reply::Exited(9));
    assert_eq!(rig.container("a").phase, Phase::Running);
}

#[test]
fn a_member_whose_client_is_gone_is_killed_and_removed_in_every_phase() {
    let (mut rig, _stdio) = Rig::with_member("exec sleep 1000");
    rig.guest(|containers, guest| containers.forget(guest, CLIENT));
    rig.until(|rig| !rig.has_member());
    for start in [Phase::Starting, Phase::Running] {
        let _stdio = rig.join("exec sleep 1000");
        assert_eq!(rig.containers.start("b", STARTER), None);
        rig.until(|rig| rig.container("b").phase == start);
        rig.guest(|containers, guest| containers.forget(guest, CLIENT));
        rig.until(|rig| !rig.has_member());
    }
    assert!(!rig.events.iter().any(|event| matches!(event, Event::Last(CLIENT, _))));
    assert!(!rig.containers.is_over());
}

#[test]
fn a_member_that_is_never_started_ends_by_a_signal() {
    let (mut rig, _stdio) = Rig::with_member("exit 3");
    let killed = rig.guest(|containers, guest| containers.kill(guest, "b", libc::SIGTERM, false));
    assert_eq!(killed, Reply::Done);
    assert_eq!(rig.last(CLIENT), Reply::Exited(exit::of_signal(libc::SIGTERM)));
}

#[test]
fn a_missing_program_of_a_member_is_told_to_both_clients() {
    let (mut rig, _stdio) = Rig::with_member("");
    rig.containers.all[1].spec.plan.container.process.args = vec!["no-such-program".into()];
    assert_eq!(rig.containers.start("b", STARTER), None);
    assert_eq!(rig.last(CLIENT), Reply::Exited(127));
    let message = "exec: \"no-such-program\": executable file not found in $PATH".to_owned();
    let failed = Reply::Failed { code: 127, message };
    assert!(
        rig.events.iter().any(|event| matches!(event, Event::Answer(STARTER, reply) if *reply == failed))
    );
    // It may still be on its way there.
    rig.until(|rig| rig.container("a").phase == Phase::Running);
}

#[test]
fn members_are_told_of_the_machine_s_end() {
    let (mut rig, _stdio) = Rig::with_member("exec sleep 1000");
    rig.start_member();
    let told = rig.containers.farewells();
    assert!(matches!(told[..], [Event::Last(CLIENT, Reply::Exited(137))]), "{told:?}");
}
