//! Checkpoints: a running container is saved, and goes on in another machine.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tests::{Bundle, ConsoleSocket, Running, StateDir, until};

use crate::lifecycle::{Container, reap};
use crate::network::Nets;

/// Memory of the machines.
const MEMORY: (&str, &str) = ("VMM_MEMORY", "128");
/// Time in which something appears.
const DEADLINE: Duration = Duration::from_secs(120);

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Copies a checkpoint to another directory.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("create a directory");
    fs::set_permissions(to, Permissions::from_mode(0o700)).expect("chmod");
    for name in ["memory", "state"] {
        fs::copy(from.join(name), to.join(name)).expect("copy a file");
    }
}

/// `vmm restore` of a checkpoint as container `id` in the foreground.
fn restore(state: &StateDir, bundle: &Bundle, image: &Path, id: &str) -> Command {
    bundle.write();
    let mut command = state.command(&["restore", "--image-path"]);
    command.arg(image).arg("--bundle").arg(bundle.path()).arg(id);
    command
}

/// Starts a bundle as container `c` in the foreground.
fn run(state: &StateDir, bundle: &Bundle) -> Running {
    bundle.write();
    let mut command = state.command(&["run", "--bundle"]);
    command.arg(bundle.path()).arg("c").env(MEMORY.0, MEMORY.1);
    Running::start(command)
}

fn text(path: &Path) -> String {
    path.to_str().expect("the path is UTF-8").to_owned()
}

/// The words of `vmm checkpoint`.
fn words(image: &Path, more: &[&str]) -> Vec<String> {
    let given = ["checkpoint", "--image-path"].map(str::to_owned).into_iter().chain([text(image)]);
    given.chain(more.iter().map(|word| (*word).to_owned())).collect()
}

#[track_caller]
fn checkpoint(state: &StateDir, image: &Path, more: &[&str]) {
    let words = words(image, more);
    state.out(&words.iter().map(String::as_str).collect::<Vec<_>>());
}

#[track_caller]
fn refused(state: &StateDir, image: &Path, why: &str) {
    let words = words(image, &["c"]);
    let said = state.error(1, &words.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(said.contains(why), "{said}");
    assert!(!image.join("state").exists());
}

/// Counts until /go is there. Then prints what it kept: lines of an open file of a volume, an environment variable, a file in
/// memory.
const COUNTER: &str = "
    export KEEP=kept
    echo in-memory > /mnt/memory/file
    exec 3>/log 4</mnt/volume/data
    read first <&4
    n=0
    while [ ! -e /go ]; do
        n=$((n+1)); echo $n; echo $n >&3
        sleep 0.1
    done
    read second <&4
    echo \"$first $second $KEEP $(cat /mnt/memory/file)\"
    exit 3";

#[test]
fn a_container_goes_on_where_it_was_saved() {
    let volume = tempfile::TempDir::new().expect("create a directory");
    fs::write(volume.path().join("data"), "one\ntwo\n").expect("write a file");
    let bundle = Bundle::sh(COUNTER)
        .mount(json!({"destination": "/mnt/memory", "type": "tmpfs", "source": "tmpfs"}))
        .mount(json!({"destination": "/mnt/volume", "type": "bind", "source": volume.path(), "options": ["bind"]}));
    let (log, go) = (bundle.rootfs().join("log"), bundle.rootfs().join("go"));
    let path = bundle.path().to_owned();
    let container = Container::new(bundle);
    let image = container.path("image");
    let pid = container.create_with(&[MEMORY]);
    container.out(&["start", "c"]);
    until("output", || lines(&container.path("stdout")).get(3).cloned());
    checkpoint(&container.state, &image, &["c"]);
    // As after SIGKILL, with which CRIU ends the processes that it saves.
    assert_eq!(reap(pid), Ok(137));
    assert_eq!(container.status(), "stopped");
    let before = lines(&container.path("stdout"));
    assert_eq!(lines(&log), before);
    let files = ["memory", "state", "inventory.img"].map(|name| (image.join(name), 0o600));
    for (path, mode) in [(image.clone(), 0o700)].into_iter().chain(files) {
        assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o777, mode, "{}", path.display());
    }
    container.out(&["delete", "c"]);

    let mut command =
        container.command(&["restore", "--detach", "--image-path", &text(&image), "--work-path", "/tmp"]);
    command.arg("--bundle").arg(path).arg("--pid-file").arg(container.path("pid2")).arg("c");
    let file = |name: &str| File::create(container.path(name)).expect("create a file");
    command.stdout(file("stdout2")).stderr(file("stderr2"));
    assert_eq!(tests::status(&mut command).code(), Some(0), "{}", container.read("stderr2"));
    let pid = container.pid("pid2");
    assert_eq!(container.status(), "running");
    until("output", || lines(&container.path("stdout2")).get(3).cloned());
    assert_eq!(container.out(&["exec", "c", "echo", "hello"]), "hello\n");
    fs::write(&go, "").expect("write a file");
    assert_eq!(reap(pid), Ok(3), "{}", container.read("stderr2"));
    let mut after = lines(&container.path("stdout2"));
    assert_eq!(after.pop().as_deref(), Some("one two kept in-memory"));
    let counted: Vec<String> = (1..=before.len() + after.len()).map(|n| n.to_string()).collect();
    assert_eq!([before, after].concat(), counted);
    assert_eq!(lines(&log), counted);
}

