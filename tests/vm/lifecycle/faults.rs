//! Faults between create and delete: the reason is reported, and nothing is left on the host.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::Instant;

use tests::check_output;

use super::*;

/// Command lines of the processes that have the container's state directory among their arguments.
pub(crate) fn processes(container: &Container) -> Vec<String> {
    let mark = container.state.path().display().to_string();
    let all = fs::read_dir("/proc").expect("list processes").filter_map(Result::ok);
    let words = |entry: fs::DirEntry| {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).replace('\0', " ")
    };
    all.map(words).filter(|words| words.contains(&mark)).collect()
}

/// Whether no process of the container is left.
fn no_process_is_left(container: &Container) -> bool {
    processes(container).is_empty()
}

#[test]
fn one_of_two_concurrent_creates_gets_the_id() {
    let container = Container::sh("exit 5");
    container.bundle.write();
    let create = |file: &str| {
        let mut command = container.command(&["create", "--bundle"]);
        command.arg(container.bundle.path()).arg("--pid-file").arg(container.path(file)).arg("c");
        let error = File::create(container.path(&format!("{file}-error"))).expect("create a file");
        command.stdout(Stdio::null()).stderr(error).spawn().expect("start the program under test")
    };
    let codes = ["one", "two"].map(create).map(|child| tests::wait(child).code());
    assert!(codes == [Some(0), Some(1)] || codes == [Some(1), Some(0)], "{codes:?}");
    let (created, other) = if codes[0] == Some(0) { ("one", "two-error") } else { ("two", "one-error") };
    assert!(container.read(other).contains("container with id exists: c"), "{}", container.read(other));
    container.out(&["start", "c"]);
    assert_eq!(reap(container.pid(created)), Ok(5));
    container.out(&["delete", "c"]);
    assert!(container.is_gone() && no_process_is_left(&container));
}

/// A container with a cgroup that no other test uses, and the path of that cgroup.
pub(crate) fn in_cgroup(name: &str) -> (Container, PathBuf) {
    let place = format!("/vmm-test-{name}-{}", std::process::id());
    let bundle = Bundle::sh("sleep 1000").with(|c| c["linux"]["cgroupsPath"] = json!(place));
    (Container::new(bundle), PathBuf::from(format!("/sys/fs/cgroup{place}")))
}

/// Begins to create the container, and waits until its directory contains `step`.
fn begin(container: &Container, step: &str) -> Child {
    container.bundle.write();
    let mut command = container.command(&["create", "--bundle"]);
    command.arg(container.bundle.path()).arg("c").stdout(Stdio::null());
    let error = File::create(container.path("stderr")).expect("create a file");
    let create = command.stderr(error).spawn().expect("start the program under test");
    let until = Instant::now() + DEADLINE;
    while !container.path("state/c").join(step).exists() {
        assert!(Instant::now() < until, "no {step}: {}", container.read("stderr"));
        thread::yield_now();
    }
    create
}

/// The container's process according to its state file.
#[track_caller]
fn recorded_pid(container: &Container) -> Pid {
    let state: Value = serde_json::from_str(&container.read("state/c/state.json")).expect("parse the state");
    let pid = state["pid"].as_i64().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
    pid.expect("the state has a process")
}

#[test]
fn a_killed_create_leaves_nothing_after_a_delete() {
    for step in ["", "lock", "state.json", "sandbox.sock"] {
        let (container, cgroup) = in_cgroup("create");
        let mut create = begin(&container, step);
        create.kill().expect("kill the creation");
        tests::wait(create);
        // An engine does this whatever the create has reached.
        container.out(&["delete", "--force", "c"]);
        assert_eq!(processes(&container), [""; 0], "{step}");
        assert!(container.is_gone(), "{step}");
        assert!(!cgroup.exists(), "{step}");
    }
}

/// An engine that ends during its create may not delete the container later.
#[test]
fn a_killed_create_leaves_nothing_without_a_delete() {
    for step in ["state.json", "sandbox.sock"] {
        let (container, cgroup) = in_cgroup("forgotten");
        let mut create = begin(&container, step);
        let pid = recorded_pid(&container);
        create.kill().expect("kill the creation");
        if tests::wait(create).success() {
            // It was complete before.
            container.out(&["delete", "--force", "c"]);
        }
        let _ = reap(pid);
        assert!(container.is_gone(), "{step}: {}", container.read("stderr"));
        assert_eq!(processes(&container), [""; 0], "{step}");
        assert!(!cgroup.exists(), "{step}");
    }
}

#[test]
fn a_create_whose_monitor_is_killed_fails_and_leaves_nothing() {
    for step in ["state.json", "sandbox.sock"] {
        let (container, cgroup) = in_cgroup("own");
        let create = begin(&container, step);
        kill_process(recorded_pid(&container), Signal::KILL).expect("kill the container's process");
        let code = tests::wait(create).code();
        if code == Some(0) {
            // It was complete before.
            container.out(&["delete", "c"]);
        } else {
            let error = container.read("stderr");
            assert!(error.contains("process ended before the container was created"), "{code:?} {error}");
        }
        assert!(container.is_gone() && no_process_is_left(&container), "{step}");
        assert!(!cgroup.exists(), "{step}");
    }
}

/// System calls by which commands change something outside of their process.
const STEPS: [&str; 13] = [
    "mkdir",
    "rename",
    "write",
    "clone",
    "clone3",
    "bind",
    "listen",
    "connect",
    "sendto,sendmsg",
    "pidfd_send_signal",
    "unlink",
    "unlinkat",
    "rmdir",
];

