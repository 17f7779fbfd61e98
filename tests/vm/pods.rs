//! Pods: several containers in one machine, and the commands of a running pod.

use std::fs;
use std::process::{Command, Output};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};
use tests::{Bundle, Running, StateDir, Terminal, check_output, program};

/// Exec processes that run one after the other in one pod.
const EXECS: usize = 200;
/// Containers of a full pod.
const CONTAINERS: usize = 64;
/// Descriptors of the pod's process that may still be open when they are counted.
const CLOSING_MAX: usize = 8;
/// Permitted growth of the pod's process after many exec processes: memory that its allocator keeps.
const GROWTH_KIB: u64 = 2048;

/// Pod `p` in a state directory that no other test uses. It is removed on drop.
pub(crate) struct Pod {
    pub(crate) state: StateDir,
    /// The bundle whose root file system the containers use.
    image: Bundle,
}

impl Pod {
    pub(crate) fn new() -> Pod {
        Pod { state: StateDir::new(), image: Bundle::new(&["true"]) }
    }

    /// Describes a container of the image that runs `script`, with the fields of `more`.
    pub(crate) fn container(&self, name: &str, script: &str, more: Value) -> Value {
        let mut container = json!({
            "name": name, "image": self.image.rootfs(), "command": ["sh", "-c", script],
            "envs": [{"env": "PATH", "value": "/bin"}]
        });
        container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        container
    }

    /// `vmm pod` with these arguments.
    fn command(&self, words: &[&str]) -> Command {
        self.state.command(&pod(words))
    }

    /// Writes a podfile, or the description of a container. Returns its path.
    fn write(&self, name: &str, value: &Value) -> String {
        let path = self.state.beside(name);
        fs::write(&path, serde_json::to_vec(value).unwrap()).expect("write a podfile");
        path.display().to_string()
    }

    /// Runs the pod in the foreground.
    fn run(&self, pod: Value) -> Running {
        let path = self.write("pod.json", &pod);
        Running::start(self.command(&["run", &path]))
    }

    /// Runs the pod in the background. Returns once all its containers run.
    #[track_caller]
    pub(crate) fn detach(&self, mut pod: Value) {
        pod["id"] = json!("p");
        let path = self.write("pod.json", &pod);
        assert_eq!(self.out(&["run", "--detach", &path]), "p\n");
    }

    /// Returns what a `vmm pod` that succeeds prints.
    #[track_caller]
    fn out(&self, words: &[&str]) -> String {
        self.state.out(&pod(words))
    }

    fn output(&self, words: &[&str]) -> Output {
        self.state.output(&pod(words))
    }

    /// Returns the error message of a `vmm pod` that fails with `code`.
    #[track_caller]
    fn error(&self, code: i32, words: &[&str]) -> String {
        self.state.error(code, &pod(words))
    }

    fn exec(&self, container: &str, script: &str) -> Output {
        self.output(&["exec", "p", container, "sh", "-c", script])
    }

    #[track_caller]
    pub(crate) fn exec_out(&self, container: &str, script: &str) -> String {
        self.out(&["exec", "p", container, "sh", "-c", script])
    }

    /// The pod's entry in `vmm pod list`.
    fn listed(&self) -> Value {
        let all: Value = serde_json::from_str(&self.out(&["list", "--json"])).unwrap();
        all[0].clone()
    }

    /// A container's part of the pod's entry, or null.
    fn listed_container(&self, name: &str) -> Value {
        let pod = self.listed();
        let all = pod["containers"].as_array().unwrap();
        all.iter().find(|container| container["name"] == name).cloned().unwrap_or(Value::Null)
    }

    /// Returns the log of a container once it has ended.
    #[track_caller]
    fn wait(&self, container: &str) -> String {
        self.out(&["logs", "--follow", "p", container])
    }

    pub(crate) fn pid(&self) -> u64 {
        self.listed()["pid"].as_u64().unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.output(&["rm", "--force", "p"]);
    }
}

