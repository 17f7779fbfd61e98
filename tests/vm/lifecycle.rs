//! The life of an OCI container as engines drive it: this process does what their shims do, and reaps what `vmm create`
//! leaves behind.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{Bundle, ConsoleSocket, program};

pub(crate) mod faults;

/// The longest wait for a process's end.
const DEADLINE: Duration = Duration::from_secs(300);

/// A container `c` with a state directory of its own; what of it still runs goes with it.
pub(crate) struct Container {
    dir: TempDir,
    bundle: Bundle,
}

impl Container {
    pub(crate) fn new(bundle: Bundle) -> Container {
        // Whoever `vmm create` leaves behind is ours to reap, as it is a shim's.
        set_child_subreaper(Some(rustix::process::getpid())).expect("become a subreaper");
        Container { dir: TempDir::new().expect("make a folder"), bundle }
    }

    fn sh(script: &str) -> Container {
        Container::new(Bundle::sh(script))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.arg("--root").arg(self.path("state")).args(words).stdin(Stdio::null());
        command
    }

    fn output(&self, words: &[&str]) -> Output {
        tests::output(&mut self.command(words))
    }

    /// The output of a command that succeeds.
    #[track_caller]
    pub(crate) fn out(&self, words: &[&str]) -> String {
        let output = self.output(words);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {} {error}", output.status);
        String::from_utf8(output.stdout).expect("output is text")
    }

    /// The error of a command that fails with `code`.
    #[track_caller]
    pub(crate) fn error(&self, code: i32, words: &[&str]) -> String {
        let output = self.output(words);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
        text
    }

    /// `vmm create` with more flags, and files for standard output and error.
    fn try_create(&self, flags: &[&str]) -> i32 {
        self.run_create(self.command(&["create"]).args(flags))
    }

    pub(crate) fn run_create(&self, create: &mut Command) -> i32 {
        self.bundle.command();
        let file = |name: &str| File::create(self.path(name)).expect("make a file");
        create.arg("--bundle").arg(self.bundle.path()).arg("--pid-file").arg(self.path("pid")).arg("c");
        create.stdout(file("stdout")).stderr(file("stderr"));
        tests::status(create).code().expect("it exits")
    }

    #[track_caller]
    pub(crate) fn create(&self) -> Pid {
        self.create_with(&[])
    }

    /// `vmm create` with a machine's settings from the environment.
    #[track_caller]
    pub(crate) fn create_with(&self, settings: &[(&str, &str)]) -> Pid {
        let code = self.run_create(self.command(&["create"]).envs(settings.iter().copied()));
        assert_eq!(code, 0, "{}", self.read("stderr"));
        self.pid("pid")
    }

