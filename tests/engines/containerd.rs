//! containerd without Docker, with `ctr run --runc-binary`.

use std::path::PathBuf;

use tests::{Finished, busybox_rootfs, program};

use crate::case::{Case, case};
use crate::engine::Engine;

pub const CASES: &[Case] = &[
    case!(output_error_and_exit_code).core(),
    case!(task_is_listed_executed_and_killed),
    case!(pause_and_resume),
    case!(metrics),
    case!(a_kill_for_the_memory_limit_is_an_event),
];

/// Returns a root file system of busybox, which is created at the first call.
fn rootfs(engine: &Engine) -> PathBuf {
    let path = engine.dir().join("rootfs");
    if !path.exists() {
        std::fs::create_dir(&path).expect("create a directory");
        busybox_rootfs(&path);
    }
    path
}

/// `ctr run` with these flags and this command.
fn run(engine: &Engine, flags: &[&str], id: &str, words: &[&str]) -> Finished {
    let all = run_words(engine, flags, id, words);
    engine.run(&all.iter().map(String::as_str).collect::<Vec<_>>())
}

fn run_words(engine: &Engine, flags: &[&str], id: &str, words: &[&str]) -> Vec<String> {
    let binary = if engine.is_vm() { program() } else { PathBuf::from("/usr/sbin/runc") };
    let rootfs = rootfs(engine);
    let mut all = vec!["run".to_owned(), "--runc-binary".to_owned(), binary.display().to_string()];
    all.extend(flags.iter().map(ToString::to_string));
    // Without an image there is no PATH, in which runc looks for the program.
    all.extend(["--env".to_owned(), "PATH=/bin".to_owned()]);
    all.extend(["--rootfs".to_owned(), rootfs.display().to_string(), id.to_owned()]);
    all.extend(words.iter().map(ToString::to_string));
    all
}

fn start(engine: &Engine, id: &str) {
    run(engine, &["-d"], id, &["sleep", "1000"]).code(0);
}

fn end(engine: &Engine, id: &str) {
    engine.ok(&["task", "kill", "-s", "SIGKILL", id]);
    engine.run(&["task", "wait", id]);
    engine.run(&["task", "delete", id]);
    engine.ok(&["container", "delete", id]);
}

fn output_error_and_exit_code(engine: &Engine) {
    let script = "echo out; echo err >&2; exit 3";
    run(engine, &["--rm"], "first", &["sh", "-c", script]).code(3).stdout("out\n").stderr("err\n");
}

fn task_is_listed_executed_and_killed(engine: &Engine) {
    start(engine, "second");
    assert!(engine.ok(&["task", "list"]).contains("RUNNING"));
    let done = engine.run(&["task", "exec", "--exec-id", "more", "second", "sh", "-c", "echo more; exit 5"]);
    done.code(5).stdout("more\n");
    assert!(engine.ok(&["task", "ps", "second"]).lines().count() >= 2);
    end(engine, "second");
}

fn pause_and_resume(engine: &Engine) {
    start(engine, "third");
    engine.ok(&["task", "pause", "third"]);
    assert!(engine.ok(&["task", "list"]).contains("PAUSED"));
    engine.ok(&["task", "resume", "third"]);
    end(engine, "third");
}

fn metrics(engine: &Engine) {
    start(engine, "fourth");
    let text = engine.ok(&["task", "metrics", "fourth"]);
    assert!(text.contains("memory.usage") || text.contains("memory"), "{text}");
    end(engine, "fourth");
}

fn a_kill_for_the_memory_limit_is_an_event(engine: &Engine) {
    let mut events = engine.start_command(&["events"]);
    run(engine, &["--rm", "--memory-limit", "50331648"], "fifth", &["tail", "/dev/zero"]).code(137);
    let seen = events.wait_for("/tasks/delete");
    events.stop();
    assert!(seen.contains("/tasks/oom"), "{seen}");
}
