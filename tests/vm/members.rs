//! Containers that join the machine of another one, as engines make the containers of a pod.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, getpid, kill_process, set_child_subreaper};
use serde_json::{Value, json};
use tests::{Bundle, ConsoleSocket, StateDir};

use crate::kernels::{IS_FULL, with_capabilities};
use crate::lifecycle::reap;

mod faults;

/// Kinds of namespaces that a member takes from another container: in config.json, and below /proc/PID/ns.
const SHARED: [(&str, &str); 3] = [("network", "net"), ("ipc", "ipc"), ("uts", "uts")];
/// A program that runs until it is stopped.
const PAUSE: &str = "trap 'exit 0' TERM; while :; do sleep 1; done";

/// Containers of one engine. They are deleted on drop.
pub(crate) struct Engine {
    pub(crate) state: StateDir,
    bundles: Vec<(String, Bundle)>,
}

impl Engine {
    pub(crate) fn new() -> Engine {
        // The processes that `vmm create` forks become children of this process, as of an engine's shim.
        set_child_subreaper(Some(getpid())).expect("become a subreaper");
        Engine { state: StateDir::new(), bundles: Vec::new() }
    }

    /// Returns an engine with the running container `first`, and its process.
    pub(crate) fn with_first(bundle: Bundle) -> (Engine, Pid) {
        let mut engine = Engine::new();
        let pid = engine.create("first", bundle);
        engine.out(&["start", "first"]);
        (engine, pid)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.state.beside(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// `vmm create` of a bundle, with files for the container's standard output and error.
    fn command(&self, id: &str, bundle: &Bundle) -> Command {
        bundle.write();
        let file = |kind: &str| File::create(self.path(&format!("{id}.{kind}"))).expect("create a file");
        let mut create = self.state.command(&["create", "--bundle"]);
        create.arg(bundle.path()).arg("--pid-file").arg(self.path(&format!("{id}.pid"))).arg(id);
        create.stdout(file("out")).stderr(file("err"));
        create
    }

    #[track_caller]
    pub(crate) fn create(&mut self, id: &str, bundle: Bundle) -> Pid {
        let code = tests::status(&mut self.command(id, &bundle)).code();
        self.bundles.push((id.to_owned(), bundle));
        assert_eq!(code, Some(0), "{}", self.read(&format!("{id}.err")));
        self.pid(id)
    }

    /// Creates and starts a container.
    #[track_caller]
    pub(crate) fn run(&mut self, id: &str, bundle: Bundle) -> Pid {
        let pid = self.create(id, bundle);
        self.out(&["start", id]);
        pid
    }

    /// Returns the error of a `vmm create` that fails.
    #[track_caller]
    pub(crate) fn refusal(&self, bundle: &Bundle) -> String {
        assert_eq!(tests::status(&mut self.command("refused", bundle)).code(), Some(1));
        assert!(!self.state.names().contains(&"refused".to_owned()));
        self.read("refused.err")
    }

    #[track_caller]
    fn pid(&self, id: &str) -> Pid {
        let text = self.read(&format!("{id}.pid"));
        Pid::from_raw(text.parse().expect("a number")).expect("a process")
    }

    #[track_caller]
    pub(crate) fn out(&self, words: &[&str]) -> String {
        self.state.out(words)
    }

    #[track_caller]
    pub(crate) fn status(&self, id: &str) -> String {
        let state: Value = serde_json::from_str(&self.out(&["state", id])).expect("parse the state");
        state["status"].as_str().expect("a status").to_owned()
    }

    #[track_caller]
    fn sh(&self, id: &str, script: &str) -> String {
        self.out(&["exec", id, "sh", "-c", script])
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for (id, _) in self.bundles.iter().rev() {
            self.state.output(&["delete", "--force", id]);
        }
    }
}

/// Gives a bundle the namespaces of these kinds of process `pid`, and new ones of the other kinds.
pub(crate) fn joining(bundle: Bundle, pid: Pid, kinds: &[(&str, &str)]) -> Bundle {
    let mut bundle = bundle;
    for (kind, file) in kinds {
        bundle = bundle.share(kind).with(|c| {
            let path = format!("/proc/{}/ns/{file}", pid.as_raw_nonzero());
            let all = c["linux"]["namespaces"].as_array_mut().expect("namespaces is a list");
            all.push(json!({"type": kind, "path": path}));
        });
    }
    bundle
}

fn member(script: &str, pid: Pid) -> Bundle {
    joining(Bundle::sh(script), pid, &SHARED)
}

#[test]
fn a_member_has_a_life_of_its_own() {
    let (mut engine, first) = Engine::with_first(Bundle::sh(PAUSE));
    let script = "trap 'echo bye; exit 7' TERM; echo hello; while :; do sleep 1; done";
    let pid = engine.create("second", member(script, first));
    assert_eq!((engine.status("second"), engine.status("first")), ("created".into(), "running".into()));
    engine.out(&["start", "second"]);
    assert_eq!(engine.status("second"), "running");
    assert!(engine.state.error(1, &["start", "second"]).contains("already running"));
    assert_eq!(engine.out(&["list", "--quiet"]), "first\nsecond\n");
    // A pod is stopped by the name of its first container.
    let error = engine.state.error(125, &["pod", "stop", "second"]);
    assert!(error.contains("\"second\" is a container of pod \"first\""), "{error}");
    let pids = |id: &str| engine.out(&["ps", "--format", "json", id]);
    assert_eq!(pids("second"), format!("[{}]", pid.as_raw_nonzero()));
    assert_eq!(pids("first"), format!("[{}]", first.as_raw_nonzero()));
    assert_eq!(engine.sh("second", "echo $0-$(id -u)"), "sh-0\n");
    engine.out(&["pause", "second"]);
    assert_eq!((engine.status("second"), engine.status("first")), ("paused".into(), "running".into()));
    engine.out(&["resume", "second"]);
    engine.out(&["update", "--pids-limit", "50", "second"]);
    assert_eq!(engine.sh("second", "cat /sys/fs/cgroup/pids.max"), "50\n");
    assert_eq!(engine.sh("first", "cat /sys/fs/cgroup/pids.max"), "max\n");
    let stats: Value = serde_json::from_str(&engine.out(&["events", "--stats", "second"])).expect("parse");
    assert_eq!((&stats["id"], &stats["data"]["pids"]["limit"]), (&json!("second"), &json!(50)));
    engine.out(&["kill", "second"]);
    assert_eq!(reap(pid), Ok(7));
    assert_eq!(engine.read("second.out"), "hello\nbye\n");
    assert_eq!((engine.status("second"), engine.status("first")), ("stopped".into(), "running".into()));
    assert!(engine.state.error(1, &["kill", "second"]).contains("container not running"));
    engine.out(&["delete", "second"]);
    assert_eq!(engine.state.names(), ["first"]);
    // Its name and its files are free.
    let again = engine.run("second", member("echo again; exit 3", first));
    assert_eq!(reap(again), Ok(3));
    assert_eq!(engine.read("second.out"), "again\n");
    engine.out(&["kill", "first"]);
    assert_eq!(reap(first), Ok(0));
}

#[test]
fn a_privileged_member_finds_its_kernel_in_a_pod_and_if_the_first_container_asked_for_it() {
    let net_admin = |first| joining(with_capabilities(IS_FULL, &["CAP_NET_ADMIN"]), first, &SHARED);
    let none = json!({});
    let full = json!({"vmm.kernel": "full"});
    let of_kubernetes = json!({"io.kubernetes.cri.container-type": "sandbox"});
    for (annotations, found, is_warned) in
        [(none, "base\n", true), (full, "full\n", false), (of_kubernetes, "full\n", false)]
    {
        let bundle = Bundle::sh(PAUSE).with(|c| c["annotations"] = annotations);
        let (mut engine, first) = Engine::with_first(bundle);
        let pid = engine.run("second", net_admin(first));
        assert_eq!(reap(pid), Ok(0));
        assert_eq!(engine.read("second.out"), found);
        let said = engine.read("second.err");
        assert_eq!(said.contains("the annotation vmm.kernel"), is_warned, "{said}");
    }
}

#[test]
fn a_member_shares_the_namespaces_that_it_asks_for() {
    let bundle = Bundle::sh(PAUSE).with(|c| c["hostname"] = json!("pod"));
    let (mut engine, first) = Engine::with_first(bundle);
    engine.run("second", member(PAUSE, first));
    let all = [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")];
    let third = engine.run("third", joining(Bundle::sh(PAUSE), first, &all));
    let none = engine.run("fourth", joining(Bundle::sh(PAUSE), first, &[("ipc", "ipc")]));
    let own = |engine: &Engine, id: &str| {
        let kinds = ["net", "ipc", "uts", "pid", "mnt", "cgroup"];
        kinds.map(|kind| engine.sh(id, &format!("readlink /proc/self/ns/{kind}")))
    };
    let [a, b, c, d] = ["first", "second", "third", "fourth"].map(|id| own(&engine, id));
    let same = |one: &[String; 6], other: &[String; 6]| {
        let mut kinds = one.iter().zip(other).map(|(one, other)| one == other);
        [(); 6].map(|()| kinds.next().expect("six kinds"))
    };
    assert_eq!(same(&a, &b), [true, true, true, false, false, false]);
    assert_eq!(same(&a, &c), [true, true, true, true, false, false]);
    assert_eq!(same(&a, &d), [false, true, false, false, false, false]);
    assert_eq!(engine.sh("second", "hostname"), "pod\n");
    // A member's process is the one through which others find its namespaces.
    engine.run("fifth", joining(Bundle::sh(PAUSE), none, &[("uts", "uts"), ("network", "net")]));
    let e = own(&engine, "fifth");
    assert_eq!(same(&d, &e), [true, false, true, false, false, false]);
    assert_eq!(engine.sh("fifth", "ifconfig | grep -c Link"), "1\n");
    // Processes of the shared PID namespace see each other, and one of the agent's is none of them.
    assert_eq!(engine.sh("third", "ps -o args | grep -c '[w]hile'"), "2\n");
    let server = "while :; do echo over-loopback | nc -l -p 7000; done";
    let mut exec = engine.state.command(&["exec", "--detach", "second", "sh", "-c", server]);
    assert!(tests::status(exec.stdout(Stdio::null()).stderr(Stdio::null())).success());
    let client = "until sleep 1 | nc 127.0.0.1 7000 2>/dev/null | grep over; do :; done";
    assert_eq!(engine.sh("first", client), "over-loopback\n");
    engine.out(&["kill", "third", "KILL"]);
    assert_eq!(reap(third), Ok(137));
}

#[test]
fn a_member_has_its_own_files_user_and_limits() {
    let (mut engine, first) = Engine::with_first(Bundle::sh(PAUSE));
    let volume = tempfile::tempdir().expect("create a directory");
    fs::write(volume.path().join("file"), "from the host\n").expect("write a file");
    let bind = |at: &str, source: PathBuf, access: &str| json!({"destination": at, "type": "bind", "source": source, "options": ["rbind", access]});
    let bundle = member(PAUSE, first)
        .mount(bind("/data", volume.path().to_owned(), "rw"))
        .mount(bind("/one", volume.path().join("file"), "ro"))
        .with(|c| {
            c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            c["process"]["noNewPrivileges"] = json!(true);
            c["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 40}});
            c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}
            ]});
        });
    let root = bundle.rootfs();
    fs::set_permissions(volume.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("chmod");
    engine.run("second", bundle);
    assert_eq!(
        engine.sh("second", "cat /one; id -u; cat /sys/fs/cgroup/memory.max"),
        "from the host\n1000\n67108864\n"
    );
    assert_eq!(engine.sh("second", "echo x > /data/new; echo y 2>/dev/null > /one; echo $?"), "1\n");
    assert_eq!(fs::read_to_string(volume.path().join("new")).expect("read"), "x\n");
    assert_eq!(engine.sh("second", "mkdir /tmp/d 2>/dev/null; echo $?"), "1\n");
    assert_eq!(engine.sh("second", "grep NoNewPrivs /proc/1/status"), "NoNewPrivs:\t1\n");
    let bounding = engine.sh("second", "grep CapBnd /proc/1/status");
    assert_eq!(bounding, "CapBnd:\t00000000a80425fb\n");
    assert_eq!(engine.sh("first", "mkdir /tmp/d; ls /data /one 2>/dev/null; echo $?"), "1\n");
    // The settings of the kernel are those of all containers.
    assert_eq!(engine.sh("second", "grep -c ' /proc/sys .*\\bro\\b' /proc/mounts"), "1\n");
    assert!(!root.join("data").join("new").exists());
}

#[test]
fn a_member_of_a_terminal_gets_it_and_its_size() {
    let (mut engine, first) = Engine::with_first(Bundle::sh(PAUSE));
    let script = "stty size; trap 'new=1' WINCH; echo ready; until [ \"$new\" ]; do :; done; stty size; \
                  read line; echo got-$line; exit 5";
    let bundle = member(script, first).with(|c| {
        c["process"]["terminal"] = json!(true);
        c["process"]["consoleSize"] = json!({"height": 12, "width": 34});
    });
    let at = engine.path("terminal.sock");
    let socket = ConsoleSocket::at(&at);
    let mut create = engine.command("second", &bundle);
    let status = tests::status(create.arg("--console-socket").arg(&at));
    engine.bundles.push(("second".to_owned(), bundle));
    assert!(status.success(), "{}", engine.read("second.err"));
    let mut controller = socket.take();
    // Engines set the size between create and start as well.
    controller.resize(15, 35);
    engine.out(&["start", "second"]);
    controller.wait_for("ready");
    controller.resize(20, 50);
    controller.wait_for("20 50");
    controller.type_keys("key\n");
    controller.wait_for("got-key");
    assert_eq!(reap(engine.pid("second")), Ok(5));
}

#[test]
fn hooks_of_a_member_see_its_process_and_its_status() {
    let hooks = crate::hooks::RecordingHooks::new();
    let (mut engine, first) = Engine::with_first(Bundle::sh(PAUSE));
    let pid = engine.run("second", hooks.of(member("exit 3", first)));
    assert_eq!(reap(pid), Ok(3));
    engine.out(&["delete", "second"]);
    let statuses = hooks.statuses();
    assert_eq!(statuses[..4], ["creating", "creating", "creating", "created"]);
    // The container may end before its poststart hook runs.
    assert!(["running", "stopped"].contains(&statuses[4].as_str()), "{statuses:?}");
    assert_eq!(statuses[5], "stopped");
}

#[test]
fn a_member_with_a_program_that_is_missing_fails_alone() {
    let (mut engine, first) = Engine::with_first(Bundle::sh(PAUSE));
    let mount = json!({"destination": "/opt", "type": "tmpfs", "source": "tmpfs"});
    let bundle = joining(Bundle::new(&["no-such-program"]).mount(mount), first, &SHARED);
    let pid = engine.create("second", bundle);
    let error = engine.state.error(1, &["start", "second"]);
    assert!(error.contains("exec: \"no-such-program\": executable file not found in $PATH"), "{error}");
    reap(pid).unwrap_or_default();
    assert_eq!((engine.status("second"), engine.status("first")), ("stopped".into(), "running".into()));
    engine.out(&["delete", "second"]);
}

#[test]
fn a_member_that_cannot_be_honoured_is_refused_by_name() {
    let (mut engine, first) = Engine::with_first(Bundle::sh(PAUSE).with(|c| {
        c["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}});
    }));
    let other = engine.run("other", Bundle::sh(PAUSE));
    let at = |kinds: &[(&str, &str)], pid: Pid| joining(Bundle::sh(PAUSE), pid, kinds);
    let two = joining(at(&SHARED[..1], first), other, &SHARED[1..2]);
    let own = Pid::from_raw(std::process::id() as i32).expect("a process");
    let host = joining(at(&SHARED[..1], first), own, &SHARED[1..2]);
    let user = at(&[("network", "net"), ("user", "user")], first);
    let large =
        member(PAUSE, first).with(|c| c["linux"]["resources"] = json!({"memory": {"limit": 1_u64 << 40}}));
    let pod = Bundle::sh(PAUSE).with(|c| {
        c["annotations"] = json!({
            "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "none"
        });
    });
    for (bundle, texts) in [
        (two, ["linux.namespaces[", "].path: not supported: ", "is in another virtual machine than"]),
        (host, ["linux.namespaces[", "].path: not supported: ", "no namespace of a container"]),
        (user, ["linux.namespaces[", "].path: not supported: ", "the user namespace of another container"]),
        (
            large,
            ["linux.resources.memory.limit", "are more than the", "MiB of the container's virtual machine"],
        ),
        (pod, ["annotations[", "io.kubernetes.cri.sandbox-id", "container none is not running"]),
    ] {
        let error = engine.refusal(&bundle);
        assert!(texts.iter().all(|text| error.contains(text)), "{error}");
    }
    // In the foreground there is no process of another container to stand for.
    let run = member(PAUSE, first).run().code(125);
    run.says(&["linux.namespaces[", "a VM can join only network namespaces of the host"]);
}

#[test]
fn two_members_can_join_at_once() {
    let (mut engine, first) = Engine::with_first(Bundle::sh(PAUSE));
    let names: Vec<String> = (0..4).map(|index| format!("m{index}")).collect();
    let bundles: Vec<_> = names.iter().map(|name| member(&format!("echo {name}; exit 4"), first)).collect();
    let commands = names.iter().zip(&bundles).map(|(name, bundle)| engine.command(name, bundle));
    let creating: Vec<_> =
        commands.map(|mut create| thread::spawn(move || tests::status(&mut create))).collect();
    let codes: Vec<_> = creating.into_iter().map(|create| create.join().expect("it ends").code()).collect();
    engine.bundles.extend(names.iter().cloned().zip(bundles));
    assert_eq!(codes, [Some(0); 4]);
    for name in &names {
        engine.out(&["start", name]);
        assert_eq!(reap(engine.pid(name)), Ok(4));
        assert_eq!(engine.read(&format!("{name}.out")), format!("{name}\n"));
    }
}

/// Only a process that may mount can make what an engine makes.
#[test]
fn shared_memory_of_an_engine_is_memory_of_the_machine() {
    let host = tempfile::tempdir().expect("create a directory");
    let shm = host.path().join("shm");
    fs::create_dir(&shm).expect("create a directory");
    let options = "size=1m,mode=1777";
    tests::check_output(Command::new("mount").args(["-t", "tmpfs", "-o", options, "shm"]).arg(&shm));
    let bind = json!({"destination": "/dev/shm", "type": "bind", "source": shm, "options": ["rbind", "ro"]});
    let with_shm = |bundle: Bundle| {
        bundle.with(|c| {
            let mounts = c["mounts"].as_array_mut().expect("mounts is a list");
            mounts.retain(|mount| mount["destination"] != "/dev/shm");
            let mut bind = bind.clone();
            bind["options"] = json!(["rbind", "rprivate", "rw"]);
            mounts.push(bind);
        })
    };
    let (mut engine, first) = Engine::with_first(with_shm(Bundle::sh(PAUSE)));
    engine.run("second", with_shm(member(PAUSE, first)));
    engine.run("third", with_shm(joining(Bundle::sh(PAUSE), first, &SHARED[..1])));
    engine.sh("second", "echo shared > /dev/shm/file");
    assert_eq!(
        engine.sh("first", "cat /dev/shm/file; df -k /dev/shm | tail -1 | awk '{print $2}'"),
        "shared\n1024\n"
    );
    assert_eq!(engine.sh("third", "ls /dev/shm | wc -l"), "0\n");
    assert_eq!(fs::read_dir(&shm).expect("list").count(), 0);
    drop(engine);
    tests::check_output(Command::new("umount").arg(&shm));
}

#[test]
fn the_process_of_a_member_is_confined() {
    let (mut engine, first) = Engine::with_first(Bundle::sh(PAUSE));
    let pid = engine.run("second", member(PAUSE, first));
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let status = fs::read_to_string(path).expect("read the status of the member's process");
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000002", "CapBnd:\t0000000000000000"] {
        assert!(status.contains(line), "no {line:?} in {status}");
    }
}

/// CRI-O makes IPC and UTS namespaces of the host for a pod, and passes their paths for each of its containers.
#[test]
fn namespaces_that_an_engine_pinned_are_those_of_the_pod_s_machine() {
    let pinned = |bundle: Bundle, part: &str| {
        let bundle = bundle.share("ipc").share("uts").with(|c| {
            let all = c["linux"]["namespaces"].as_array_mut().expect("namespaces is a list");
            all.extend(["ipc", "uts"].map(|kind| json!({"type": kind, "path": format!("/run/{kind}ns/1")})));
        });
        bundle.with(|c| {
            c["annotations"] = json!({
                "io.kubernetes.cri-o.ContainerType": part, "io.kubernetes.cri-o.SandboxID": "first"
            });
        })
    };
    let (mut engine, first) = Engine::with_first(pinned(Bundle::sh(PAUSE), "sandbox"));
    engine.run("second", joining(pinned(Bundle::sh(PAUSE), "container"), first, &SHARED[..1]));
    let own = |id: &str| engine.sh(id, "for n in net ipc uts; do readlink /proc/self/ns/$n; done");
    assert_eq!(own("first"), own("second"));
    let error = engine.refusal(&pinned(Bundle::sh(PAUSE), "sandbox").share("network"));
    assert!(error.contains("no network namespace"), "{error}");
}

#[test]
fn signals_to_the_process_of_a_member_reach_it() {
    let (mut engine, first) = Engine::with_first(Bundle::sh(PAUSE));
    let pid = engine.run("second", member("trap 'exit 6' USR1; echo up; while :; do sleep 1; done", first));
    engine.sh("second", "until kill -0 1; do :; done");
    while engine.read("second.out").is_empty() {
        thread::yield_now();
    }
    kill_process(pid, Signal::USR1).expect("signal the member's process");
    assert_eq!(reap(pid), Ok(6));
}
