//! A container on a terminal.

use std::process::Command;

use serde_json::json;
use tests::{Bundle, Terminal, check_output};

fn on_terminal(script: &str) -> Bundle {
    Bundle::sh(script).with(|c| c["process"]["terminal"] = json!(true))
}

#[test]
fn the_container_s_terminal_has_the_size_of_the_host_s() {
    let bundle = on_terminal("trap 'stty size; exit 0' WINCH; stty size; while :; do sleep 1; done");
    let mut terminal = Terminal::start(&bundle.command(), 33, 101);
    terminal.wait_for("33 101");
    terminal.resize(44, 99);
    terminal.wait_for("44 99");
    assert_eq!(terminal.finish().code(), Some(0));
}

#[test]
fn keys_reach_the_container_and_control_c_interrupts_it() {
    let bundle =
        on_terminal("trap 'echo interrupted; exit 9' INT; read a; echo got:$a; while :; do sleep 1; done");
    let mut terminal = Terminal::start(&bundle.command(), 24, 80);
    terminal.type_keys("hello\n");
    terminal.wait_for("got:hello");
    terminal.type_keys("\x03");
    terminal.wait_for("interrupted");
    assert_eq!(terminal.finish().code(), Some(9));
    assert!(terminal.is_cooked(), "the terminal was left raw");
}

#[test]
fn standard_streams_are_the_terminal() {
    let bundle = on_terminal(
        "test -t 0 && test -t 1 && test -t 2 && tty && ls -l /dev/console >/dev/null && echo all",
    );
    let mut terminal = Terminal::start(&bundle.command(), 24, 80);
    let shown = terminal.wait_for("all");
    assert!(shown.contains("/dev/pts/0") || shown.contains("/dev/console"), "{shown:?}");
    assert_eq!(terminal.finish().code(), Some(0));
}

#[test]
fn without_a_terminal_on_the_host_the_configured_size_applies() {
    let bundle =
        on_terminal("stty size").with(|c| c["process"]["consoleSize"] = json!({"height": 12, "width": 34}));
    bundle.run().code(0).stdout("12 34\r\n");
}

#[test]
fn the_terminal_is_raw_while_the_container_uses_it() {
    let bundle = on_terminal("echo up; sleep 1000");
    let mut terminal = Terminal::start(&bundle.command(), 24, 80);
    terminal.wait_for("up");
    assert!(!terminal.is_cooked(), "the terminal edits lines");
    check_output(Command::new("/bin/busybox").args(["kill", "-KILL", &terminal.pid().to_string()]));
    terminal.finish();
}

#[test]
fn the_terminal_is_restored_after_a_guest_panic() {
    let bundle = on_terminal("echo up; read a; echo c > /proc/sysrq-trigger").with(|c| {
        c["linux"]["readonlyPaths"] = json!([]);
        c["linux"]["maskedPaths"] = json!([]);
    });
    let mut terminal = Terminal::start(&bundle.command(), 24, 80);
    terminal.wait_for("up");
    terminal.type_keys("\n");
    assert_eq!(terminal.finish().code(), Some(125));
    assert!(terminal.is_cooked(), "the terminal was left raw");
}
