//! An engine with one runtime, and its command line.

use std::cell::RefCell;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;
use tests::{Daemon, Finished, Running, program};

use crate::{images, leftovers};

/// `vmm` told to leave the host's vhost-net alone, as a further runtime of Docker's.
pub const WITHOUT_VHOST: &str = "vmm-without-vhost";

/// Which engine.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    /// dockerd, with the containerd that it starts.
    Docker,
    /// The same as a service of systemd's, whose cgroups it uses.
    DockerOfSystemd,
    /// The same where cgroups are version 1's.
    DockerOfCgroup1,
    /// Podman, which has no daemon, with conmon.
    Podman,
    /// containerd by itself, driven by ctr.
    Containerd,
}

impl Kind {
    /// As the table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Docker => "docker",
            Kind::DockerOfSystemd => "docker, systemd",
            Kind::DockerOfCgroup1 => "docker, cgroup v1",
            Kind::Podman => "podman",
            Kind::Containerd => "containerd",
        }
    }
}

/// An engine whose only, or default, runtime is the one under test; it goes with the value.
pub struct Engine {
    kind: Kind,
    runtime: &'static str,
    dir: TempDir,
    daemon: RefCell<Option<Daemon>>,
}

impl Engine {
    /// Starts the engine and gives it its images.
    pub fn start(kind: Kind, runtime: &'static str) -> Engine {
        let dir = TempDir::new().expect("make a folder for the engine");
        let engine = Engine { kind, runtime, dir, daemon: RefCell::new(None) };
        engine.start_daemon(&[]);
        images::import_busybox(&engine);
        engine
    }

    /// Whether the runtime under test is ours.
    pub fn is_vm(&self) -> bool {
        self.runtime == "vmm"
    }

    /// A folder that goes with the engine.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts the daemon, if the engine has one, with these flags besides its usual ones.
    pub fn start_daemon(&self, flags: &[&str]) {
        let (command, ready) = match self.kind {
            Kind::Docker | Kind::DockerOfCgroup1 => (self.dockerd(), "API listen on"),
            Kind::DockerOfSystemd => (self.service(&self.dockerd()), "API listen on"),
            Kind::Podman => return,
            Kind::Containerd => (self.containerd(), "containerd successfully booted"),
        };
        let mut command = command;
        command.args(flags);
        let daemon = Daemon::start(command, &self.dir.path().join("daemon.log"), ready);
        self.daemon.replace(Some(daemon));
    }

