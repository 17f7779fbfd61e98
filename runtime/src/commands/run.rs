//! `vmm run`: runs a bundle in a new machine, up to the container's exit code.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use host::hooks::{self, Variables};
use host::signals::Signals;
use host::{confine, environment, sys};
use oci::Bundle;
use oci::spec::Hooks;
use plan::vm::Kernel;
use vmm::Timeline;

use super::container::create;
use super::container::hook_points::{bytes_of, run_last, with_environment};
use super::container::life::Life;
use super::container::{check_console, refuse_descriptors, write_pid};
use super::{inherited, own_users};
use crate::assembly::{self, Assembly};
use crate::checkpoint::Checkpoint;
use crate::cli::{EngineArgs, RunArgs};
use crate::config::RunConfig;
use crate::console::KernelMarks;
use crate::marks::{GUEST_MARKS, Marks};
use crate::pod::supervisor::Started;
use crate::state::{ContainerState, PodState, StateDir, StateRoot};
use crate::{image, logging};

/// `vmm run`: in the foreground, or with `--detach` create and start. `start` is when this process began.
pub fn run(root: &StateRoot, args: RunArgs, start: Instant) -> Result<u8> {
    if args.detach {
        let create = if args.image.is_some() { create::restore } else { create::create_and_start };
        return create(root, args);
    }
    let engine = args.engine.clone();
    let config = RunConfig::resolve(args, |name| std::env::var_os(name))?;
    foreground(root, config, &engine, start)
}

/// Runs the bundle in the foreground. Returns the exit code.
fn foreground(root: &StateRoot, mut config: RunConfig, engine: &EngineArgs, start: Instant) -> Result<u8> {
    refuse_descriptors(engine.preserve_fds)?;
    check_console(false, engine.console_socket.as_deref(), false)?;
    let marks = BootMarks::new(&config, start);
    let environment = Variables::own();
    // A user namespace may not map the owner of the files.
    let checkpoint = config.image.as_deref().map(Checkpoint::open).transpose()?;
    // No thread exists yet; for root, KVM works while the bundle is read.
    let early = (sys::effective_user() != 0).then(|| load_of_user(&config.bundle)).transpose()?;
    environment::seclude()?;
    confine::prepare(logging::forbidden).context("prepare the confinement")?;
    // Before the first thread starts, so that every thread blocks these signals.
    let signals = Signals::block().context("block signals")?;
    let host = assembly::host();
    // KVM needs time to create a machine; the host's settings and the bundle are read meanwhile.
    let assembly = Assembly::begin()?.with_marks(marks.timeline.clone(), marks.kernel.clone());
    config.vm.inherited = inherited()?;
    let mut bundle = early.map_or_else(|| Bundle::load(&config.bundle), Ok)?;
    create::lend_host_name(&mut bundle.spec)?;
    // Other commands find a container by its id. A container without one has no directory that could be left behind.
    let registered = config.is_named.then(|| root.claim(&config.id)).transpose()?;
    let mut life = Life::new(RunConfig { bundle: absolute(&config.bundle)?, ..config.clone() }, bundle);
    life.checkpoint = checkpoint;
    life.directory = registered.as_ref().map(|(directory, _)| directory.clone());
    life.foreground = true;
    life.timeline = marks.timeline.clone();
    life.host = Some(host);
    let hooks = with_environment(life.bundle.spec.hooks.clone(), &life.bundle.process.env);
    let environment = environment.kept_for(hooks.all());
    life.environment = environment.clone();
    let ran = (|| {
        engine.pid_file.as_deref().map_or(Ok(()), |path| write_pid(path, std::process::id()))?;
        let prepared = life.prepare()?;
        marks.mark("planned");
        let created = bytes_of(&told(&life, "created"));
        if config.image.is_none() {
            hooks::run("startContainer", &hooks.start_container, &created, &environment)?;
        }
        let mut supervisor = life.begin(prepared, signals, assembly, started(&hooks, &life, &environment))?;
        let code = supervisor.run()?;
        let failed = supervisor.output_error();
        supervisor.stop_machine();
        marks.mark("vm_ended");
        match failed {
            Some((stream, error)) => Err(error).with_context(|| format!("write {stream}")),
            None => Ok(code),
        }
    })();
    if ran.is_ok() {
        "stopped".clone_into(&mut life.state.status);
    }
    let deleted = delete(&life, registered);
    run_last(&hooks.poststop, &life.state.stopped(), &environment);
    environment.forget();
    marks.write(&config)?;
    let code = ran?;
    deleted.map(|()| code)
}