/// `command`, in which strace kills the process that calls one of `step` for the `nth` time. Covers child processes.
fn killed_at(step: &str, nth: u32, command: &Command) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={step}")]);
    strace.args(["-e", &format!("inject={step}:signal=SIGKILL:when={nth}")]);
    strace.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null()).stdout(Stdio::null());
    strace
}

/// Deletes the container like an engine whose command failed, and asserts that nothing is left.
fn delete_and_check(container: &Container, cgroup: &Path, moment: &str) {
    container.out(&["delete", "--force", "c"]);
    assert_eq!(processes(container), [""; 0], "{moment}");
    assert!(container.is_gone() && !cgroup.exists(), "{moment}");
}

#[test]
fn a_create_killed_at_any_of_its_system_calls_leaves_nothing() {
    let mut kills = 0;
    for step in STEPS {
        for nth in 1.. {
            let (container, cgroup) = in_cgroup("steps");
            container.bundle.write();
            let mut create = container.command(&["create", "--bundle"]);
            create.arg(container.bundle.path()).arg("--pid-file").arg(container.path("pid")).arg("c");
            let mut create = killed_at(step, nth, &create);
            create.stderr(File::create(container.path("stderr")).expect("create a file"));
            let code = tests::status(&mut create).code();
            // A process that was not killed itself cleans up and reports the error.
            assert!(code != Some(1) || container.is_gone() && !cgroup.exists(), "{step} {nth}");
            let complete = code == Some(0) && container.status() == "created";
            delete_and_check(&container, &cgroup, &format!("{step} {nth}"));
            if complete {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 20, "{kills} kills");
}

/// No engine deletes the container after this kill, because its process does not exist yet.
#[test]
fn a_create_killed_before_it_forks_leaves_nothing() {
    let (container, cgroup) = in_cgroup("first");
    container.bundle.write();
    let mut create = container.command(&["create", "--bundle"]);
    create.arg(container.bundle.path()).arg("c");
    let status = tests::status(killed_at("clone", 1, &create).stderr(Stdio::null()));
    assert_eq!(status.signal(), Some(9));
    let until = Instant::now() + DEADLINE;
    while !no_process_is_left(&container) {
        assert!(Instant::now() < until, "{:?}", processes(&container));
        thread::yield_now();
    }
    assert!(container.is_gone() && !cgroup.exists());
}

#[test]
fn a_start_or_delete_killed_at_any_of_its_system_calls_leaves_nothing() {
    let mut kills = 0;
    for words in [&["start", "c"][..], &["delete", "--force", "c"]] {
        for step in STEPS {
            for nth in 1.. {
                let (container, cgroup) = in_cgroup("later");
                container.create();
                let mut command = killed_at(step, nth, &container.command(words));
                let complete = tests::status(command.stderr(Stdio::null())).success();
                delete_and_check(&container, &cgroup, &format!("{words:?} {step} {nth}"));
                if complete {
                    break;
                }
                kills += 1;
            }
        }
    }
    assert!(kills > 5, "{kills} kills");
}

#[test]
fn a_root_that_was_removed_before_the_start_is_reported() {
    let container = Container::sh("true");
    let pid = container.create();
    fs::remove_dir_all(container.bundle.rootfs()).expect("remove the root file system");
    let error = container.error(1, &["start", "c"]);
    assert!(error.to_lowercase().contains("no such file") || error.contains("not found"), "{error}");
    reap(pid).unwrap_or_default();
    assert_eq!(container.status(), "stopped");
    container.out(&["delete", "c"]);
    assert!(container.is_gone() && no_process_is_left(&container));
}

#[test]
fn a_full_disk_is_reported_and_leaves_nothing() {
    let container = Container::sh("true");
    let small = container.path("state");
    fs::create_dir(&small).expect("create a directory");
    check_output(Command::new("mount").args(["-t", "tmpfs", "-o", "size=16k,mode=755", "none"]).arg(&small));
    let filled = fs::write(small.join("filler"), vec![0; 64 << 10]);
    let code = container.try_create(&[]);
    let clean = no_process_is_left(&container) && container.is_gone();
    let error = container.read("stderr");
    check_output(Command::new("umount").arg(&small));
    assert!(filled.is_err());
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("No space left on device"), "{error}");
    assert!(clean);
}

#[test]
fn a_forced_delete_during_a_start_ends_both() {
    let container = Container::sh("exec sleep 1000");
    let pid = container.create();
    let start = container.command(&["start", "c"]).stderr(Stdio::null()).spawn().expect("start");
    container.out(&["delete", "--force", "c"]);
    tests::wait(start);
    assert!(reap(pid).is_err());
    assert!(container.is_gone() && no_process_is_left(&container));
}

#[test]
fn a_guest_panic_stops_the_container() {
    let bundle = Bundle::sh("echo c >/proc/sysrq-trigger; sleep 1000");
    let container = Container::new(bundle.with(|config| config["linux"]["readonlyPaths"] = json!([])));
    let pid = container.create();
    container.error(255, &["exec", "c", "true"]);
    container.out(&["start", "c"]);
    assert_eq!(reap(pid), Ok(125));
    assert_eq!(container.status(), "stopped");
    assert!(container.error(1, &["kill", "c"]).contains("container not running"));
    container.out(&["delete", "c"]);
    assert!(container.is_gone() && no_process_is_left(&container));
}