    /// Ends the daemon with `signal`.
    pub fn end_daemon(&self, signal: Signal) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        daemon.end(signal);
    }

    fn dockerd(&self) -> Command {
        let mut command = Command::new("/usr/sbin/dockerd");
        command.arg("--exec-root").arg(self.dir.path().join("run"));
        command.arg("--pidfile").arg(self.dir.path().join("docker.pid"));
        command.arg("-H").arg(format!("unix://{}", self.socket().display()));
        command.args(["--add-runtime", &format!("vmm={}", program().display())]);
        command.args(["--add-runtime", &format!("{WITHOUT_VHOST}={}", self.without_vhost().display())]);
        command.args(["--default-runtime", self.runtime]);
        if self.kind == Kind::DockerOfSystemd {
            command.args(["--exec-opt", "native.cgroupdriver=systemd"]);
        }
        command
    }

    /// A program that is `vmm` with a setting: Docker's command line has no way to give a runtime arguments.
    fn without_vhost(&self) -> PathBuf {
        let path = self.dir.path().join(WITHOUT_VHOST);
        let script = format!("#!/bin/sh\nVMM_VHOST_NET=off exec {} \"$@\"\n", program().display());
        fs::write(&path, script).expect("write a runtime's script");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("make a script executable");
        path
    }

    /// What runs `command` as a service of a systemd of its own.
    fn service(&self, command: &Command) -> Command {
        let mut service = Command::new("bash");
        service.args(["-c", include_str!("systemd.sh"), "systemd.sh"]).arg(self.dir.path());
        service.arg(command.get_program()).args(command.get_args());
        service
    }

    /// A command that asks the engine's systemd.
    pub fn systemctl(&self, words: &[&str]) -> Command {
        let unshare = fs::read_to_string(self.dir.path().join("unshare.pid")).expect("systemd was started");
        let unshare = unshare.trim();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"));
        let systemd = children.expect("list children");
        let mut command = Command::new("nsenter");
        command.args(["--target", systemd.trim(), "--pid", "--mount", "--cgroup", "systemctl"]).args(words);
        command
    }

    fn containerd(&self) -> Command {
        let config = self.dir.path().join("containerd.toml");
        let text = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
        fs::write(&config, text).expect("write containerd's configuration");
        let mut command = Command::new("/usr/bin/containerd");
        command.arg("--config").arg(config).arg("--address").arg(self.socket());
        command.arg("--state").arg(self.dir.path().join("run"));
        command.arg("--root").arg(self.dir.path().join("lib"));
        command
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("engine.sock")
    }

    /// The engine's command line with these words.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = match self.kind {
            Kind::Docker | Kind::DockerOfSystemd | Kind::DockerOfCgroup1 => {
                let mut command = Command::new("/usr/bin/docker");
                command.arg("-H").arg(format!("unix://{}", self.socket().display()));
                command.env("DOCKER_BUILDKIT", "0").env("DOCKER_CONFIG", self.dir.path());
                command
            }
            Kind::Podman => {
                let mut command = Command::new("/usr/bin/podman");
                command.arg("--runtime").arg(self.program()).args(["--cgroup-manager", "cgroupfs"]);
                command.args(["--events-backend", "file"]);
                command
            }
            Kind::Containerd => {
                let mut command = Command::new("/usr/bin/ctr");
                command.arg("--address").arg(self.socket());
                command
            }
        };
        command.args(words);
        command
    }

    /// Runs the command line to its end.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Finished {
        self.feed(words, b"")
    }

    /// Runs the command line to its end with `input` on its standard input.
    #[track_caller]
    pub fn feed(&self, words: &[&str], input: &[u8]) -> Finished {
        Running::start(self.command(words)).feed(input).finish()
    }

    /// What a command line that succeeds prints, without the last line's end.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> String {
        let done = self.run(words);
        assert!(done.status.success(), "{words:?}: {done}");
        done.text()
    }

    /// Starts the command line with pipes.
    pub fn start_command(&self, words: &[&str]) -> Running {
        Running::start(self.command(words))
    }

    /// Starts a container `name` in the background and waits until it has printed `mark`.
    #[track_caller]
    pub fn start_container(&self, name: &str, words: &[&str], mark: &str) {
        let mut all = vec!["run", "-d", "--name", name];
        all.extend(words);
        self.ok(&all);
        self.wait_log(name, mark);
    }

    /// Waits until the log of `name` holds `mark`.
    #[track_caller]
    pub fn wait_log(&self, name: &str, mark: &str) {
        let mut log = self.start_command(&["logs", "-f", name]);
        log.wait_for(mark);
        log.stop();
    }

    /// A field of `inspect`, such as `.State.ExitCode`.
    #[track_caller]
    pub fn inspect(&self, name: &str, field: &str) -> String {
        self.ok(&["inspect", "--format", &format!("{{{{{field}}}}}"), name])
    }

    /// Makes an image `name` of an archive of a root file system, with a shell as its command.
    pub fn import(&self, archive: &Path, name: &str) {
        match self.kind {
            Kind::Docker | Kind::DockerOfSystemd | Kind::DockerOfCgroup1 | Kind::Podman => {
                let archive = archive.to_str().expect("the path is text");
                self.ok(&["import", "--change", "CMD [\"sh\"]", archive, name]);
            }
            // ctr runs a root file system that is no image.
            Kind::Containerd => {}
        }
    }

    /// Removes every container, and asserts that nothing of the runtime's is left on the host.
    pub fn clean(&self) {
        match self.kind {
            Kind::Docker | Kind::DockerOfSystemd | Kind::DockerOfCgroup1 | Kind::Podman => {
                let all = self.ok(&["ps", "-aq"]);
                if !all.is_empty() {
                    let mut words = vec!["rm", "-f", "-v"];
                    words.extend(all.lines());
                    self.ok(&words);
                }
            }
            Kind::Containerd => {
                for id in self.ok(&["container", "list", "-q"]).lines() {
                    // A case that failed may have left it at any step.
                    self.run(&["task", "kill", "-s", "SIGKILL", id]);
                    self.run(&["task", "delete", "-f", id]);
                    self.ok(&["container", "delete", id]);
                }
            }
        }
        if self.is_vm() {
            leftovers::assert_none(self.dir.path());
        }
    }

    /// The runtime's program.
    fn program(&self) -> PathBuf {
        if self.is_vm() { program() } else { PathBuf::from("/usr/sbin/runc") }
    }

    /// Whether a process of the runtime's runs.
    pub fn runtime_runs(&self) -> bool {
        !leftovers::processes(&self.program()).is_empty()
    }

    /// Whether the runtime has the state of a container that Docker made.
    pub fn has_state(&self) -> bool {
        leftovers::states(self.dir.path()).iter().any(|path| !leftovers::names(path).is_empty())
    }

    /// Prints the end of the daemon's log.
    pub fn show_log(&self) {
        if let Some(daemon) = self.daemon.borrow().as_ref() {
            daemon.show_log();
        }
    }
}
