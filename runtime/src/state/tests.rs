use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Instant;

use super::*;

fn root() -> (tempfile::TempDir, StateRoot) {
    let folder = tempfile::tempdir().unwrap();
    let root = StateRoot::new(Some(folder.path().join("deep/er")), |_| None);
    (folder, root)
}

fn state(status: &str) -> PodState {
    let container = ContainerState { name: "a".into(), status: status.into(), ..ContainerState::default() };
    PodState {
        id: "p".into(),
        status: status.into(),
        pid: 7,
        containers: vec![container],
        ..PodState::default()
    }
}

/// Waits until no process holds what this process has dropped: a child that another test has just forked holds a copy
/// until it executes its program.
#[track_caller]
fn until(done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "still held after 60 s");
        thread::yield_now();
    }
}

#[test]
fn a_pod_that_listens_is_alive_and_its_name_is_in_use() {
    let (_folder, root) = root();
    assert!(root.list().unwrap().is_empty());
    let directory = root.create("p").unwrap();
    let listener = directory.listen().unwrap();
    assert!(directory.is_living());
    assert!(matches!(root.create("p"), Err(StateError::Exists { living: true, .. })));
    drop(listener);
    // As after SIGKILL: the socket's file remains.
    until(|| !directory.is_living());
    assert!(matches!(directory.connect(), Err(StateError::Stopped(_))));
    let error = root.create("p").unwrap_err().to_string();
    assert_eq!(error, "pod \"p\" exists already; it has ended, `vmm pod rm` removes it");
    directory.remove().unwrap();
    assert!(matches!(root.open("p"), Err(StateError::Unknown(_))));
    root.create("p").unwrap();
}

#[test]
fn a_state_is_replaced_atomically_and_is_stopped_once_its_process_has_ended() {
    let (folder, root) = root();
    let directory = root.create("p").unwrap();
    assert_eq!(directory.read().unwrap(), PodState { id: "p".into(), ..PodState::default() });
    for status in ["starting", "running"] {
        directory.write(&state(status)).unwrap();
        assert_eq!(directory.read().unwrap(), state(status));
    }
    assert_eq!(directory.look().unwrap(), state("stopped"));
    let _listener = directory.listen().unwrap();
    assert_eq!(directory.look().unwrap(), state("running"));
    let files = fs::read_dir(folder.path().join("deep/er/p")).unwrap();
    let mut names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["logs", "sandbox.sock", "state.json"]);
    fs::write(folder.path().join("deep/er/p/state.json"), "{").unwrap();
    let error = directory.read().unwrap_err().to_string();
    assert!(error.starts_with("parse ") && error.ends_with("/state.json"), "{error}");
}

#[test]
fn a_container_s_id_is_claimed_once_and_remains_of_a_crash_are_ignored() {
    let (_folder, root) = root();
    let (directory, held) = root.claim("c").unwrap();
    assert!(directory.is_held() && directory.process().unwrap().is_some());
    let error = directory.wait_until_released(Duration::from_millis(1)).unwrap_err();
    assert_eq!(error.to_string(), "c: its machine has not ended within 0 s");
    assert!(root.claimed_by("c", std::process::id()).is_some() && root.claimed_by("c", 1).is_none());
    let exists = || root.claim("c").unwrap_err().to_string();
    assert_eq!(exists(), "container with id exists: c");
    // Killed before it had a state.
    drop(held);
    until(|| !directory.is_held());
    assert!(directory.process().unwrap().is_none());
    let (directory, held) = root.claim("c").unwrap();
    directory.write(&state("creating")).unwrap();
    // Killed before it had claimed the directory.
    drop(held);
    until(|| !directory.is_held());
    let (directory, held) = root.claim("c").unwrap();
    directory.write(&state("created")).unwrap();
    drop(held);
    until(|| !directory.is_held());
    // Killed with a state: the container exists until it is deleted.
    assert_eq!(exists(), "container with id exists: c");
    directory.wait_until_released(Duration::ZERO).unwrap();
    directory.remove().unwrap();
    assert_eq!(root.container("c").unwrap_err().to_string(), "container does not exist: c");
    assert!(root.list().unwrap().is_empty());
    root.claim("c").unwrap();
}

#[test]
fn a_pod_s_directory_is_not_a_container_s() {
    let (_folder, root) = root();
    let directory = root.create("p").unwrap();
    for status in ["", "starting", "running"] {
        directory.write(&state(status)).unwrap();
        assert_eq!(root.claim("p").unwrap_err().to_string(), "container with id exists: p", "{status}");
        assert_eq!(root.container("p").unwrap_err().to_string(), "container does not exist: p");
    }
    assert!(directory.log("a").parent().unwrap().exists());
}

#[test]
fn names_cannot_leave_the_root() {
    let (folder, root) = root();
    fs::create_dir_all(folder.path().join("deep/x")).unwrap();
    for name in ["../x", "..", "", ".", "a/b"] {
        assert!(matches!(root.open(name), Err(StateError::Unknown(_))), "{name}");
    }
    root.create("b").unwrap();
    root.create("a").unwrap();
    fs::write(folder.path().join("deep/er/file"), "").unwrap();
    let names: Vec<_> = root.list().unwrap().into_iter().map(|directory| directory.id).collect();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn a_pod_that_accepts_no_connection_is_alive_and_silent() {
    let (_folder, root) = root();
    let directory = root.create("p").unwrap();
    let _listener = directory.listen().unwrap();
    directory.write(&PodState { pid: std::process::id(), ..state("running") }).unwrap();
    // The queue becomes full at some point.
    let queued: Vec<_> = std::iter::repeat_with(|| directory.connect_within(Duration::ZERO))
        .take_while(|connected| !matches!(connected, Err(StateError::Silent { .. })))
        .map(Result::unwrap)
        .collect();
    assert!(!queued.is_empty() && directory.is_living());
    assert_eq!(directory.look().unwrap().status, "running");
    assert!(directory.process().unwrap().is_some());
}

#[test]
fn a_long_root_can_have_a_socket() {
    let folder = tempfile::tempdir().unwrap();
    let root = StateRoot::new(Some(folder.path().join("x".repeat(200))), |_| None);
    let directory = root.create("p").unwrap();
    let _listener = directory.listen().unwrap();
    assert!(directory.is_living());
    directory.stop_listening();
    assert!(!directory.is_living());
}

#[test]
fn a_root_that_others_can_change_is_refused() {
    let (_folder, root) = root();
    root.create("p").unwrap();
    for mode in [0o777, 0o1777, 0o702] {
        fs::set_permissions(&root.0, fs::Permissions::from_mode(mode)).unwrap();
        let refused = |result: Result<()>| {
            let error = result.unwrap_err().to_string();
            assert_eq!(error, format!("state directory {} can be written by every user", root.0.display()));
        };
        refused(root.create("q").map(drop));
        refused(root.claim("q").map(drop));
        refused(root.open("p").map(drop));
        refused(root.container("p").map(drop));
        refused(root.list().map(drop));
        refused(root.wait_for_claims());
    }
    fs::set_permissions(&root.0, fs::Permissions::from_mode(0o755)).unwrap();
    root.open("p").unwrap();
}
