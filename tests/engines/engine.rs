//! An engine with the runtime under test, and its command line.

use std::cell::RefCell;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;
use tests::{Daemon, Finished, Running, check_output, program};

use crate::{images, leftovers};

/// Name of a runtime of Docker: `vmm` without the host's vhost-net.
pub const WITHOUT_VHOST: &str = "vmm-without-vhost";
/// Name of a runtime of Docker: `vmm` with all CPUs of the host, where the tests of machines have one.
const WITH_ALL_CPUS: &str = "vmm-with-all-cpus";

/// The engines.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    /// dockerd, with the containerd that it starts.
    Docker,
    /// dockerd as a service of systemd, with systemd's cgroup driver.
    DockerOfSystemd,
    /// dockerd on a host with cgroups of version 1.
    DockerOfCgroup1,
    /// Podman, which has no daemon, with conmon.
    Podman,
    /// Podman of an ordinary user.
    RootlessPodman,
    /// Docker of an ordinary user, with RootlessKit.
    RootlessDocker,
    /// containerd without Docker, with the command line ctr.
    Containerd,
    /// No engine: the runtime's own command line.
    None,
}

impl Kind {
    /// The engine's name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Docker => "docker",
            Kind::DockerOfSystemd => "docker, systemd",
            Kind::DockerOfCgroup1 => "docker, cgroup v1",
            Kind::Podman => "podman",
            Kind::RootlessPodman => "podman, rootless",
            Kind::RootlessDocker => "docker, rootless",
            Kind::Containerd => "containerd",
            Kind::None => "none",
        }
    }
}

/// A running engine whose only or default runtime is the one under test. It is stopped on drop.
pub struct Engine {
    kind: Kind,
    runtime: &'static str,
    dir: TempDir,
    daemon: RefCell<Option<Daemon>>,
    /// The user of a rootless engine.
    user: Option<u32>,
}

impl Engine {
    /// Starts the engine and imports its image.
    pub fn start(kind: Kind, runtime: &'static str) -> Engine {
        let dir = TempDir::new().expect("create a directory for the engine");
        let rootless = matches!(kind, Kind::RootlessPodman | Kind::RootlessDocker);
        let user = rootless.then(|| ordinary_user(dir.path()));
        let engine = Engine { kind, runtime, dir, daemon: RefCell::new(None), user };
        engine.start_daemon(&[]);
        images::import_busybox(&engine);
        engine
    }

    /// Whether the runtime under test is `vmm`.
    pub fn is_vm(&self) -> bool {
        self.runtime == "vmm"
    }

    /// The engine's directory, which is removed on drop.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts the daemon, if the engine has one, with these additional flags.
    pub fn start_daemon(&self, flags: &[&str]) {
        let (command, ready) = match self.kind {
            Kind::Docker | Kind::DockerOfCgroup1 => (self.dockerd(), "API listen on"),
            Kind::DockerOfSystemd => (self.service(&self.dockerd()), "API listen on"),
            Kind::RootlessDocker => (self.dockerd(), "API listen on"),
            Kind::Podman | Kind::RootlessPodman | Kind::None => return,
            Kind::Containerd => (self.containerd(), "containerd successfully booted"),
        };
        let mut command = command;
        command.args(flags);
        let daemon = Daemon::start(command, &self.dir.path().join("daemon.log"), ready);
        self.daemon.replace(Some(daemon));
    }