/// Prints random bytes and the time when /go is there.
const RANDOM: &str = "
    echo ready
    while [ ! -e /go ]; do sleep 0.1; done
    head -c 16 /dev/urandom | od -An -tx1
    date +%s";

#[test]
fn a_saved_container_goes_on_and_those_restored_from_it_are_others() {
    let (state, bundle) = (StateDir::new(), Bundle::sh(RANDOM));
    let image = state.beside("image");
    let mut first = run(&state, &bundle);
    first.wait_for("ready\n");
    checkpoint(
        &state,
        &image,
        &["--leave-running", "--tcp-established", "--ext-unix-sk", "--file-locks", "c"],
    );
    assert_eq!(state.out(&["exec", "c", "echo", "still"]), "still\n");
    // A copy is as good.
    let other = state.beside("copy");
    copy(&image, &other);
    let second = Running::start(restore(&state, &bundle, &image, "second"));
    let third = Running::start(restore(&state, &bundle, &other, "third"));
    for id in ["second", "third"] {
        until(id, || state.output(&["exec", id, "true"]).status.success().then_some(()));
        assert_eq!(state.out(&["exec", id, "cat", "/proc/1/comm"]), "sh\n");
        state.out(&["pause", id]);
        state.out(&["resume", id]);
    }
    assert_eq!(state.names(), ["c", "second", "third"]);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a time after 1970").as_secs();
    fs::write(bundle.rootfs().join("go"), "").expect("write a file");
    let mut all = Vec::new();
    for finished in [first.finish(), second.finish(), third.finish()] {
        let finished = finished.code(0);
        let words: Vec<String> = finished.text().split_whitespace().map(str::to_owned).collect();
        assert_eq!(words.len(), 17, "{finished}");
        let time: u64 = words[16].parse().expect("a time");
        assert!((now - 2..now + DEADLINE.as_secs()).contains(&time), "{time} is not about {now}");
        all.push(words[..16].concat());
    }
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 3, "{all:?}");
    assert_eq!(state.names(), Vec::<String>::new());
}

#[test]
fn a_checkpoint_that_was_changed_is_refused() {
    let (state, bundle) = (StateDir::new(), Bundle::sh("echo ready; exec sleep 1000"));
    let image = state.beside("image");
    let mut first = run(&state, &bundle);
    first.wait_for("ready\n");
    checkpoint(&state, &image, &["c"]);
    first.finish().code(137);
    let change = |name: &str, change: &dyn Fn(&Path), why: &str| {
        let changed = state.beside(name);
        copy(&image, &changed);
        change(&changed);
        let finished = Running::start(restore(&state, &bundle, &changed, "r")).finish();
        assert_ne!(finished.status.code(), Some(0));
        finished.says(&["checkpoint", why]);
        assert_eq!(state.names(), Vec::<String>::new());
    };
    let flip = |path: PathBuf, at: usize| {
        let mut bytes = fs::read(&path).expect("read a file");
        bytes[at] ^= 1;
        fs::write(path, bytes).expect("write a file");
    };
    let cut = |path: PathBuf| {
        let len = fs::metadata(&path).expect("stat").len();
        File::options().write(true).open(path).and_then(|file| file.set_len(len / 2)).expect("truncate");
    };
    change("a", &|image| flip(image.join("state"), 200), "its checksum is wrong");
    change("b", &|image| cut(image.join("state")), "its checksum is wrong");
    change("c", &|image| flip(image.join("memory"), 70_000), "the memory's file has changed");
    change("d", &|image| cut(image.join("memory")), "the memory's file has changed");
    change("e", &|image| fs::remove_file(image.join("state")).expect("remove"), "No such file");
    change(
        "f",
        &|image| chown(image.join("state"), Some(1000), None).expect("chown"),
        "belongs to user 1000",
    );
    let public = Permissions::from_mode(0o622);
    change(
        "g",
        &|image| fs::set_permissions(image.join("memory"), public.clone()).expect("chmod"),
        "others can write",
    );
    let whole = Running::start(restore(&state, &bundle, &image, "r"));
    until("container", || state.output(&["exec", "r", "true"]).status.success().then_some(()));
    whole.signal("KILL");
    whole.finish();
}

