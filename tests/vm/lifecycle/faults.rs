//! Faults between create and delete: the reason is told, and nothing is left.

use std::process::Stdio;

use tests::check_output;

use super::*;

/// Whether no process of the container's state directory is left: the program's own, by what they were called with.
fn no_process_is_left(container: &Container) -> bool {
    let mark = container.path("state").display().to_string();
    let all = fs::read_dir("/proc").expect("list processes").filter_map(Result::ok);
    !all.into_iter().any(|entry| {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(&mark)
    })
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
    let mut both = ["one", "two"].map(create);
    let codes = both.each_mut().map(|child| child.wait().expect("wait").code());
    assert!(codes == [Some(0), Some(1)] || codes == [Some(1), Some(0)], "{codes:?}");
    let (made, other) = if codes[0] == Some(0) { ("one", "two-error") } else { ("two", "one-error") };
    assert!(container.read(other).contains("container with id exists: c"), "{}", container.read(other));
    container.out(&["start", "c"]);
    assert_eq!(reap(container.pid(made)), Ok(5));
    container.out(&["delete", "c"]);
    assert!(container.is_gone() && no_process_is_left(&container));
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
    let (error, clean) = (container.read("stderr"), no_process_is_left(&container));
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
    let mut start = container.command(&["start", "c"]).stderr(Stdio::null()).spawn().expect("start");
    container.out(&["delete", "--force", "c"]);
    start.wait().expect("wait for the start");
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