    /// Sends `signal` to the daemon and waits for its end.
    pub fn end_daemon(&self, signal: Signal) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        daemon.end(signal);
    }

    fn dockerd(&self) -> Command {
        let mut command = Command::new(match self.user {
            None => "/usr/sbin/dockerd",
            Some(_) => "/usr/share/docker.io/contrib/dockerd-rootless.sh",
        });
        self.as_user(&mut command);
        command.arg("--exec-root").arg(self.run_dir().join("run"));
        command.arg("--pidfile").arg(self.run_dir().join("docker.pid"));
        command.arg("-H").arg(format!("unix://{}", self.socket().display()));
        command.args(["--add-runtime", &format!("vmm={}", program().display())]);
        for (name, setting) in [(WITHOUT_VHOST, "VMM_VHOST_NET=off"), (WITH_ALL_CPUS, "VMM_MAX_CPUS=8")] {
            let script = self.runtime_with(name, setting);
            command.args(["--add-runtime", &format!("{name}={}", script.display())]);
        }
        command.args(["--default-runtime", self.runtime]);
        if self.kind == Kind::DockerOfSystemd {
            command.args(["--exec-opt", "native.cgroupdriver=systemd"]);
        }
        command
    }

    /// Writes a script `name` that runs `vmm` with a setting, because `docker` cannot pass arguments to a runtime.
    fn runtime_with(&self, name: &str, setting: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        let script = format!("#!/bin/sh\n{setting} exec {} \"$@\"\n", program().display());
        fs::write(&path, script).expect("write a runtime's script");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("make a script executable");
        path
    }

    /// Flags of `docker run` for a container with all CPUs of the host.
    pub fn all_cpus(&self) -> &'static [&'static str] {
        if self.is_vm() { &["--runtime", WITH_ALL_CPUS] } else { &[] }
    }

    /// Returns a command that runs `command` as a service of a new systemd.
    fn service(&self, command: &Command) -> Command {
        let mut service = Command::new("bash");
        service.args(["-c", include_str!("systemd.sh"), "systemd.sh"]).arg(self.dir.path());
        service.arg(command.get_program()).args(command.get_args());
        service
    }

    /// `systemctl` of the engine's systemd.
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
        self.run_dir().join("engine.sock")
    }

    /// The directory of the engine's sockets and state.
    fn run_dir(&self) -> PathBuf {
        self.dir.path().join(if self.user.is_some() { "xdg" } else { "" })
    }

    /// Makes `command` one of the rootless engine's user.
    fn as_user(&self, command: &mut Command) {
        if let Some(user) = self.user {
            command.uid(user).gid(user).current_dir("/").env_remove("TMPDIR");
            command.env("USER", "vmm-engines").env("HOME", self.dir.path().join("home"));
            command.env("XDG_RUNTIME_DIR", self.dir.path().join("xdg"));
            command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        }
    }

    /// The engine's command line with these arguments.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = match self.kind {
            Kind::Docker | Kind::DockerOfSystemd | Kind::DockerOfCgroup1 | Kind::RootlessDocker => {
                let mut command = Command::new("/usr/bin/docker");
                command.arg("-H").arg(format!("unix://{}", self.socket().display()));
                command.env("DOCKER_BUILDKIT", "0").env("DOCKER_CONFIG", self.dir.path());
                command
            }
            Kind::Podman | Kind::RootlessPodman => {
                let mut command = Command::new("/usr/bin/podman");
                command.arg("--runtime").arg(self.program()).args(["--cgroup-manager", "cgroupfs"]);
                command.args(["--events-backend", "file"]);
                self.as_user(&mut command);
                command
            }
            Kind::Containerd => {
                let mut command = Command::new("/usr/bin/ctr");
                command.arg("--address").arg(self.socket());
                command
            }
            Kind::None => Command::new(self.program()),
        };
        command.args(words);
        command
    }

    /// Runs the engine's command line.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Finished {
        self.feed(words, b"")
    }

    /// Runs the engine's command line with `input` on its standard input.
    #[track_caller]
    pub fn feed(&self, words: &[&str], input: &[u8]) -> Finished {
        Running::start(self.command(words)).feed(input).finish()
    }

    /// Runs docker-compose with the project `town` of a file.
    #[track_caller]
    pub fn compose(&self, file: &Path, words: &[&str]) -> Finished {
        let mut command = Command::new("/usr/bin/docker-compose");
        command.env("DOCKER_HOST", format!("unix://{}", self.socket().display()));
        command.args(["--project-name", "town", "--file"]).arg(file).args(words);
        Running::start(command).feed(b"").finish()
    }

    /// Returns what a command line that must succeed prints, without the last newline.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> String {
        let done = self.run(words);
        assert!(done.status.success(), "{words:?}: {done}");
        done.text()
    }

    /// Runs `script` in a new container of the image `box` with these flags. Returns its output, without the last
    /// newline.
    #[track_caller]
    pub fn sh(&self, flags: &[&str], script: &str) -> String {
        self.ok(&[&["run", "--rm"], flags, &["box", "sh", "-c", script]].concat())
    }

    /// Starts the engine's command line with pipes for its standard streams.
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

    /// Waits until the log of `name` contains `mark`.
    #[track_caller]
    pub fn wait_log(&self, name: &str, mark: &str) {
        let mut log = self.start_command(&["logs", "-f", name]);
        log.wait_for(mark);
        log.stop();
    }

    /// Returns a field of `inspect`, such as `.State.ExitCode`.
    #[track_caller]
    pub fn inspect(&self, name: &str, field: &str) -> String {
        self.ok(&["inspect", "--format", &format!("{{{{{field}}}}}"), name])
    }

    /// Imports an archive of a root file system as image `name`, whose command is a shell.
    pub fn import(&self, archive: &Path, name: &str) {
        match self.kind {
            Kind::Docker
            | Kind::DockerOfSystemd
            | Kind::DockerOfCgroup1
            | Kind::Podman
            | Kind::RootlessPodman
            | Kind::RootlessDocker => {
                let archive = archive.to_str().expect("the path is UTF-8");
                let command = self.start_command(&["import", "--change", "CMD [\"sh\"]", archive, name]);
                // The largest image has 1.4 GB.
                command.for_longer(4).finish().code(0);
            }
            // ctr and runtimes run a root file system without an image.
            Kind::Containerd | Kind::None => {}
        }
    }

    /// Removes all containers, and asserts that the runtime has left nothing on the host.
    pub fn clean(&self) {
        match self.kind {
            Kind::Docker
            | Kind::DockerOfSystemd
            | Kind::DockerOfCgroup1
            | Kind::Podman
            | Kind::RootlessPodman
            | Kind::RootlessDocker => {
                if matches!(self.kind, Kind::Podman | Kind::RootlessPodman) {
                    self.ok(&["pod", "rm", "-a", "-f", "-t", "0"]);
                }
                let all = self.ok(&["ps", "-aq"]);
                if !all.is_empty() {
                    let mut words = vec!["rm", "-f", "-v"];
                    words.extend(all.lines());
                    self.ok(&words);
                }
            }
            Kind::Containerd => {
                for id in self.ok(&["container", "list", "-q"]).lines() {
                    // A failed case may have left it in any state.
                    self.run(&["task", "kill", "-s", "SIGKILL", id]);
                    self.run(&["task", "delete", "-f", id]);
                    self.ok(&["container", "delete", id]);
                }
            }
            Kind::None => {
                for id in self.ok(&["list", "-q"]).lines() {
                    self.ok(&["delete", "--force", id]);
                }
            }
        }
        if self.is_vm() {
            leftovers::assert_none(self.dir.path());
        }
    }

    /// The runtime's program.
    pub fn program(&self) -> PathBuf {
        if self.is_vm() { program() } else { PathBuf::from("/usr/sbin/runc") }
    }

    /// Whether a process of the runtime exists.
    pub fn runtime_runs(&self) -> bool {
        !leftovers::processes(&self.program()).is_empty()
    }

    /// Whether the runtime has the state of a container of Docker.
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

/// Prepares an ordinary user, whose home and runtime directories are in `dir`. Returns its ID.
fn ordinary_user(dir: &Path) -> u32 {
    let script = include_str!("rootless.sh");
    let id = check_output(Command::new("bash").args(["-c", script, "rootless.sh"]).arg(dir));
    id.trim().parse().expect("a user's ID")
}
