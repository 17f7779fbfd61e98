//! Pods as containerd makes them: a sandbox with one container, and a further container in the running pod, with `vmm` and with
//! runc in turn.
//!
//! The bundles are those that containerd made ([`SANDBOX`], [`CONTAINER`]). What the engine does besides is not measured: a
//! sample is the time of `create`, and of `start` until the container's line of output.

use std::fs;
use std::io::{BufRead, BufReader, pipe};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::Samples;
use crate::contenders::{Contender, Folder};
use crate::timing::settle;

const SANDBOX: &str = include_str!("../../vm/cri/containerd-sandbox.json");
const CONTAINER: &str = include_str!("../../vm/cri/containerd-container.json");
/// Contenders that take part, if they are there. The report's ratios are to the first.
const CONTENDERS: [Contender; 3] = [Contender::Runc, Contender::Vmm, Contender::OtherVmm];
/// Programs of the sandbox and of the containers, which print their line and go on.
const PROGRAM: [&str; 3] = ["sh", "-c", "echo hello; exec sleep 1000"];
/// Containers of a pod in their order, each with its recorded configuration.
const MEMBERS: [(&str, &str); 3] = [("sandbox", SANDBOX), ("first", CONTAINER), ("further", CONTAINER)];

/// Makes `runs` pods with each contender in turn. The first round fills caches and does not count.
pub fn pods(folder: &Folder, runs: usize) -> Value {
    prepare(folder);
    let [mut whole, mut alone, mut further] = [(); 3].map(|()| Samples::default());
    for round in 0..=runs {
        for contender in CONTENDERS.into_iter().filter(|contender| contender.takes_part(folder)) {
            let pod = Pod { folder, contender, name: format!("bench-{round}") };
            let [sandbox, first, next] = pod.run();
            if round > 0 {
                whole.add(contender.name(), sandbox + first);
                alone.add(contender.name(), sandbox);
                further.add(contender.name(), next);
            }
        }
    }
    json!({"groups": [
        whole.group("a pod with one container"),
        alone.group("its sandbox"),
        further.group("a further container in the running pod"),
    ]})
}

/// Makes what an engine has for every pod: files, memory for `/dev/shm`, and a root file system for each container.
fn prepare(folder: &Folder) {
    fs::create_dir_all(folder.path("files/shm")).expect("create a directory");
    for name in ["hostname", "hosts", "resolv.conf"] {
        fs::write(folder.path(&format!("files/{name}")), "127.0.0.1 localhost\n").expect("write a file");
    }
    call("mount", &["-t", "tmpfs", "-o", "size=64m,mode=1777", "shm", &folder.path("files/shm")]);
    for (member, _) in MEMBERS {
        fs::create_dir_all(folder.path(member)).expect("create a bundle");
        call("cp", &["-a", &folder.path("bundle/rootfs"), &folder.path(&format!("{member}/rootfs"))]);
    }
}

/// A pod of a contender.
struct Pod<'a> {
    folder: &'a Folder,
    contender: Contender,
    name: String,
}

impl Pod<'_> {
    /// Starts the pod and all its containers, and removes it. Returns the time of each container in milliseconds.
    fn run(&self) -> [f64; 3] {
        self.plug();
        settle();
        let times = MEMBERS.map(|(member, recorded)| {
            self.write_bundle(member, recorded);
            self.start(member)
        });
        for (member, _) in MEMBERS.iter().rev() {
            self.command(&["delete", "--force", &self.id(member)]);
        }
        call("ip", &["netns", "del", &self.name]);
        times
    }

    /// Makes the pod's network namespace with an interface, as CNI does.
    fn plug(&self) {
        let name = &self.name;
        call("ip", &["netns", "add", name]);
        call("ip", &["-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "peer0"]);
        call("ip", &["-n", name, "addr", "add", "10.9.0.2/24", "dev", "eth0"]);
        for link in ["lo", "eth0", "peer0"] {
            call("ip", &["-n", name, "link", "set", link, "up"]);
        }
    }

    fn id(&self, member: &str) -> String {
        format!("{}-{member}", self.name)
    }

    fn pid_file(&self, member: &str) -> String {
        self.folder.path(&format!("{member}.pid"))
    }

    fn write_bundle(&self, member: &str, recorded: &str) {
        let process = fs::read_to_string(self.pid_file("sandbox")).unwrap_or_default();
        let mut text = recorded.to_owned();
        for (word, value) in [
            ("@FILES@", &self.folder.path("files")),
            ("@NETWORK@", &format!("/run/netns/{}", self.name)),
            ("@PROCESS@", &process),
            ("@POD@", &self.id("sandbox")),
            ("@ID@", &self.id(member)),
            ("@UID@", &self.name),
        ] {
            text = text.replace(word, value);
        }
        let mut config: Value = serde_json::from_str(&text).expect("parse the recorded configuration");
        config["process"]["args"] = json!(PROGRAM);
        let path = self.folder.path(&format!("{member}/config.json"));
        fs::write(path, config.to_string()).expect("write config.json");
    }

    /// Creates and starts a container. Returns the time to its line of output, in milliseconds.
    fn start(&self, member: &str) -> f64 {
        let (output, end) = pipe().expect("make a pipe");
        let bundle = self.folder.path(member);
        let id = self.id(member);
        let begun = Instant::now();
        let mut create = self.program();
        create.args(["create", "--bundle", &bundle, "--pid-file", &self.pid_file(member), &id]).stdout(end);
        succeed(&mut create);
        // The command holds the other end of the pipe.
        drop(create);
        self.command(&["start", &id]);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("read the container's output");
        assert_eq!(line, "hello\n", "{id}");
        begun.elapsed().as_secs_f64() * 1000.0
    }

    fn command(&self, words: &[&str]) {
        succeed(self.program().args(words).stdout(Stdio::null()));
    }

    /// The contender's program with a state directory of its own.
    fn program(&self) -> Command {
        let (program, root) = match self.contender {
            Contender::Runc => ("runc".to_owned(), "runc-state"),
            Contender::OtherVmm => (self.folder.path("other"), "other-state"),
            _ => (self.folder.path("vmm"), "vmm-state"),
        };
        let mut command = Command::new(program);
        command.args(["--root", &self.folder.path(root)]).env("VMM_TEMPLATE_MAKE", "never");
        command
    }
}

fn call(program: &str, words: &[&str]) {
    succeed(Command::new(program).args(words).stdout(Stdio::null()));
}

fn succeed(command: &mut Command) {
    let status = command.stdin(Stdio::null()).stderr(Stdio::inherit()).status();
    let status = status.unwrap_or_else(|error| panic!("start {:?}: {error}", command.get_program()));
    assert!(status.success(), "{command:?}: {status}");
}