    #[track_caller]
    pub(crate) fn pid(&self, file: &str) -> Pid {
        Pid::from_raw(self.read(file).parse().expect("a number")).expect("a process")
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    #[track_caller]
    fn state(&self) -> Value {
        serde_json::from_str(&self.out(&["state", "c"])).expect("parse the state")
    }

    #[track_caller]
    pub(crate) fn status(&self) -> String {
        self.state()["status"].as_str().expect("a status").to_owned()
    }

    /// Whether nothing of it is left in the state directory.
    pub(crate) fn is_gone(&self) -> bool {
        !self.path("state/c").exists()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.output(&["delete", "--force", "c"]);
    }
}

/// Reaps a process that was left to us; returns its exit code, or the signal that ended it.
#[track_caller]
pub(crate) fn reap(pid: Pid) -> Result<i32, i32> {
    let (send, receive) = channel();
    thread::spawn(move || {
        // Whoever waited may have given up.
        send.send(waitpid(Some(pid), WaitOptions::empty())).ok();
    });
    let waited = receive.recv_timeout(DEADLINE).expect("the process ends").expect("it is ours to reap");
    let (_, status) = waited.expect("its status");
    status.exit_status().ok_or_else(|| status.terminating_signal().expect("a signal"))
}

#[test]
fn a_container_lives_from_create_to_delete() {
    let container = Container::sh("trap 'echo bye; exit 7' TERM; echo hello; while :; do sleep 1; done");
    let pid = container.create();
    let state = container.state();
    assert_eq!((&state["status"], &state["id"]), (&json!("created"), &json!("c")));
    assert_eq!(state["pid"], json!(pid.as_raw_nonzero().get()));
    assert_eq!(state["bundle"], json!(container.bundle.path()));
    assert_eq!(container.read("stdout"), "");
    container.out(&["start", "c"]);
    assert_eq!(container.status(), "running");
    assert_eq!(container.out(&["exec", "c", "sh", "-c", "echo $0-$(id -u)"]), "sh-0\n");
    container.error(255, &["exec", "c", "no-such-program"]);
    assert_eq!(container.out(&["ps", "--format", "json", "c"]), format!("[{}]", pid.as_raw_nonzero()));
    assert_eq!(container.out(&["list", "--quiet"]), "c\n");
    assert!(container.error(1, &["delete", "c"]).contains("that is not stopped: running"));
    assert!(container.error(1, &["start", "c"]).contains("already running"));
    container.out(&["pause", "c"]);
    assert_eq!(container.status(), "paused");
    container.out(&["resume", "c"]);
    container.out(&["kill", "c"]);
    assert_eq!(reap(pid), Ok(7));
    assert_eq!(container.read("stdout"), "hello\nbye\n");
    let state = container.state();
    assert_eq!((&state["status"], &state["pid"]), (&json!("stopped"), &json!(0)));
    assert!(container.error(1, &["kill", "c"]).contains("container not running"));
    container.out(&["delete", "c"]);
    assert!(container.is_gone());
    assert!(container.error(1, &["state", "c"]).contains("container does not exist"));
}

#[test]
fn the_monitor_s_own_signals_go_to_the_container_and_its_death_is_its_end() {
    let container = Container::sh("echo up; exec sleep 1000");
    let pid = container.create();
    container.out(&["start", "c"]);
    kill_process(pid, Signal::INT).expect("signal the container's process");
    kill_process(pid, Signal::KILL).expect("kill the container's process");
    assert_eq!(reap(pid), Err(9));
    assert_eq!(container.status(), "stopped");
    container.out(&["delete", "c"]);
    assert!(container.is_gone());
}

#[test]
fn a_container_that_never_starts_ends_when_it_is_killed() {
    let container = Container::sh("echo never");
    let pid = container.create();
    assert_ne!(container.try_create(&[]), 0);
    assert!(container.read("stderr").contains("container with id exists: c"), "{}", container.read("stderr"));
    container.out(&["kill", "c", "KILL"]);
    assert_eq!(reap(pid), Ok(137));
    container.out(&["delete", "c"]);
    container.out(&["delete", "--force", "c"]);
    // A container that is created is deleted without force, as with runc.
    let pid = container.create();
    container.out(&["delete", "c"]);
    assert_eq!(reap(pid), Err(9));
    assert!(container.is_gone());
    assert_eq!(container.read("stdout"), "");
}

#[test]
fn a_program_that_is_not_there_is_told_in_the_words_that_engines_know() {
    let told = "exec: \"no-such-program\": executable file not found in $PATH";
    let container = Container::new(Bundle::new(&["no-such-program"]));
    assert_eq!(container.try_create(&[]), 1);
    assert!(container.read("stderr").contains(told), "{}", container.read("stderr"));
    assert!(container.is_gone());
    // Where a mount might bring it, the guest finds out.
    let mount = json!({"destination": "/opt", "type": "tmpfs", "source": "tmpfs"});
    let container = Container::new(Bundle::new(&["no-such-program"]).mount(mount));
    let pid = container.create();
    let error = container.error(1, &["start", "c"]);
    assert!(error.contains(told), "{error}");
    reap(pid).unwrap_or_default();
    assert_eq!(container.status(), "stopped");
}

#[test]
fn hooks_run_in_the_specification_s_order_with_the_state() {
    let folder = TempDir::new().expect("make a folder");
    let out = folder.path().join("out");
    let hook = |name: &str| {
        let script = format!("echo {name} $(grep -o '\"status\":\"[a-z]*\"') >> {}", out.display());
        json!([{"path": "/bin/busybox", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}])
    };
    let kinds = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    let hooks: Value = kinds.iter().map(|kind| ((*kind).to_owned(), hook(kind))).collect();
    let container = Container::new(Bundle::sh("exit 3").with(|config| config["hooks"] = hooks));
    let pid = container.create();
    container.out(&["start", "c"]);
    assert_eq!(reap(pid), Ok(3));
    container.out(&["delete", "c"]);
    let text = fs::read_to_string(&out).expect("read what the hooks wrote");
    let names: Vec<_> = text.lines().map(|line| line.split(' ').next().unwrap_or_default()).collect();
    assert_eq!(names, kinds, "{text}");
    assert!(text.contains("prestart \"status\":\"creating\""), "{text}");
    assert!(text.contains("startContainer \"status\":\"created\""), "{text}");
    assert!(text.contains("poststop \"status\":\"stopped\""), "{text}");
}

#[test]
fn a_hook_that_fails_fails_the_creation_and_nothing_is_left() {
    let hook =
        json!({"createRuntime": [{"path": "/bin/busybox", "args": ["sh", "-c", "echo no >&2; exit 4"]}]});
    let container = Container::new(Bundle::sh("true").with(|config| config["hooks"] = hook));
    let log = container.path("log");
    container.bundle.command();
    let mut create = container.command(&["--log"]);
    create.arg(&log).args(["--log-format", "json", "create", "--bundle"]);
    let status = tests::status(create.arg(container.bundle.path()).arg("c"));
    assert_eq!(status.code(), Some(1));
    let line: Value = serde_json::from_str(container.read("log").trim()).expect("a line of JSON");
    assert_eq!(line["level"], json!("error"));
    let told = line["msg"].as_str().expect("a message");
    assert!(told.contains("createRuntime hook /bin/busybox: exit status: 4: no"), "{told}");
    assert!(container.is_gone());
}

#[test]
fn a_terminal_goes_over_the_console_socket_and_follows_its_size() {
    // A trap runs between commands alone: a signal just before a read would wait for what is read.
    let script = "trap 'new=1' WINCH; stty size; until [ \"$new\" ]; do :; done; stty size; \
                  read line; echo got-$line; read line; exit 5";
    let container = Container::new(Bundle::sh(script).with(|config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({"height": 12, "width": 34});
    }));
    let (first, second) = (container.path("first.sock"), container.path("second.sock"));
    let taken = ConsoleSocket::at(&first);
    assert_eq!(container.try_create(&["--console-socket", first.to_str().expect("a text")]), 0);
    let pid = container.pid("pid");
    let mut controller = taken.take();
    container.out(&["start", "c"]);
    controller.wait_for("12 34");
    controller.resize(20, 50);
    controller.wait_for("20 50");
    controller.type_keys("key\n");
    controller.wait_for("got-key");
    // A further program, left behind with a terminal of its own.
    let taken = ConsoleSocket::at(&second);
    let process = json!({
        "terminal": true, "args": ["sh", "-c", "tty; read line; exit 6"], "cwd": "/", "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0}
    });
    fs::write(container.path("process.json"), process.to_string()).expect("write a process");
    let mut exec = container.command(&["exec", "--detach", "--process"]);
    exec.arg(container.path("process.json")).arg("--console-socket").arg(&second);
    exec.arg("--pid-file").arg(container.path("exec.pid")).arg("c");
    assert!(tests::status(&mut exec).success());
    let stub = container.pid("exec.pid");
    let mut other = taken.take();
    other.wait_for("/dev/pts/");
    other.type_keys("\n");
    assert_eq!(reap(stub), Ok(6));
    controller.type_keys("\n");
    assert_eq!(reap(pid), Ok(5));
}

