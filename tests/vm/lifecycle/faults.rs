//! Faults between create and delete: the reason is told, and nothing is left.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::Instant;

use tests::check_output;

use super::*;

/// The processes of the container's state directory: the program's own, by what they were called with.
pub(crate) fn processes(container: &Container) -> Vec<String> {
    let mark = container.path("state").display().to_string();
    let all = fs::read_dir("/proc").expect("list processes").filter_map(Result::ok);
    let words = |entry: fs::DirEntry| {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).replace('\0', " ")
    };
    all.map(words).filter(|words| words.contains(&mark)).collect()
}

/// Whether no such process is left.
fn no_process_is_left(container: &Container) -> bool {
    processes(container).is_empty()
}

#[test]
fn of_two_creations_at_once_one_has_the_id() {
    let container = Container::sh("exit 5");
    container.bundle.command();
    let create = |file: &str| {
        let mut command = container.command(&["create", "--bundle"]);
        command.arg(container.bundle.path()).arg("--pid-file").arg(container.path(file)).arg("c");
        let error = File::create(container.path(&format!("{file}-error"))).expect("make a file");
        command.stdout(Stdio::null()).stderr(error).spawn().expect("start the program under test")
    };
    let codes = ["one", "two"].map(create).map(|child| tests::wait(child).code());
    assert!(codes == [Some(0), Some(1)] || codes == [Some(1), Some(0)], "{codes:?}");
    let (made, other) = if codes[0] == Some(0) { ("one", "two-error") } else { ("two", "one-error") };
    assert!(container.read(other).contains("container with id exists: c"), "{}", container.read(other));
    container.out(&["start", "c"]);
    assert_eq!(reap(container.pid(made)), Ok(5));
    container.out(&["delete", "c"]);
    assert!(container.is_gone() && no_process_is_left(&container));
}

/// A container with a cgroup of its own, and that cgroup.
pub(crate) fn in_cgroup(name: &str) -> (Container, PathBuf) {
    let place = format!("/vmm-test-{name}-{}", std::process::id());
    let bundle = Bundle::sh("sleep 1000").with(|c| c["linux"]["cgroupsPath"] = json!(place));
    (Container::new(bundle), PathBuf::from(format!("/sys/fs/cgroup{place}")))
}

/// Begins a creation, and waits until there is `step` of it in the state's directory.
fn begin(container: &Container, step: &str) -> Child {
    container.bundle.command();
    let mut command = container.command(&["create", "--bundle"]);
    command.arg(container.bundle.path()).arg("c").stdout(Stdio::null());
    let error = File::create(container.path("stderr")).expect("make a file");
    let create = command.stderr(error).spawn().expect("start the program under test");
    let until = Instant::now() + DEADLINE;
    while !container.path("state/c").join(step).exists() {
        assert!(Instant::now() < until, "no {step}: {}", container.read("stderr"));
        thread::yield_now();
    }
    create
}

#[test]
fn a_creation_that_is_killed_leaves_nothing() {
    for step in ["", "lock", "state.json", "sandbox.sock"] {
        let (container, cgroup) = in_cgroup("create");
        let mut create = begin(&container, step);
        create.kill().expect("kill the creation");
        tests::wait(create);
        // What an engine does then, whatever there is.
        container.out(&["delete", "--force", "c"]);
        assert_eq!(processes(&container), [""; 0], "{step}");
        assert!(container.is_gone(), "{step}");
        assert!(!cgroup.exists(), "{step}");
    }
}

/// An engine that ends while it has a container made may not come back to delete it.
#[test]
fn a_creation_that_is_killed_and_forgotten_leaves_nothing() {
    for step in ["state.json", "sandbox.sock"] {
        let (container, cgroup) = in_cgroup("forgotten");
        let mut create = begin(&container, step);
        let state: Value =
            serde_json::from_str(&container.read("state/c/state.json")).expect("parse the state");
        let pid = state["pid"].as_i64().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        create.kill().expect("kill the creation");
        if tests::wait(create).success() {
            // It had been made by then.
            container.out(&["delete", "--force", "c"]);
        }
        let _ = reap(pid.expect("a process"));
        assert!(container.is_gone(), "{step}: {}", container.read("stderr"));
        assert_eq!(processes(&container), [""; 0], "{step}");
        assert!(!cgroup.exists(), "{step}");
    }
}

