//! Standard streams and terminals of containers.

use std::fmt::Write;

use tests::Terminal;

use crate::case::{Case, case};
use crate::engine::Engine;

pub const CASES: &[Case] = &[
    case!(output_error_and_exit_code).core(),
    case!(codes_of_programs_that_cannot_be_run).core(),
    case!(input_is_copied).core(),
    case!(a_megabyte_of_log_is_whole),
    case!(terminal_of_its_own).core(),
    case!(attach_reads_and_writes),
];

fn output_error_and_exit_code(engine: &Engine) {
    let script = "echo out; echo err >&2; exit 3";
    engine.run(&["run", "--rm", "box", "sh", "-c", script]).code(3).stdout("out\n").stderr("err\n");
}

fn codes_of_programs_that_cannot_be_run(engine: &Engine) {
    let missing = engine.run(&["run", "--rm", "box", "nosuch"]).code(127);
    assert!(missing.to_string().contains("executable file not found"), "{missing}");
    engine.run(&["run", "--rm", "box", "/no/such"]).code(127);
    engine.run(&["run", "--rm", "box", "/etc/passwd"]).code(126);
}

fn input_is_copied(engine: &Engine) {
    let mut input = String::new();
    for number in 0..100_000 {
        writeln!(input, "{number}").expect("write to a string");
    }
    engine.feed(&["run", "-i", "--rm", "box", "cat"], input.as_bytes()).code(0).stdout(&input);
}

fn a_megabyte_of_log_is_whole(engine: &Engine) {
    engine.ok(&["run", "--name", "talker", "box", "sh", "-c", "seq 1 160000; seq 1 10 >&2"]);
    let log = engine.run(&["logs", "talker"]).code(0);
    let lines: Vec<u8> = (1..=160_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    assert!(log.stdout == lines, "{} bytes of {}", log.stdout.len(), lines.len());
    assert_eq!(log.stderr, b"1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n");
}

fn terminal_of_its_own(engine: &Engine) {
    let command = engine.command(&["run", "-it", "--rm", "box", "sh"]);
    let mut terminal = Terminal::start(&command, 33, 77);
    terminal.wait_for("# ");
    terminal.type_keys("tty\r");
    terminal.wait_for("/dev/pts/0");
    // The engine sends the size after the container has started.
    terminal.type_keys("until stty size | grep '33 77'; do :; done\r");
    terminal.wait_for("\n33 77");
    terminal.resize(44, 88);
    terminal.type_keys("until stty size | grep '44 88'; do :; done\r");
    terminal.wait_for("\n44 88");
    terminal.type_keys("exit 5\r");
    assert_eq!(terminal.finish().code(), Some(5));
}

fn attach_reads_and_writes(engine: &Engine) {
    let script = "while read l; do echo got $l; [ $l = two ] && exit 6; done";
    engine.ok(&["run", "-di", "--name", "echoer", "box", "sh", "-c", script]);
    let mut attached = engine.start_command(&["attach", "echoer"]);
    attached.write(b"one\n");
    attached.wait_for("got one");
    attached.write(b"two\n");
    attached.wait_for("got two");
    attached.finish().code(6);
    assert_eq!(engine.ok(&["wait", "echoer"]), "6");
}