#[test]
fn a_program_left_behind_goes_with_the_process_that_stands_for_it() {
    let container = Container::sh("while [ ! -e /tmp/over ]; do sleep 1; done; exit 0");
    let pid = container.create();
    container.out(&["start", "c"]);
    let script = "echo $$ > /tmp/pid; exec sleep 1000";
    let mut exec = container.command(&["exec", "--detach", "--pid-file"]);
    exec.arg(container.path("exec.pid")).args(["c", "sh", "-c", script]);
    exec.stdout(Stdio::null()).stderr(Stdio::null());
    assert!(tests::status(&mut exec).success());
    let stub = container.pid("exec.pid");
    let listed = container.out(&["ps", "--format", "json", "c"]);
    assert_eq!(listed, format!("[{},{}]", pid.as_raw_nonzero(), stub.as_raw_nonzero()));
    kill_process(stub, Signal::KILL).expect("kill the stub");
    assert_eq!(reap(stub), Err(9));
    container.out(&["exec", "c", "sh", "-c", "while kill -0 $(cat /tmp/pid); do :; done; touch /tmp/over"]);
    assert_eq!(reap(pid), Ok(0));
}

#[test]
fn a_container_s_process_is_in_its_cgroup_which_goes_with_delete() {
    let name = format!("vmm-test-life-{}", std::process::id());
    let bundle =
        Bundle::sh("exec sleep 100000").with(|c| c["linux"]["cgroupsPath"] = json!(format!("/{name}")));
    let container = Container::new(bundle);
    let pid = container.create();
    let own = fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).expect("read its cgroup");
    assert!(own.trim_end().ends_with(&format!("/{name}")), "{own}");
    let directory = Path::new("/sys/fs/cgroup").join(&name);
    assert!(directory.exists());
    container.out(&["start", "c"]);
    container.out(&["update", "--pids-limit", "50", "c"]);
    assert_eq!(container.out(&["exec", "c", "cat", "/sys/fs/cgroup/pids.max"]), "50\n");
    let stats: Value = serde_json::from_str(&container.out(&["events", "--stats", "c"])).expect("parse");
    assert_eq!((stats["type"].as_str(), stats["id"].as_str()), (Some("stats"), Some("c")));
    container.out(&["delete", "--force", "c"]);
    assert!(!directory.exists());
}