/// The arguments of a subcommand of `vmm pod`.
fn pod<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&["pod"], words].concat()
}

/// The lines of an output, sorted.
fn lines(text: &[u8]) -> Vec<String> {
    let mut lines: Vec<String> = String::from_utf8_lossy(text).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// The example of docs/pods.md.
#[test]
fn the_example_s_containers_share_network_and_processes_and_one_is_restarted() {
    let pod = Pod::new();
    let bin = pod.state.beside("rootfs/bin");
    fs::create_dir_all(&bin).unwrap();
    fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    let podfile = pod.state.beside("three.yaml");
    fs::write(&podfile, include_str!("../../resources/pods/three.yaml")).unwrap();
    let run = Running::start(pod.command(&["run", &podfile.display().to_string()])).finish().code(0);
    let expected = ["client | answer 1", "client | answer 2", "watcher | the server is there"];
    assert_eq!(lines(&run.stdout), expected, "{run}");
    // A pod in the foreground removes its directory.
    assert_eq!(pod.out(&["list", "--json"]), "[]\n");
    assert_eq!(fs::read_dir(pod.state.path()).unwrap().count(), 0);
}

#[test]
fn containers_of_a_pod_share_all_namespaces_but_mounts_and_requested_own_ones() {
    let pod = Pod::new();
    let show = "for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done; hostname";
    pod.detach(json!({"hostname": "shared", "containers": [
        pod.container("a", "echo here >/dev/shm/f; exec sleep 10000", json!({})),
        pod.container("b", "exec sleep 10000", json!({})),
        pod.container("c", "exec sleep 10000", json!({"ownPids": true})),
    ]}));
    let [a, b, c] = ["a", "b", "c"].map(|name| {
        let text = pod.exec_out(name, show);
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    });
    assert_eq!((a[..3].to_vec(), a[5].as_str()), (b[..3].to_vec(), "shared"));
    assert_eq!(a[3], b[3]);
    assert_ne!(a[4], b[4]);
    assert_eq!((&c[..3], &c[5]), (&a[..3], &a[5]));
    assert_ne!(c[3], a[3]);
    assert_eq!(pod.exec_out("b", "cat /dev/shm/f"), "here\n");
    assert_eq!(pod.exec_out("c", "cat /dev/shm/f; cat /proc/1/comm"), "here\nsleep\n");
    assert_eq!(
        pod.exec_out("a", "cat /proc/1/comm; ls /proc/1/root/ 2>/dev/null | wc -l; cat /etc/hostname"),
        "pod\n0\nshared\n"
    );
    // An orphan is reaped. `cat` ends when the orphan has exited.
    let orphan = "(true & exec true) | cat; while ps -o stat | grep -q Z; do :; done; echo reaped";
    assert_eq!(pod.exec_out("a", orphan), "reaped\n");
    // It sees processes of other containers, but not the agent.
    assert_eq!(pod.exec_out("a", "ps -o args | grep -c '^sleep'"), "2\n");
}

#[test]
fn pod_exec_behaves_like_the_process_that_it_runs() {
    let pod = Pod::new();
    pod.detach(
        json!({"containers": [pod.container("a", "exec sleep 10000", json!({"user": {"name": "ann"}}))]}),
    );
    for code in [0, 1, 2, 42, 125, 126, 127, 128, 200, 255] {
        assert_eq!(pod.exec("a", &format!("exit {code}")).status.code(), Some(code));
    }
    assert_eq!(pod.exec("a", "kill -TERM $$").status.code(), Some(143));
    assert!(pod.error(127, &["exec", "p", "a", "wonder"]).starts_with("vmm: exec"));
    assert!(pod.error(125, &["exec", "p", "b", "true"]).contains("no container \"b\""));
    let words = [
        "exec",
        "-e",
        "A=b c",
        "-w",
        "/tmp",
        "-u",
        "root",
        "p",
        "a",
        "sh",
        "-c",
        "echo $A; pwd; id -u; echo e >&2",
    ];
    let output = pod.output(&words);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "b c\n/tmp\n0\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "e\n");
    assert_eq!(pod.exec_out("a", "id -un; id -Gn"), "ann\nann\n");
    // The process reads the input and its end.
    let cat = Running::start(pod.command(&["exec", "p", "a", "cat"]));
    cat.feed(b"typed").finish().code(0).stdout("typed");
    // The stub forwards signals.
    let script = "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let mut run = Running::start(pod.command(&["exec", "p", "a", "sh", "-c", script]));
    run.wait_for("ready\n");
    run.signal("TERM");
    run.finish().code(3).stdout("caught\n");
    // Killing the stub kills the process.
    let mut run = Running::start(pod.command(&["exec", "p", "a", "sh", "-c", "echo ready; exec sleep 4321"]));
    run.wait_for("ready\n");
    run.signal("KILL");
    run.finish();
    pod.exec_out("a", "while ps -o args | grep -q '^sleep 4321'; do sleep 0.1; done");
}

#[test]
fn two_hundred_exec_processes_leak_nothing() {
    let pod = Pod::new();
    pod.detach(json!({"containers": [pod.container("a", "exec sleep 10000", json!({}))]}));
    let pid = pod.pid();
    let count = || {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        let anonymous: u64 = line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
        // The shell itself counts: a pipeline's second process may or may not exist when the first one looks.
        let guest = pod.exec_out("a", "set -- /proc/[0-9]*; echo $#; ls /proc/1/fd 2>/dev/null | wc -l");
        (descriptors, anonymous, guest)
    };
    for _ in 0..20 {
        assert_eq!(pod.exec_out("a", "echo x"), "x\n");
    }
    let before = count();
    for _ in 0..EXECS {
        assert_eq!(pod.exec_out("a", "echo x"), "x\n");
    }
    let after = count();
    assert_eq!(before.2, after.2);
    let grew = after.0 > before.0 + CLOSING_MAX || after.1 > before.1 + GROWTH_KIB;
    assert!(!grew, "{before:?} before, {after:?} after");
}

#[test]
fn a_pod_runs_64_containers() {
    let pod = Pod::new();
    let names: Vec<String> = (0..CONTAINERS).map(|number| format!("c{number}")).collect();
    let containers: Vec<Value> =
        names.iter().map(|name| pod.container(name, &format!("echo {name}"), json!({}))).collect();
    let run = pod.run(json!({"resource": {"memory": 512}, "containers": containers})).finish().code(0);
    let mut expected: Vec<String> = names.iter().map(|name| format!("{name} | {name}")).collect();
    expected.sort();
    assert_eq!(lines(&run.stdout), expected, "{run}");
}

/// Eight concurrent streams carry 100 MiB in each direction, each with different data. One is read only after the
/// others.
#[test]
fn a_reader_that_stalls_stops_only_its_own_stream() {
    const STREAMS: usize = 8;
    const BYTES: usize = (100 << 20) / STREAMS;
    let pod = Pod::new();
    pod.detach(json!({"containers": [pod.container("a", "exec sleep 10000", json!({}))]}));
    let input = |stream: usize| -> Vec<u8> {
        (0..BYTES as u64)
            .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ stream as u8)
            .collect()
    };
    let start = |stream| Running::start(pod.command(&["exec", "p", "a", "cat"])).feed(&input(stream));
    let stalled = start(0);
    let others: Vec<Running> = (1..STREAMS).map(start).collect();
    for (stream, other) in (1..).zip(others) {
        assert!(other.finish().code(0).stdout == input(stream), "stream {stream}");
    }
    assert!(stalled.finish().code(0).stdout == input(0));
}

