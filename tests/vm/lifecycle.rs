//! The life of an OCI container, from create to delete. This process takes the part of an engine's shim: it runs the
//! commands and reaps the process that `vmm create` leaves behind.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid};
use serde_json::{Value, json};
use tests::{Bundle, ConsoleSocket, StateDir};

use crate::hooks::{RecordingHooks, with_failing_hook};

pub(crate) mod faults;

/// Maximum time for a process to end.
const DEADLINE: Duration = Duration::from_secs(600);

/// Container `c` in a state directory that no other test uses. It is deleted on drop.
pub(crate) struct Container {
    pub(crate) state: StateDir,
    bundle: Bundle,
}

impl Container {
    pub(crate) fn new(bundle: Bundle) -> Container {
        // The processes that `vmm create` forks become children of this process, as of an engine's shim.
        set_child_subreaper(Some(rustix::process::getpid())).expect("become a subreaper");
        Container { state: StateDir::new(), bundle }
    }

    fn sh(script: &str) -> Container {
        Container::new(Bundle::sh(script))
    }

    /// The path of a file next to the state directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.state.beside(name)
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        self.state.command(words)
    }

    /// Returns what a command that succeeds prints.
    #[track_caller]
    pub(crate) fn out(&self, words: &[&str]) -> String {
        self.state.out(words)
    }

    /// Returns the error message of a command that fails with `code`.
    #[track_caller]
    pub(crate) fn error(&self, code: i32, words: &[&str]) -> String {
        self.state.error(code, words)
    }

    /// Runs `vmm create` with these additional flags and returns its exit code.
    fn try_create(&self, flags: &[&str]) -> i32 {
        self.run_create(self.command(&["create"]).args(flags))
    }

    /// Runs a `vmm create` with the bundle, the id, and files for its pid, standard output and error. Returns its exit
    /// code.
    pub(crate) fn run_create(&self, create: &mut Command) -> i32 {
        self.bundle.write();
        let file = |name: &str| File::create(self.path(name)).expect("create a file");
        create.arg("--bundle").arg(self.bundle.path()).arg("--pid-file").arg(self.path("pid")).arg("c");
        create.stdout(file("stdout")).stderr(file("stderr"));
        tests::status(create).code().expect("it exits")
    }

    #[track_caller]
    pub(crate) fn create(&self) -> Pid {
        self.create_with(&[])
    }

    /// Creates the container with settings of the machine in environment variables. Returns its process.
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

    /// What `vmm state` prints.
    #[track_caller]
    fn oci_state(&self) -> Value {
        serde_json::from_str(&self.out(&["state", "c"])).expect("parse the state")
    }

    #[track_caller]
    pub(crate) fn status(&self) -> String {
        self.oci_state()["status"].as_str().expect("a status").to_owned()
    }

    /// Whether the container's directory was removed.
    pub(crate) fn is_gone(&self) -> bool {
        !self.path("state/c").exists()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.state.output(&["delete", "--force", "c"]);
    }
}

/// Waits for the end of a child process. Returns its exit code, or the signal that terminated it.
#[track_caller]
pub(crate) fn reap(pid: Pid) -> Result<i32, i32> {
    let (send, receive) = channel();
    thread::spawn(move || {
        // The receiver is gone after the deadline.
        send.send(waitpid(Some(pid), WaitOptions::empty())).ok();
    });
    let waited = receive.recv_timeout(DEADLINE).expect("the process ends").expect("the process is a child");
    let (_, status) = waited.expect("waitpid returns a status");
    status.exit_status().ok_or_else(|| status.terminating_signal().expect("a signal terminated it"))
}

#[test]
fn a_container_lives_from_create_to_delete() {
    let container = Container::sh("trap 'echo bye; exit 7' TERM; echo hello; while :; do sleep 1; done");
    let pid = container.create();
    let state = container.oci_state();
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
    let state = container.oci_state();
    assert_eq!((&state["status"], &state["pid"]), (&json!("stopped"), &json!(0)));
    assert!(container.error(1, &["kill", "c"]).contains("container not running"));
    container.out(&["delete", "c"]);
    assert!(container.is_gone());
    assert!(container.error(1, &["state", "c"]).contains("container does not exist"));
}

