//! Pods of Kubernetes, created by the bundles that containerd and CRI-O make for them (`cri/README.md`).

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{Bundle, check_output};

use crate::lifecycle::reap;
use crate::members::Engine;
use crate::network::Nets;

mod many;

const SANDBOX: &str = include_str!("cri/containerd-sandbox.json");
const CONTAINER: &str = include_str!("cri/containerd-container.json");
const OF_CRIO: &str = include_str!("cri/crio-container.json");
/// Serves a page on the loopback interface alone.
const SERVER: &str = "mkdir /tmp/www; echo hello > /tmp/www/index.html; echo serves; \
                      exec busybox httpd -f -p 127.0.0.1:80 -h /tmp/www";
const CLIENT: &str = "until wget -q -O - http://127.0.0.1/; do sleep 0.1; done; trap 'exit 5' TERM; \
                      while :; do sleep 1; done";
/// Memory limit of a container in the bundles.
const LIMIT: &str = "67108864\n";
/// Maximum time for a program to write something.
const DEADLINE: Duration = Duration::from_secs(120);

/// What an engine prepares for a pod on the host.
struct Pod {
    nets: Nets,
    files: TempDir,
    engine: Engine,
    /// Name of its cgroup, which no other pod has.
    uid: String,
    /// The process of the sandbox; 0 without one.
    process: i32,
}