#[test]
fn containers_are_added_to_a_running_pod_and_removed() {
    let pod = Pod::new();
    pod.detach(json!({"containers": []}));
    assert_eq!(pod.listed()["status"], "running");
    let shared = pod.state.beside("data");
    fs::create_dir(&shared).unwrap();
    for turn in ["first", "second"] {
        fs::write(shared.join("f"), turn).unwrap();
        let volume = json!({"volumes": [{"path": "/data", "detail": {"source": "data"}}]});
        let path = pod.write("c.json", &pod.container("late", "exec sleep 10000", volume));
        pod.out(&["add", "p", &path]);
        assert_eq!(pod.exec_out("late", "cat /data/f; echo back >/data/g"), turn);
        assert_eq!(fs::read_to_string(shared.join("g")).unwrap(), "back\n");
        assert!(pod.error(125, &["add", "p", &path]).contains("has a container \"late\""));
        assert!(pod.error(125, &["remove", "p", "late"]).contains("is running"));
        pod.out(&["remove", "--force", "p", "late"]);
        assert_eq!(pod.listed_container("late"), Value::Null);
    }
    let path =
        pod.write("c.json", &json!({"name": "bad", "image": pod.image.rootfs(), "command": ["wonder"]}));
    assert!(pod.error(127, &["add", "p", &path]).contains("start container \"bad\""));
    assert_eq!(pod.listed_container("bad"), Value::Null);
    let path = pod.write("c.json", &json!({"name": "bad", "image": "busybox"}));
    assert!(pod.error(125, &["add", "p", &path]).contains("container.image: not supported"));
    // A pod without containers runs until it is stopped.
    pod.out(&["stop", "p"]);
    assert_eq!(pod.listed()["status"], "stopped");
}

