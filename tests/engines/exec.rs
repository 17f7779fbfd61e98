//! Exec processes.

use tests::Terminal;

use crate::case::{Case, case};
use crate::engine::Engine;

pub const CASES: &[Case] = &[
    case!(output_input_and_exit_code).core(),
    case!(user_environment_and_folder).core(),
    case!(terminal).core(),
    case!(detached),
    case!(codes_of_programs_that_cannot_be_run),
    case!(sees_the_container),
    case!(ends_with_the_container),
    case!(privileged_has_all_capabilities),
    case!(many_at_once),
];

/// Starts a container that sleeps.
fn sleeper(engine: &Engine) {
    engine.start_container("sleeper", &["box", "sh", "-c", "echo ready; exec sleep 1000"], "ready");
}

fn output_input_and_exit_code(engine: &Engine) {
    sleeper(engine);
    let script = "cat; echo err >&2; exit 42";
    let done = engine.feed(&["exec", "-i", "sleeper", "sh", "-c", script], b"through\n");
    done.code(42).stdout("through\n").stderr("err\n");
}

fn user_environment_and_folder(engine: &Engine) {
    sleeper(engine);
    let script = "id -u; id -G; echo $COLOUR $HOME; pwd";
    let words = ["exec", "-u", "ann", "-e", "COLOUR=blue", "-w", "/tmp", "sleeper", "sh", "-c", script];
    assert_eq!(engine.ok(&words), "1000\n1000 10\nblue /home/ann\n/tmp");
    assert_eq!(engine.ok(&["exec", "-u", "12:34", "sleeper", "id"]), "uid=12 gid=34 groups=34");
}

fn terminal(engine: &Engine) {
    sleeper(engine);
    let mut terminal = Terminal::start(&engine.command(&["exec", "-it", "sleeper", "sh"]), 20, 60);
    terminal.wait_for("# ");
    terminal.type_keys("until stty size | grep '20 60'; do :; done\r");
    terminal.wait_for("\n20 60");
    terminal.type_keys("exit 9\r");
    assert_eq!(terminal.finish().code(), Some(9));
}

fn detached(engine: &Engine) {
    engine.start_container(
        "reader",
        &["box", "sh", "-c", "mkfifo /p; echo ready; cat /p; exec sleep 1000"],
        "ready",
    );
    engine.ok(&["exec", "-d", "reader", "sh", "-c", "echo from the side >/p"]);
    engine.wait_log("reader", "from the side");
}

fn codes_of_programs_that_cannot_be_run(engine: &Engine) {
    sleeper(engine);
    let missing = engine.run(&["exec", "sleeper", "nosuch"]);
    let code = missing.status.code();
    assert!(code == Some(126) || code == Some(127), "{missing}");
    assert!(missing.to_string().contains("executable file not found"), "{missing}");
    engine.run(&["exec", "sleeper", "/etc/passwd"]).code(126);
}

fn sees_the_container(engine: &Engine) {
    let words = [
        "--hostname",
        "house",
        "-v",
        "/made",
        "box",
        "sh",
        "-c",
        "echo here >/made/f; echo ready; exec sleep 1000",
    ];
    engine.start_container("sleeper", &words, "ready");
    let script = "hostname; cat /made/f; cat /proc/1/comm; grep -c ' cgroup2 ' /proc/self/mounts";
    assert_eq!(engine.ok(&["exec", "sleeper", "sh", "-c", script]), "house\nhere\nsleep\n1");
}

fn ends_with_the_container(engine: &Engine) {
    sleeper(engine);
    let mut inner = engine.start_command(&["exec", "sleeper", "sh", "-c", "echo begun; exec sleep 1000"]);
    inner.wait_for("begun");
    engine.ok(&["kill", "sleeper"]);
    inner.finish().code(137);
}

fn privileged_has_all_capabilities(engine: &Engine) {
    sleeper(engine);
    let all = engine.ok(&["exec", "--privileged", "sleeper", "grep", "CapEff", "/proc/self/status"]);
    let few = engine.ok(&["exec", "sleeper", "grep", "CapEff", "/proc/self/status"]);
    assert_ne!(all, few);
    assert!(all.ends_with("ffffffff"), "{all}");
}

fn many_at_once(engine: &Engine) {
    sleeper(engine);
    let number = |n: usize| ["exec".into(), "sleeper".into(), "echo".into(), n.to_string()];
    let all: Vec<_> = (0..10)
        .map(|n| {
            let words = number(n);
            engine.start_command(&words.each_ref().map(String::as_str))
        })
        .collect();
    for (n, one) in all.into_iter().enumerate() {
        one.finish().code(0).stdout(&format!("{n}\n"));
    }
}