#[test]
fn a_file_that_was_replaced_is_stale_and_no_other() {
    let script = "exec 3</a 4</b; echo ready; while [ ! -e /go ]; do sleep 0.1; done
        cat <&3 || echo stale; cat <&4; cat /a";
    let (state, bundle) = (StateDir::new(), Bundle::sh(script));
    let image = state.beside("image");
    let [a, b] = ["a", "b"].map(|name| bundle.rootfs().join(name));
    fs::write(&a, "first\n").expect("write a file");
    fs::write(&b, "second\n").expect("write a file");
    let mut first = run(&state, &bundle);
    first.wait_for("ready\n");
    checkpoint(&state, &image, &["c"]);
    first.finish().code(137);
    fs::rename(&a, bundle.rootfs().join("old")).expect("rename");
    fs::write(&a, "other\n").expect("write a file");
    fs::write(bundle.rootfs().join("go"), "").expect("write a file");
    let finished = Running::start(restore(&state, &bundle, &image, "r")).finish().code(0);
    assert_eq!(finished.text(), "stale\nsecond\nother", "{finished}");
}

#[test]
fn what_cannot_be_saved_is_refused_by_name_and_goes_on() {
    let script =
        "echo x > /gone; exec 3</gone; rm /gone; echo ready; while [ ! -e /go ]; do sleep 0.1; done; cat <&3";
    let (state, bundle) = (StateDir::new(), Bundle::sh(script));
    let image = state.beside("image");
    let mut first = run(&state, &bundle);
    first.wait_for("ready\n");
    refused(&state, &image, "the file \"gone\", which the container has open, was removed or replaced");
    let exec = Running::start(state.command(&["exec", "c", "sleep", "1000"]));
    until("exec process", || state.out(&["ps", "--format", "json", "c"]).contains(',').then_some(()));
    refused(
        &state,
        &image,
        "execs, connections to its loopback interface and joined containers are not supported",
    );
    exec.stop();
    let said = state.error(1, &["checkpoint", "--pre-dump", "c"]);
    assert!(said.contains("--pre-dump: not supported"), "{said}");
    fs::write(bundle.rootfs().join("go"), "").expect("write a file");
    let finished = first.finish().code(0);
    assert_eq!(finished.text(), "x");
    let said = state.error(1, &["checkpoint", "c"]);
    assert!(said.contains("container does not exist"), "{said}");
}