#[test]
fn a_container_gets_the_podfile_s_files_volumes_limits_and_names() {
    let pod = Pod::new();
    let host = pod.state.beside("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("f"), "host").unwrap();
    let script = "cat /text /etc/resolv.conf; stat -c '%a %u %g' /text; cat /v/f; touch /v/x 2>&1 | grep -c Read-only; \
                  ulimit -n; cat /proc/sys/net/ipv4/ip_default_ttl; grep CapEff /proc/self/status; touch /x 2>&1 | grep -c Read-only; \
                  cat /proc/kcore | wc -c; (echo 1 >/proc/sys/kernel/panic) 2>&1 | grep -c Read-only; grep pp /etc/hosts";
    let run = pod.run(json!({
        "hostname": "pp", "dns": ["9.9.9.9"],
        "files": [{"name": "t", "encoding": "base64", "content": "dGV4dAo="}],
        "volumes": [{"name": "v", "source": "host", "format": "vfs"}],
        "containers": [pod.container("a", script, json!({
            "files": [{"path": "/text", "filename": "t", "perm": "0640", "user": "5", "group": "6"}],
            "volumes": [{"path": "/v", "volume": "v", "readOnly": true}],
            "ulimits": [{"Name": "nofile", "Soft": 77, "Hard": 88}], "sysctl": {"net.ipv4.ip_default_ttl": "77"}
        }))]
    }));
    let run = run.finish().code(0);
    let expected = "text\nnameserver 9.9.9.9\n640 5 6\nhost1\n77\n77\nCapEff:\t00000000a80425fb\n0\n0\n1\n127.0.0.1\tpp\n";
    assert_eq!(String::from_utf8_lossy(&run.stdout), expected, "{run}");
}

#[test]
fn logs_and_exit_codes_outlive_the_containers() {
    let pod = Pod::new();
    pod.detach(json!({"labels": {"tier": "test"}, "containers": [
        pod.container("a", "for i in 1 2 3; do echo out$i; done; echo err >&2; exit 4", json!({})),
        pod.container("b", "until [ -e /dev/shm/go ]; do sleep 0.1; done; echo b", json!({})),
    ]}));
    let followed = Running::start(pod.command(&["logs", "-f", "p"]));
    assert_eq!(pod.wait("a"), "out1\nout2\nout3\n");
    assert_eq!(pod.listed_container("a")["exitCode"], 4);
    let process = Pid::from_raw(i32::try_from(pod.pid()).unwrap()).unwrap();
    let process = pidfd_open(process, PidfdFlags::empty()).unwrap();
    assert_eq!(pod.exec("b", "touch /dev/shm/go").status.code(), Some(0));
    let followed = followed.finish().code(0);
    assert_eq!(lines(&followed.stdout), ["a | out1", "a | out2", "a | out3", "b | b"]);
    assert_eq!(lines(&followed.stderr), ["a | err"]);
    // The pod has ended with its last container, but its logs end shortly before its process.
    let deadline = Timespec { tv_sec: 60, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&deadline)), Ok(1));
    let listed = pod.listed();
    assert_eq!((&listed["status"], &listed["labels"]["tier"]), (&json!("stopped"), &json!("test")));
    let tail = pod.output(&["logs", "--tail", "2", "p", "a"]);
    assert_eq!(lines(&tail.stdout).len() + lines(&tail.stderr).len(), 2);
    let line = pod.out(&["logs", "--timestamps", "p", "a"]);
    assert!(line.starts_with("20") && line.contains("Z out3\n"), "{line}");
    assert!(pod.error(125, &["exec", "p", "a", "true"]).contains("is not running"));
    assert!(pod.out(&["ps", "p"]).contains("stopped  4"));
    pod.out(&["rm", "p"]);
    assert!(pod.error(125, &["ps", "p"]).contains("there is no pod \"p\""));
}