/// Loads an ordinary user's bundle, and enters a user namespace for it.
fn load_of_user(path: &Path) -> Result<Bundle> {
    let mut bundle = Bundle::load(path)?;
    own_users::enter(Some(&mut bundle.spec.linux))?;
    Ok(bundle)
}

/// Deletes what the container has on the host.
fn delete(life: &Life, registered: Option<(StateDir, File)>) -> Result<()> {
    life.leave_cgroup()?;
    match registered {
        Some((directory, _held)) => Ok(directory.delete_own(&life.state)?),
        None => Ok(life.state.cgroup.remove()?),
    }
}

/// Runs the hooks that follow the container's start. No request of another process is served meanwhile.
fn started(hooks: &Hooks, life: &Life, environment: &Variables) -> Started {
    if hooks.poststart.is_empty() {
        return Box::new(|_| Ok(()));
    }
    let running = bytes_of(&told(life, "running"));
    let (hooks, environment) = (hooks.poststart.clone(), environment.clone());
    Box::new(move |_| Ok(hooks::run("poststart", &hooks, &running, &environment)?))
}

/// Returns the state that hooks get.
fn told(life: &Life, status: &str) -> PodState {
    let name = life.state.id.clone();
    let container = ContainerState { name, status: status.to_owned(), ..ContainerState::default() };
    PodState { status: status.to_owned(), containers: vec![container], ..life.state.clone() }
}

fn absolute(bundle: &Path) -> Result<std::path::PathBuf> {
    std::path::absolute(bundle).with_context(|| format!("open bundle {}", bundle.display()))
}

/// Starts the boot's marks if `--marks` was given.
struct BootMarks {
    timeline: Option<Arc<Timeline>>,
    kernel: Option<KernelMarks>,
}

impl BootMarks {
    fn new(config: &RunConfig, start: Instant) -> BootMarks {
        let asked = config.marks.is_some();
        let timeline = asked.then(|| Arc::new(Timeline::starting(start).with_guest_marks(&GUEST_MARKS)));
        if let Some(timeline) = &timeline {
            timeline.at("start", start);
        }
        BootMarks { timeline, kernel: asked.then(KernelMarks::default) }
    }

    fn mark(&self, name: &'static str) {
        if let Some(timeline) = &self.timeline {
            timeline.mark(name);
        }
    }

    fn write(&self, config: &RunConfig) -> Result<()> {
        let (Some(to), Some(timeline)) = (&config.marks, &self.timeline) else { return Ok(()) };
        let kernel = self.kernel.as_ref().map(|marks| marks.lock().unwrap().clone()).unwrap_or_default();
        let marks = Marks { host: timeline.marks(), kernel };
        marks.write(to, std::io::stderr()).with_context(|| format!("write marks {}", to.display()))
    }
}

/// Describes the embedded kernel and initramfs for `vmm --version`.
pub fn embedded() -> String {
    let size = |part: Option<vmm::Image>| {
        part.map_or("not embedded".to_owned(), |image| format!("embedded, {} KiB", image.len >> 10))
    };
    let sizes = || -> image::Result<String> {
        let [base, full] = [image::Embedded::find(Kernel::Base)?, image::Embedded::find(Kernel::Full)?];
        let [kernel, full, agent] = [base.kernel, full.kernel, base.initramfs].map(size);
        Ok(format!("kernel: {kernel}\nkernel for privileged containers: {full}\nagent: {agent}"))
    };
    sizes().unwrap_or_else(|error| format!("kernel and agent: {error}"))
}