#[test]
fn a_creation_whose_own_process_is_killed_leaves_nothing() {
    for step in ["state.json", "sandbox.sock"] {
        let (container, cgroup) = in_cgroup("own");
        let create = begin(&container, step);
        let state: Value =
            serde_json::from_str(&container.read("state/c/state.json")).expect("parse the state");
        let pid = state["pid"].as_i64().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        kill_process(pid.expect("a process"), Signal::KILL).expect("kill the container's process");
        let code = tests::wait(create).code();
        if code == Some(0) {
            // It had been made by then.
            container.out(&["delete", "c"]);
        } else {
            let error = container.read("stderr");
            assert!(error.contains("process ended before the container was created"), "{code:?} {error}");
        }
        assert!(container.is_gone() && no_process_is_left(&container), "{step}");
        assert!(!cgroup.exists(), "{step}");
    }
}

/// System calls by which commands change what is outside of their process.
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

/// `command` and what it starts, where whoever is at such a system call for the `nth` time is killed there.
fn killed_at(step: &str, nth: u32, command: &Command) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={step}")]);
    strace.args(["-e", &format!("inject={step}:signal=SIGKILL:when={nth}")]);
    strace.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null()).stdout(Stdio::null());
    strace
}

/// What an engine does with a container that it gives up, and what is there of it then.
fn delete_and_look(container: &Container, cgroup: &Path, moment: &str) {
    container.out(&["delete", "--force", "c"]);
    assert_eq!(processes(container), [""; 0], "{moment}");
    assert!(container.is_gone() && !cgroup.exists(), "{moment}");
}

#[test]
fn a_creation_killed_at_any_of_its_steps_leaves_nothing() {
    let mut kills = 0;
    for step in STEPS {
        for nth in 1.. {
            let (container, cgroup) = in_cgroup("steps");
            container.bundle.command();
            let mut create = container.command(&["create", "--bundle"]);
            create.arg(container.bundle.path()).arg("--pid-file").arg(container.path("pid")).arg("c");
            let mut create = killed_at(step, nth, &create);
            create.stderr(File::create(container.path("stderr")).expect("make a file"));
            let code = tests::status(&mut create).code();
            // Who is not killed itself clears up, and says so.
            assert!(code != Some(1) || container.is_gone() && !cgroup.exists(), "{step} {nth}");
            let whole = code == Some(0) && container.status() == "created";
            delete_and_look(&container, &cgroup, &format!("{step} {nth}"));
            if whole {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 20, "{kills} steps");
}

/// Nobody comes to delete what the first process of a creation leaves that is killed.
#[test]
fn a_creation_killed_before_its_container_s_process_is_there_leaves_nothing() {
    let (container, cgroup) = in_cgroup("first");
    container.bundle.command();
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
fn a_start_or_deletion_killed_at_any_of_its_steps_leaves_nothing() {
    let mut kills = 0;
    for words in [&["start", "c"][..], &["delete", "--force", "c"]] {
        for step in STEPS {
            for nth in 1.. {
                let (container, cgroup) = in_cgroup("later");
                container.create();
                let mut command = killed_at(step, nth, &container.command(words));
                let whole = tests::status(command.stderr(Stdio::null())).success();
                delete_and_look(&container, &cgroup, &format!("{words:?} {step} {nth}"));
                if whole {
                    break;
                }
                kills += 1;
            }
        }
    }
    assert!(kills > 5, "{kills} steps");
}

#[test]
fn a_root_that_vanishes_before_the_start_is_told() {
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
fn a_full_disk_is_told_and_leaves_no_machine() {
    let container = Container::sh("true");
    let small = container.path("state");
    fs::create_dir(&small).expect("make a folder");
    check_output(Command::new("mount").args(["-t", "tmpfs", "-o", "size=16k", "none"]).arg(&small));
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
fn a_deletion_during_the_start_is_the_end_of_both() {
    let container = Container::sh("exec sleep 1000");
    let pid = container.create();
    let start = container.command(&["start", "c"]).stderr(Stdio::null()).spawn().expect("start");
    container.out(&["delete", "--force", "c"]);
    tests::wait(start);
    assert!(reap(pid).is_err());
    assert!(container.is_gone() && no_process_is_left(&container));
}

#[test]
fn a_guest_that_panics_is_a_container_that_has_stopped() {
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