#[test]
fn stop_sends_the_stop_signal_and_then_kills() {
    let pod = Pod::new();
    let obeys = "trap 'echo heard; exit 0' INT; echo up; while :; do sleep 0.1; done";
    let ignores = "trap '' TERM; echo up; while :; do sleep 0.1; done";
    pod.detach(json!({"restartPolicy": "always", "containers": [
        pod.container("a", obeys, json!({"StopSignal": "INT"})),
        pod.container("b", ignores, json!({})),
    ]}));
    // Each prints `up` after it has set its trap.
    for name in ["a", "b"] {
        let mut up = Running::start(pod.command(&["logs", "-f", "p", name]));
        up.wait_for("up");
        up.signal("KILL");
        up.finish();
    }
    let stats: Value = serde_json::from_str(&pod.out(&["stats", "--json", "p"])).unwrap();
    assert!(stats[0]["memory"].as_u64().unwrap() > 0 && stats[1]["cpu"].as_u64().unwrap() > 0, "{stats}");
    let processes = pod.out(&["ps", "--processes", "p"]);
    assert!(processes.contains("trap 'echo heard"), "{processes}");
    pod.out(&["pause", "p", "a"]);
    assert_eq!(pod.listed_container("a")["status"], "paused");
    assert!(pod.error(125, &["exec", "p", "a", "true"]).contains("is paused"));
    pod.out(&["resume", "p", "a"]);
    assert_eq!(pod.exec_out("a", "echo on"), "on\n");
    pod.out(&["stop", "--time", "1", "p"]);
    let listed = pod.listed();
    let codes = [&listed["containers"][0]["exitCode"], &listed["containers"][1]["exitCode"]];
    assert_eq!((&listed["status"], codes), (&json!("stopped"), [&json!(0), &json!(137)]));
    assert_eq!(pod.out(&["logs", "--tail", "1", "p", "a"]), "heard\n");
}