#[test]
fn a_further_process_is_in_the_cgroup_that_takes_it() {
    let container = Container::new(Bundle::sh("exec sleep 100000").with(|c| {
        let mounts = c["mounts"].as_array_mut().expect("the bundle has mounts");
        let cgroup = mounts.iter_mut().find(|mount| mount["destination"] == "/sys/fs/cgroup");
        cgroup.expect("the bundle mounts its cgroup")["options"] = json!(["rw"]);
    }));
    container.create();
    container.out(&["start", "c"]);
    let script = "mkdir /sys/fs/cgroup/a && exec cat /proc/self/cgroup";
    assert_eq!(container.out(&["exec", "c", "sh", "-c", script]), "0::/\n");
    assert_eq!(container.out(&["exec", "--cgroup", "/a", "c", "cat", "/proc/self/cgroup"]), "0::/a\n");
    let error = container.error(255, &["exec", "--cgroup", "b", "c", "true"]);
    assert!(error.contains("open the container's cgroup b: no such file or directory"), "{error}");
    container.error(255, &["exec", "--cgroup", "..", "c", "true"]);
    // What hands its controllers on may have no process of its own: neither the first, nor any further one.
    let script = "cd /sys/fs/cgroup; echo 1 > a/cgroup.procs; echo $$ > a/cgroup.procs; echo +pids > cgroup.subtree_control";
    assert_eq!(container.out(&["exec", "c", "sh", "-ec", script]), "");
    assert_eq!(container.out(&["exec", "c", "cat", "/proc/self/cgroup"]), "0::/a\n");
    container.out(&["delete", "--force", "c"]);
}
