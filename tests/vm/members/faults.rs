//! Ends that nobody asked for: of the machine, of a member's process, for lack of memory.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tests::Bundle;

use super::{Engine, PAUSE, SHARED, joining, member};
use crate::lifecycle::reap;

#[test]
fn members_end_with_the_machine() {
    for signal in [Signal::TERM, Signal::KILL] {
        let (mut engine, first) = Engine::with_first(Bundle::sh(PAUSE));
        let running = engine.run("running", member("echo up; exec sleep 1000", first));
        let created = engine.create("created", member(PAUSE, first));
        kill_process(first, signal).expect("signal the machine's process");
        let ended = if signal == Signal::KILL { Err(9) } else { Ok(0) };
        assert_eq!(reap(first), ended);
        assert_eq!((reap(running), reap(created)), (Ok(137), Ok(137)));
        for id in ["running", "created", "first"] {
            assert_eq!(engine.status(id), "stopped");
            engine.out(&["delete", id]);
        }
        assert!(engine.state.names().is_empty());
    }
}

#[test]
fn a_member_ends_with_its_process() {
    let (mut engine, first) = Engine::with_first(Bundle::sh(PAUSE));
    let all = [SHARED[0], SHARED[1], SHARED[2], ("pid", "pid")];
    let script = "while :; do sleep 1; done # second";
    let pid = engine.run("second", joining(Bundle::sh(script), first, &all));
    assert_eq!(engine.sh("first", "ps -o args | grep -c '[#] second'"), "1\n");
    kill_process(pid, Signal::KILL).expect("kill the member's process");
    assert_eq!(reap(pid), Err(9));
    assert_eq!((engine.status("second"), engine.status("first")), ("stopped".into(), "running".into()));
    // Deletion waits until the machine has dropped it.
    engine.out(&["delete", "second"]);
    assert_eq!(engine.sh("first", "ps -o args | grep -c '[#] second'; true"), "0\n");
    let again = engine.run("second", joining(Bundle::sh("exit 4"), first, &all));
    assert_eq!(reap(again), Ok(4));
    // One that was not started, and one that is deleted while it runs.
    let created = engine.create("third", member(PAUSE, first));
    engine.out(&["delete", "third"]);
    assert_eq!(reap(created), Err(9));
    let running = engine.run("third", member("exec sleep 1000", first));
    engine.out(&["delete", "--force", "third"]);
    assert_eq!(reap(running), Err(9));
    assert_eq!(engine.state.names(), ["first", "second"]);
}

#[test]
fn a_member_that_runs_out_of_memory_is_killed_alone() {
    let (mut engine, first) = Engine::with_first(Bundle::sh(PAUSE));
    engine.run("second", member(PAUSE, first));
    // tail(1) keeps the endless line in memory.
    let limited = member("tail /dev/zero", first)
        .with(|c| c["linux"]["resources"] = json!({"memory": {"limit": 32 << 20}}));
    let third = engine.run("third", limited);
    assert_eq!(reap(third), Ok(137));
    for id in ["first", "second"] {
        assert_eq!(engine.sh(id, "echo alive"), "alive\n");
    }
}

#[test]
fn nobody_joins_a_machine_that_is_ending_or_is_gone() {
    let script = "trap 'sleep 3; exit 0' TERM; while :; do sleep 1; done";
    let (mut engine, first) = Engine::with_first(Bundle::sh(script));
    let late = engine.create("late", member(PAUSE, first));
    kill_process(first, Signal::KILL).expect("kill the machine's process");
    assert_eq!(reap(first), Err(9));
    assert_eq!(reap(late), Ok(137));
    let error = engine.state.error(1, &["start", "late"]);
    assert!(error.contains("cannot start a container that has stopped"), "{error}");
    let error = engine.refusal(&member(PAUSE, first));
    assert!(error.contains("is no namespace of a container in a virtual machine"), "{error}");
    let own: Pid = Pid::from_raw(std::process::id() as i32).expect("a process");
    let error = engine.refusal(&member(PAUSE, own));
    assert!(error.contains("is no namespace of a container in a virtual machine"), "{error}");
}