#[test]
fn a_killed_pod_leaves_a_directory_that_rm_removes() {
    let pod = Pod::new();
    pod.detach(json!({"containers": [pod.container("a", "echo said; exec sleep 10000", json!({}))]}));
    assert!(pod.error(125, &["rm", "p"]).contains("is running"));
    let pid = pod.pid().to_string();
    let mut exec = Running::start(pod.command(&["exec", "p", "a", "sh", "-c", "echo in; exec sleep 10000"]));
    exec.wait_for("in");
    check_output(Command::new("/bin/busybox").args(["kill", "-s", "KILL", &pid]));
    exec.finish().code(125).says(&["the pod ended before it answered"]);
    assert_eq!(pod.listed()["status"], "stopped");
    assert_eq!(pod.out(&["logs", "p"]), "said\n");
    let path = pod.state.beside("pod.json").display().to_string();
    assert!(pod.error(125, &["run", "-d", &path]).contains("vmm pod rm"));
    pod.out(&["rm", "p"]);
    assert_eq!(fs::read_dir(pod.state.path()).unwrap().count(), 0);
}

#[test]
fn a_pod_that_fails_to_start_reports_why_and_leaves_nothing() {
    let pod = Pod::new();
    let path = pod.write(
        "pod.json",
        &json!({"id": "p", "containers": [
            pod.container("a", "exec sleep 10000", json!({})),
            {"name": "b", "image": pod.image.rootfs(), "command": ["wonder"]},
        ]}),
    );
    for words in [&["run", &path][..], &["run", "-d", &path]] {
        let error = pod.error(127, words);
        assert!(error.contains("start container \"b\"") && error.contains("wonder"), "{error}");
        assert_eq!(pod.out(&["list", "--json"]), "[]\n");
    }
    let path = pod.write(
        "bad.json",
        &json!({"containers": [pod.container("a", "", json!({"ports": [{"hostPort": 1}]}))]}),
    );
    assert!(pod.error(125, &["run", &path]).contains("containers[0].ports: not supported"));
}

#[test]
fn a_signal_ends_a_pod_in_the_foreground() {
    let pod = Pod::new();
    let script = "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done";
    let mut run = pod.run(json!({"id": "p", "containers": [pod.container("a", script, json!({}))]}));
    run.wait_for("up");
    run.signal("INT");
    run.finish().code(5);
    assert_eq!(pod.out(&["list", "--json"]), "[]\n");
}

#[test]
fn an_exec_process_uses_its_client_s_terminal() {
    let pod = Pod::new();
    pod.detach(json!({"containers": [pod.container("a", "exec sleep 10000", json!({}))]}));
    let script =
        "trap 'stty size; exit 6' WINCH; stty size; tty; read a; echo got:$a; while :; do sleep 0.1; done";
    let mut terminal = Terminal::start(&pod.command(&["exec", "-t", "p", "a", "sh", "-c", script]), 33, 101);
    terminal.wait_for("33 101");
    terminal.wait_for("/dev/pts/");
    terminal.type_keys("hello\n");
    terminal.wait_for("got:hello");
    terminal.resize(44, 99);
    terminal.wait_for("44 99");
    assert_eq!(terminal.finish().code(), Some(6));
    assert!(terminal.is_cooked(), "the terminal was left raw");
}

/// The pod is a background job of the terminal that its exec process reads.
#[test]
fn a_background_job_s_pod_can_read_its_client_s_terminal() {
    let pod = Pod::new();
    let container = pod.container("a", "exec sleep 10000", json!({}));
    let path = pod.write("pod.json", &json!({"id": "p", "containers": [container]}));
    let vmm = format!("{} pod --root {}", program().display(), pod.state.path().display());
    let script = format!(
        "{vmm} run {path} & until {vmm} exec p a true 2>/dev/null; do sleep 0.2; done; \
         {vmm} exec -t p a sh -c 'echo ready; read x; echo got:$x'; {vmm} stop p; wait; echo over"
    );
    let mut command = Command::new("/bin/busybox");
    command.args(["sh", "-m", "-c", &script]);
    let mut terminal = Terminal::start(&command, 24, 80);
    terminal.wait_for("ready");
    terminal.type_keys("hello\n");
    terminal.wait_for("got:hello");
    terminal.wait_for("over");
    assert_eq!(terminal.finish().code(), Some(0));
}