#[test]
fn signals_to_the_monitor_reach_the_container_and_sigkill_ends_both() {
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
fn a_container_that_was_never_started_ends_when_it_is_killed() {
    let container = Container::sh("echo never");
    let pid = container.create();
    assert_ne!(container.try_create(&[]), 0);
    assert!(container.read("stderr").contains("container with id exists: c"), "{}", container.read("stderr"));
    container.out(&["kill", "c", "KILL"]);
    assert_eq!(reap(pid), Ok(137));
    container.out(&["delete", "c"]);
    container.out(&["delete", "--force", "c"]);
    // As with runc, a created container can be deleted without force.
    let pid = container.create();
    container.out(&["delete", "c"]);
    assert_eq!(reap(pid), Err(9));
    assert!(container.is_gone());
    assert_eq!(container.read("stdout"), "");
}

#[test]
fn a_missing_program_is_reported_with_runc_s_text() {
    let text = "exec: \"no-such-program\": executable file not found in $PATH";
    let container = Container::new(Bundle::new(&["no-such-program"]));
    assert_eq!(container.try_create(&[]), 1);
    assert!(container.read("stderr").contains(text), "{}", container.read("stderr"));
    assert!(container.is_gone());
    // A mount might contain the program, so the guest looks for it at the start.
    let mount = json!({"destination": "/opt", "type": "tmpfs", "source": "tmpfs"});
    let container = Container::new(Bundle::new(&["no-such-program"]).mount(mount));
    let pid = container.create();
    let error = container.error(1, &["start", "c"]);
    assert!(error.contains(text), "{error}");
    reap(pid).unwrap_or_default();
    assert_eq!(container.status(), "stopped");
}

#[test]
fn create_start_and_delete_pass_hooks_the_state_in_the_specification_s_order() {
    let hooks = RecordingHooks::new();
    let container = Container::new(hooks.of(Bundle::sh("exit 3")));
    let pid = container.create();
    container.out(&["start", "c"]);
    assert_eq!(reap(pid), Ok(3));
    container.out(&["delete", "c"]);
    let statuses = hooks.statuses();
    assert_eq!(statuses[..4], ["creating", "creating", "creating", "created"]);
    // The container may end before its poststart hook runs.
    assert!(["running", "stopped"].contains(&statuses[4].as_str()), "{statuses:?}");
    assert_eq!(statuses[5], "stopped");
}

#[test]
fn a_failed_hook_fails_create_and_leaves_nothing() {
    let container = Container::new(with_failing_hook());
    let log = container.path("log");
    container.bundle.write();
    let mut create = container.command(&["--log"]);
    create.arg(&log).args(["--log-format", "json", "create", "--bundle"]);
    let status = tests::status(create.arg(container.bundle.path()).arg("c"));
    assert_eq!(status.code(), Some(1));
    let line: Value = serde_json::from_str(container.read("log").trim()).expect("a line of JSON");
    assert_eq!(line["level"], json!("error"));
    let message = line["msg"].as_str().expect("a message");
    assert!(message.contains("createRuntime hook /bin/busybox: exit status: 4: no"), "{message}");
    assert!(container.is_gone());
}

#[test]
fn the_console_socket_gets_a_terminal_that_can_be_resized() {
    // A shell runs traps between commands only: after a signal just before `read` it would wait for input.
    let script = "trap 'new=1' WINCH; stty size; until [ \"$new\" ]; do :; done; stty size; \
                  read line; echo got-$line; read line; exit 5";
    let container = Container::new(Bundle::sh(script).with(|config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({"height": 12, "width": 34});
    }));
    let (first, second) = (container.path("first.sock"), container.path("second.sock"));
    let socket = ConsoleSocket::at(&first);
    let code = container.try_create(&["--console-socket", first.to_str().expect("the path is UTF-8")]);
    assert_eq!(code, 0, "{}", container.read("stderr"));
    let pid = container.pid("pid");
    let mut controller = socket.take();
    container.out(&["start", "c"]);
    controller.wait_for("12 34");
    controller.resize(20, 50);
    controller.wait_for("20 50");
    controller.type_keys("key\n");
    controller.wait_for("got-key");
    // A detached exec process with its own terminal.
    let socket = ConsoleSocket::at(&second);
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
    let mut other = socket.take();
    other.wait_for("/dev/pts/");
    other.type_keys("\n");
    assert_eq!(reap(stub), Ok(6));
    controller.type_keys("\n");
    assert_eq!(reap(pid), Ok(5));
}

#[test]
fn killing_the_stub_of_a_detached_exec_process_kills_the_process() {
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
fn the_monitor_is_in_the_container_s_cgroup_and_delete_removes_it() {
    let name = format!("vmm-test-life-{}", std::process::id());
    let bundle =
        Bundle::sh("exec sleep 100000").with(|c| c["linux"]["cgroupsPath"] = json!(format!("/{name}")));
    let container = Container::new(bundle);
    let pid = container.create();
    let own = fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero()))
        .expect("read the monitor's cgroup");
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
fn an_exec_process_joins_the_cgroup_that_accepts_it() {
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
    // A cgroup that passes controllers to its children cannot contain processes, neither init nor exec processes.
    let script = "cd /sys/fs/cgroup; echo 1 > a/cgroup.procs; echo $$ > a/cgroup.procs; echo +pids > cgroup.subtree_control";
    assert_eq!(container.out(&["exec", "c", "sh", "-ec", script]), "");
    assert_eq!(container.out(&["exec", "c", "cat", "/proc/self/cgroup"]), "0::/a\n");
    container.out(&["delete", "--force", "c"]);
}