/// Starts `vmm checkpoint` of the container `c`, and returns it while the memory is being written.
fn start_to_save(state: &StateDir, image: &Path) -> Child {
    let words = words(image, &["c"]);
    let mut command = state.command(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let saving = command.stderr(Stdio::null()).spawn().expect("start vmm checkpoint");
    until("memory", || fs::metadata(image.join("memory")).ok().filter(|file| file.len() > 0));
    saving
}

#[test]
fn a_container_goes_on_if_its_checkpoint_is_interrupted() {
    let (state, bundle) =
        (StateDir::new(), Bundle::sh("echo ready; while [ ! -e /go ]; do sleep 0.1; done; echo over"));
    let image = state.beside("image");
    let mut first = run(&state, &bundle);
    first.wait_for("ready\n");
    let mut saving = start_to_save(&state, &image);
    saving.kill().expect("kill vmm checkpoint");
    saving.wait().expect("wait for vmm checkpoint");
    assert!(!image.join("state").exists());
    state.out(&["exec", "c", "true"]);
    fs::write(bundle.rootfs().join("go"), "").expect("write a file");
    first.finish().code(0).stdout("over\n");
}

#[test]
fn a_container_that_is_killed_while_it_is_saved_leaves_no_checkpoint() {
    let (state, bundle) = (StateDir::new(), Bundle::sh("echo ready; exec sleep 1000"));
    let image = state.beside("image");
    let mut first = run(&state, &bundle);
    first.wait_for("ready\n");
    let mut saving = start_to_save(&state, &image);
    let pid = Pid::from_raw(first.pid() as i32).expect("a process");
    kill_process(pid, Signal::KILL).expect("kill the container's process");
    let status = saving.wait().expect("wait for vmm checkpoint");
    first.finish();
    assert_eq!(status.success(), image.join("state").exists());
    if !status.success() {
        let finished = Running::start(restore(&state, &bundle, &image, "r")).finish();
        finished.says(&["checkpoint", "No such file"]);
    }
}

#[test]
fn a_restored_container_has_the_interfaces_of_its_network_namespace() {
    let nets = Nets::joined();
    let script = "echo ready; while [ ! -e /go ]; do sleep 0.1; done
        ip -o addr show dev eth0 | awk '$3 == \"inet\" {print $4}'; ping -c 1 -W 60 10.9.0.1 >/dev/null && echo reached";
    let (state, bundle) = (StateDir::new(), nets.bundle(script));
    let image = state.beside("image");
    let mut first = run(&state, &bundle);
    first.wait_for("ready\n");
    let ping = ["exec", "c", "ping", "-c", "1", "-W", "60", "10.9.0.1"];
    state.out(&ping);
    checkpoint(&state, &image, &["--leave-running", "c"]);
    state.out(&ping);
    checkpoint(&state, &image, &["c"]);
    first.finish().code(137);
    assert_eq!(nets.traces(), "");
    let second = Running::start(restore(&state, &bundle, &image, "r"));
    until("container", || state.output(&["exec", "r", "true"]).status.success().then_some(()));
    fs::write(bundle.rootfs().join("go"), "").expect("write a file");
    let finished = second.finish().code(0);
    assert_eq!(finished.text(), "10.9.0.2/24\nreached", "{finished}");
    assert_eq!(nets.traces(), "");
}

#[test]
fn a_restored_container_has_a_new_terminal() {
    let script = "echo up; read line; echo got-$line; stty size; read line; exit 5";
    let bundle = Bundle::sh(script).with(|config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({"height": 12, "width": 34});
    });
    let path = bundle.path().to_owned();
    let container = Container::new(bundle);
    let (first, second, image) =
        (container.path("1.sock"), container.path("2.sock"), container.path("image"));
    let socket = ConsoleSocket::at(&first);
    let mut create = container.command(&["create", "--console-socket", &text(&first)]);
    assert_eq!(container.run_create(create.env(MEMORY.0, MEMORY.1)), 0, "{}", container.read("stderr"));
    let pid = container.pid("pid");
    let mut controller = socket.take();
    container.out(&["start", "c"]);
    controller.wait_for("up");
    checkpoint(&container.state, &image, &["--shell-job", "c"]);
    assert_eq!(reap(pid), Ok(137));
    container.out(&["delete", "c"]);
    let socket = ConsoleSocket::at(&second);
    let mut command = container.command(&["restore", "--detach", "--image-path", &text(&image)]);
    command.arg("--bundle").arg(path).arg("--pid-file").arg(container.path("pid2"));
    let status = tests::status(command.arg("--console-socket").arg(&second).arg("c"));
    assert_eq!(status.code(), Some(0));
    let mut controller = socket.take();
    controller.type_keys("key\n");
    controller.wait_for("got-key");
    controller.wait_for("12 34");
    controller.type_keys("\n");
    assert_eq!(reap(container.pid("pid2")), Ok(5));
}

#[test]
fn a_restored_container_is_saved_again() {
    let script = "x=1; echo ready; while [ ! -e /go ]; do sleep 0.1; done; echo $x over; exit 4";
    let (state, bundle) = (StateDir::new(), Bundle::sh(script));
    let (image, next) = (state.beside("image"), state.beside("next"));
    let mut first = run(&state, &bundle);
    first.wait_for("ready\n");
    checkpoint(&state, &image, &["c"]);
    first.finish().code(137);
    let second = Running::start(restore(&state, &bundle, &image, "second"));
    until("container", || state.output(&["exec", "second", "true"]).status.success().then_some(()));
    // The second one has the first one's name in the guest, and its pages in the first one's file.
    let saved = words(&next, &["second"]);
    let saved: Vec<&str> = saved.iter().map(String::as_str).collect();
    until("checkpoint without the exec process", || state.output(&saved).status.success().then_some(()));
    second.finish().code(137);
    fs::remove_dir_all(&image).expect("remove the first checkpoint");
    fs::write(bundle.rootfs().join("go"), "").expect("write a file");
    Running::start(restore(&state, &bundle, &next, "third")).finish().code(4).stdout("1 over\n");
}
