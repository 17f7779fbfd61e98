//! The container that the process stands for: it waits for its start.

use super::*;
use crate::exit;

/// Who asks for the start.
const STARTER: Asker = 7;

impl Rig {
    /// A rig with a container that was created.
    fn created(script: &str) -> Rig {
        let mut rig = Rig::new();
        let plan = rig.plan("a", script, RestartPolicy::Never);
        rig.crew.add_standing(plan);
        rig
    }

    fn kill(&mut self, signal: i32) -> Reply {
        let mut guest = Guest { link: &mut self.link, streams: &mut self.handle };
        self.crew.kill(&mut guest, "a", signal, false).unwrap()
    }

    fn answer(&self) -> Option<&Reply> {
        self.happened.iter().find_map(|happened| match happened {
            Happened::Answer(STARTER, reply) => Some(reply),
            _ => None,
        })
    }
}

#[test]
fn it_starts_when_it_is_asked_to_and_once() {
    let mut rig = Rig::created("exit 3");
    rig.until(|rig| rig.crew.is_started());
    assert_eq!(rig.member("a").state().status, "created");
    assert!(!rig.crew.is_over());
    assert_eq!(rig.crew.start("a", STARTER), None);
    rig.until(|rig| rig.answer() == Some(&Reply::Done));
    rig.until(|rig| rig.crew.is_over());
    assert_eq!(rig.crew.exit_code(), 3);
    let again = rig.crew.start("a", STARTER);
    assert_eq!(again, Some(refused("cannot start a container that has stopped".into())));
    assert_eq!(rig.kill(libc::SIGTERM), refused("container not running".into()));
}

#[test]
fn before_its_start_a_signal_that_asks_for_an_end_is_one() {
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let mut rig = Rig::created("exit 3");
        assert_eq!(rig.kill(libc::SIGUSR1), Reply::Done);
        assert_eq!(rig.member("a").phase, Phase::Created);
        assert_eq!(rig.kill(signal), Reply::Done);
        rig.until(|rig| rig.crew.is_over());
        assert_eq!(rig.crew.exit_code(), exit::of_signal(signal));
    }
}

#[test]
fn a_signal_during_its_start_reaches_its_process() {
    let mut rig = Rig::created("exec sleep 1000");
    assert_eq!(rig.crew.start("a", STARTER), None);
    assert_eq!(rig.kill(libc::SIGKILL), Reply::Done);
    rig.until(|rig| rig.crew.is_over());
    assert_eq!(rig.crew.exit_code(), 137);
}

#[test]
fn a_program_that_is_not_there_is_told_to_who_asked_and_ends_it() {
    let mut rig = Rig::created("");
    rig.crew.members[0].plan.container.process.args = vec!["no-such-program".into()];
    assert_eq!(rig.crew.start("a", STARTER), None);
    rig.until(|rig| rig.crew.is_over());
    let message = "exec: \"no-such-program\": executable file not found in $PATH".to_owned();
    assert_eq!(rig.answer(), Some(&Reply::Failed { code: 127, message }));
    assert_eq!(rig.crew.exit_code(), 127);
}
