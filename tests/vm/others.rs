//! Other users of the host: what an attacker with an account can do to the containers of root, at each step of their
//! life, and with names that the attacker has taken beforehand.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, test_kill_process};
use serde_json::json;
use tests::{Bundle, StateDir, check_output, output, program};

use crate::lifecycle::Container;

/// User and group of the attacker.
const ATTACKER: u32 = 1001;

/// A shell of the attacker.
fn attacker(script: &str) -> Command {
    let mut command = Command::new("/bin/busybox");
    command.args(["sh", "-c", script]).uid(ATTACKER).gid(ATTACKER).current_dir("/");
    command
}

/// What the attacker's shell prints.
fn attack(script: &str) -> String {
    let output = output(&mut attacker(script));
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Every path below a directory, except a state that is being replaced.
fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    while next < found.len() {
        let entries = fs::read_dir(&found[next]).into_iter().flatten();
        let paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        found.extend(paths.into_iter().filter(|path| !path.ends_with("state.json.next")));
        next += 1;
    }
    found
}

/// Tries everything on the container `c` and its process.
#[track_caller]
fn attack_container(container: &Container, pid: Pid) {
    let root = container.path("state");
    assert!(root.join("c/state.json").exists(), "the attempts have an aim");
    let paths = below(&root);
    for path in &paths {
        let path = path.display();
        for attempt in [
            format!("cat {path}"),
            format!("ls {path}/"),
            format!("rm -rf {path}"),
            format!("mv {path} {path}.x"),
            format!("chmod 777 {path}"),
            format!("touch {path}/x"),
            format!("echo x >> {path}"),
        ] {
            let output = output(&mut attacker(&attempt));
            assert!(!output.status.success(), "{attempt}: {}", String::from_utf8_lossy(&output.stdout));
        }
    }
    assert_eq!(below(&root), paths, "nothing was created or removed");
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    for file in ["environ", "maps", "mem", "fd", "root/", "cwd/", "auxv"] {
        let text = attack(&format!("cat {process}/{file} || ls {process}/{file}"));
        assert!(text.contains("Permission denied"), "{file}: {text}");
    }
    assert!(attack(&format!("kill -9 {}", pid.as_raw_nonzero())).contains("not permitted"));
    let program = program();
    for words in [
        "state c",
        "list",
        "start c",
        "kill c KILL",
        "exec c true",
        "pause c",
        "delete --force c",
        "update --pids-limit 1 c",
        "pod list",
    ] {
        let text = attack(&format!("{} --root {} {words}; echo $?", program.display(), root.display()));
        assert!(!text.ends_with("\n0\n"), "{words}: {text}");
    }
}

#[test]
fn another_user_can_do_nothing_to_a_container_at_any_step() {
    let container = Container::new(Bundle::sh("exec sleep 100000"));
    // The attacker can pass through the directories above.
    fs::set_permissions(container.path("state").parent().unwrap(), fs::Permissions::from_mode(0o755))
        .unwrap();
    let pid = container.create();
    let state = container.path("state");
    let modes = [&state, &state.join("c")].map(|path| fs::metadata(path).unwrap().mode() & 0o7777);
    assert_eq!(modes, [0o700, 0o700]);
    attack_container(&container, pid);
    assert!(UnixStream::connect(state.join("c/sandbox.sock")).is_ok(), "its owner can connect");
    container.out(&["start", "c"]);
    attack_container(&container, pid);
    container.out(&["exec", "c", "true"]);
    container.out(&["pause", "c"]);
    attack_container(&container, pid);
    container.out(&["resume", "c"]);
    assert_eq!(container.status(), "running");
    container.out(&["kill", "c", "KILL"]);
    crate::lifecycle::reap(pid).unwrap();
    assert_eq!(container.status(), "stopped");
    container.out(&["delete", "c"]);
    assert!(container.is_gone());
}

/// A directory that everybody can write to, like /tmp, with the state directory of the attacker: it names a process of
/// root, which `delete` would kill.
fn planted() -> (StateDir, std::process::Child) {
    let state = StateDir::new();
    let victim = Command::new("/bin/busybox").args(["sleep", "100000"]).spawn().unwrap();
    let container = state.path().join("c");
    fs::create_dir_all(container.join("logs")).unwrap();
    fs::write(container.join("lock"), victim.id().to_string()).unwrap();
    let text = json!({"id": "c", "status": "running", "pid": victim.id(), "containers": []});
    fs::write(container.join("state.json"), text.to_string()).unwrap();
    for path in below(&state.path()) {
        chown(path, Some(ATTACKER), Some(ATTACKER)).unwrap();
    }
    (state, victim)
}

#[test]
fn a_state_directory_of_another_user_is_refused_by_every_command() {
    let (state, mut victim) = planted();
    let bundle = Bundle::sh("true");
    bundle.write();
    let bundle = bundle.path().to_str().unwrap();
    let before = below(&state.path());
    for words in [
        &["state", "c"][..],
        &["list"],
        &["start", "c"],
        &["kill", "c", "KILL"],
        &["exec", "c", "true"],
        &["pause", "c"],
        &["delete", "--force", "c"],
        &["create", "--bundle", bundle, "c"],
        &["create", "--bundle", bundle, "new"],
        &["run", "--bundle", bundle, "new"],
        &["pod", "list"],
        &["pod", "rm", "--force", "c"],
    ] {
        let output = state.output(words);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{words:?}");
        assert!(text.contains(&format!("belongs to user {ATTACKER}")), "{words:?}: {text}");
    }
    assert_eq!(below(&state.path()), before, "nothing was created or removed");
    test_kill_process(Pid::from_child(&victim)).expect("the victim lives");
    victim.kill().unwrap();
    victim.wait().unwrap();
}

#[test]
fn a_state_directory_that_everybody_can_write_to_is_refused() {
    let state = StateDir::new();
    for mode in [0o777, 0o1777] {
        fs::create_dir_all(state.path()).unwrap();
        fs::set_permissions(state.path(), fs::Permissions::from_mode(mode)).unwrap();
        let target = state.beside("target");
        fs::write(&target, "kept").unwrap();
        // The lock's name was taken beforehand.
        symlink(&target, state.path().join(".lock")).unwrap();
        let bundle = Bundle::sh("true");
        bundle.write();
        let text = state.error(1, &["create", "--bundle", bundle.path().to_str().unwrap(), "c"]);
        assert!(text.contains("can be written by every user"), "{text}");
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
        fs::remove_dir_all(state.path()).unwrap();
    }
}

#[test]
fn a_pid_file_follows_no_link_of_another_user() {
    let folder = tempfile::tempdir().unwrap();
    // Without the sticky bit: with it, the kernel may refuse to follow the link.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let [target, pid] = ["target", "pid"].map(|name| folder.path().join(name));
    fs::write(&target, "kept").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
    let link = |name: &str| format!("ln -s {} {}", target.display(), folder.path().join(name).display());
    check_output(&mut attacker(&format!("{}; {}", link("pid"), link(".pid"))));
    let run = Bundle::sh("echo ran").flag("--pid-file").flag(pid.to_str().unwrap()).run();
    run.code(0).stdout("ran\n");
    assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
    let metadata = fs::symlink_metadata(&pid).unwrap();
    assert!(metadata.is_file() && metadata.uid() == 0, "{metadata:?}");
    assert!(fs::read_to_string(&pid).unwrap().parse::<u32>().is_ok());
}