impl Pod {
    fn new() -> Pod {
        let files = TempDir::new().expect("create a directory");
        for (name, text) in [
            ("hostname", "house\n"),
            ("hosts", "127.0.0.1 localhost\n"),
            ("resolv.conf", "nameserver 10.9.0.1\n"),
        ] {
            fs::write(files.path().join(name), text).expect("write a file of the pod");
        }
        fs::create_dir(files.path().join("shm")).expect("create a directory");
        let shm = files.path().join("shm");
        check_output(Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m,mode=1777", "shm"]).arg(shm));
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let uid = format!("pod-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Pod { nets: Nets::joined(), files, engine: Engine::new(), uid, process: 0 }
    }

    /// A bundle with a recorded configuration, and this program if any.
    fn bundle(&self, recorded: &str, id: &str, program: Option<&str>) -> Bundle {
        let path = |path: PathBuf| path.to_str().expect("a path in UTF-8").to_owned();
        let mut text = recorded.to_owned();
        for (word, value) in [
            ("@FILES@", path(self.files.path().to_owned())),
            ("@NETWORK@", path(self.nets.path())),
            ("@PROCESS@", self.process.to_string()),
            ("@POD@", "sandbox".to_owned()),
            ("@ID@", id.to_owned()),
            ("@UID@", self.uid.clone()),
        ] {
            text = text.replace(word, &value);
        }
        let mut config: Value = serde_json::from_str(&text).expect("parse the recorded configuration");
        if let Some(script) = program {
            config["process"]["args"] = json!(["sh", "-c", script]);
        }
        let bundle = Bundle::sh("").with(|whole| *whole = config);
        let pause = bundle.rootfs().join("pause");
        fs::write(&pause, "#!/bin/sh\ntrap 'exit 0' TERM\nwhile :; do sleep 1; done\n")
            .expect("write a program");
        fs::set_permissions(&pause, Permissions::from_mode(0o755)).expect("make it executable");
        bundle
    }

    fn run(&mut self, id: &str, bundle: Bundle) -> Pid {
        self.engine.run(id, bundle)
    }

    #[track_caller]
    fn awaits(&self, id: &str, text: &str) {
        let until = Instant::now() + DEADLINE;
        while !self.engine.read(&format!("{id}.out")).contains(text) {
            assert!(Instant::now() < until, "{}", self.engine.read(&format!("{id}.err")));
            thread::yield_now();
        }
    }

    #[track_caller]
    fn says(&self, id: &str, script: &str) -> String {
        self.engine.out(&["exec", id, "sh", "-c", script])
    }

    /// Checks what containers of each pod have in common, while server and client run.
    #[track_caller]
    fn check(&self, sees_processes: bool) {
        self.awaits("server", "serves\n");
        self.awaits("client", "hello\n");
        assert_eq!(self.says("client", "hostname; cat /etc/hosts"), "house\n127.0.0.1 localhost\n");
        assert_eq!(self.says("client", "cat /sys/fs/cgroup/memory.max"), LIMIT);
        self.says("server", "echo shared > /dev/shm/file");
        assert_eq!(self.says("client", "cat /dev/shm/file"), "shared\n");
        let count = self.says("client", "ps -o args | grep -c '[h]ttpd -f'; true");
        assert_eq!(count, if sees_processes { "1\n" } else { "0\n" });
        let mut failing = self.engine.state.command(&["exec", "client", "sh", "-c", "exit 4"]);
        assert_eq!(tests::status(&mut failing).code(), Some(4));
        let answer = self.nets.forwarded("127.0.0.1:80", b"GET / HTTP/1.0\r\n\r\n").expect("forward a port");
        assert!(answer.ends_with(b"hello\n"), "{}", String::from_utf8_lossy(&answer));
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.files.path().join("shm")).status();
    }
}

#[test]
fn a_pod_of_containerd_with_two_containers() {
    for shares_processes in [false, true] {
        let mut pod = Pod::new();
        let sandbox = pod.run("sandbox", pod.bundle(SANDBOX, "sandbox", None));
        pod.process = sandbox.as_raw_nonzero().get();
        let [server, client] = [("server", SERVER), ("client", CLIENT)].map(|(id, script)| {
            let bundle = pod.bundle(CONTAINER, id, Some(script)).with(|c| {
                if shares_processes {
                    let path = format!("/proc/{}/ns/pid", sandbox.as_raw_nonzero());
                    c["linux"]["namespaces"][0] = json!({"type": "pid", "path": path});
                }
            });
            pod.run(id, bundle)
        });
        pod.check(shares_processes);
        pod.engine.out(&["kill", "client", "TERM"]);
        assert_eq!(reap(client), Ok(5));
        pod.engine.out(&["delete", "client"]);
        // A container that is restarted has the same name in its pod.
        let again =
            pod.run("again", pod.bundle(CONTAINER, "again", Some("wget -q -O - http://127.0.0.1/; exit 3")));
        assert_eq!((reap(again), pod.engine.read("again.out")), (Ok(3), "hello\n".to_owned()));
        pod.engine.out(&["kill", "sandbox", "TERM"]);
        assert_eq!((reap(sandbox), reap(server)), (Ok(0), Ok(137)));
        assert_eq!(pod.nets.traces(), "");
    }
}

#[test]
fn a_pod_of_crio_without_an_infra_container() {
    let mut pod = Pod::new();
    let server = pod.run("server", pod.bundle(OF_CRIO, "server", Some(SERVER)));
    let client = pod.run("client", pod.bundle(OF_CRIO, "client", Some(CLIENT)));
    pod.check(false);
    // The limit of the first container is not that of the machine, which other containers join.
    let large = pod.bundle(OF_CRIO, "large", Some("cat /sys/fs/cgroup/memory.max"));
    let large =
        pod.run("large", large.with(|c| c["linux"]["resources"]["memory"]["limit"] = json!(128 << 20)));
    assert_eq!((reap(large), pod.engine.read("large.out")), (Ok(0), "134217728\n".to_owned()));
    pod.engine.out(&["kill", "server", "KILL"]);
    assert_eq!((reap(server), reap(client)), (Ok(137), Ok(137)));
    // The next container makes another machine.
    pod.engine.out(&["delete", "server"]);
    let again = pod.run("again", pod.bundle(OF_CRIO, "again", Some("exit 3")));
    assert_eq!(reap(again), Ok(3));
}
