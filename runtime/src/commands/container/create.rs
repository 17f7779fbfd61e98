//! `vmm create`: forks the container's process, and returns once the container is ready for `vmm start`.

use std::fs;
use std::os::fd::{AsFd, IntoRawFd};
use std::os::unix::process::parent_id;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use host::cgroup::Cgroup;
use host::hooks::Variables;
use host::signals::Signals;
use host::{confine, environment, sys};
use oci::bundle::Bundle;
use oci::refusals;
use oci::spec::{Hook, Spec};

use super::delete::{delete_remains, kill_process};
use super::home::{self, Home};
use super::life::{Life, refuse_foreground_flags};
use super::member;
use super::{check_console, refuse_descriptors, start, write_pid};
use crate::assembly::{self, Assembly};
use crate::checkpoint::Checkpoint;
use crate::cli::RunArgs;
use crate::cli::container::CreateArgs;
use crate::commands::{inherited, own_users};
use crate::config::RunConfig;
use crate::pod::supervisor::Started;
use crate::report::{self, Forked, Reporter};
use crate::state::{StateDir, StateRoot};
use crate::template::{Wanted, maker};
use crate::{deadlines, exit, logging};

/// The error if the container's process ended without a report.
const SILENT: &str = "the container's process ended before the container was created";

pub fn create_from(root: &StateRoot, args: CreateArgs) -> Result<u8> {
    let CreateArgs { id, bundle, engine } = args;
    create(root, RunArgs { target: Some(id), bundle: Some(bundle), engine, ..RunArgs::default() })
}

/// `vmm run --detach`: creates the container and starts it.
pub fn create_and_start(root: &StateRoot, args: RunArgs) -> Result<u8> {
    let id = RunConfig::named(&args)?;
    let process = std::process::id();
    let code = create(root, args)?;
    // This is the forked process, whose container has ended.
    if std::process::id() != process {
        return Ok(code);
    }
    start(root, &id)
}

/// `vmm restore --detach`: creates a container that goes on from a checkpoint, without `vmm start`.
pub fn restore(root: &StateRoot, args: RunArgs) -> Result<u8> {
    create(root, args)
}

/// Creates a container. Returns 0 once it is created; the forked process returns its exit code at its end.
fn create(root: &StateRoot, args: RunArgs) -> Result<u8> {
    let engine = args.engine.clone();
    refuse_descriptors(engine.preserve_fds)?;
    let mut config = RunConfig::resolve(args, |name| std::env::var_os(name))?;
    config.bundle = std::path::absolute(&config.bundle)
        .with_context(|| format!("open bundle {}", config.bundle.display()))?;
    refuse_foreground_flags(&config)?;
    config.vm.inherited = inherited()?;
    let mut bundle = Bundle::load(&config.bundle)?;
    refusals::check_engine(&bundle.spec)?;
    lend_host_name(&mut bundle.spec)?;
    check_console(bundle.process.terminal, engine.console_socket.as_deref(), true)?;
    let home = home::find(root, &bundle.spec)?;
    let checkpoint = config.image.as_deref().map(Checkpoint::open).transpose()?;
    ensure!(
        checkpoint.is_none() || home.is_none(),
        "restore a container into the machine of another one: not supported"
    );
    let mut life = Life::new(config, bundle);
    life.checkpoint = checkpoint;
    life.console_socket = engine.console_socket;
    make(root, life, home, engine.pid_file.as_deref())
}

/// A container without a host name of its own has the host's, with and without a UTS namespace; the guest gets the name of
/// this moment.
pub(in crate::commands) fn lend_host_name(spec: &mut Spec) -> Result<()> {
    if spec.hostname.is_empty() {
        let name = fs::read_to_string("/proc/sys/kernel/hostname").context("read the host's name")?;
        name.trim_end().clone_into(&mut spec.hostname);
    }
    Ok(())
}

/// Deletes what process `pid` left of a container whose creation failed. Does nothing if another container has taken the
/// name.
fn delete_failed(root: &StateRoot, life: &Life, pid: u32) -> Result<()> {
    let Some(directory) = root.claimed_by(&life.config.id, pid) else { return Ok(()) };
    kill_process(&directory)?;
    let poststop = &life.bundle.spec.hooks.poststop;
    delete_remains(&directory, directory.read()?, poststop, &Variables::own())
}

/// Creates the container in a forked process, which detects the death of this process.
fn make(root: &StateRoot, life: Life, home: Option<Home>, pid_file: Option<&Path>) -> Result<u8> {
    match report::fork("fork the container's process", None)? {
        Forked::Child(reporter) => Ok(container(root, life, home.as_ref(), &reporter)),
        Forked::Parent(pid, reader) => {
            let made = report::wait(reader, SILENT)
                .and_then(|said| pid_file.map_or(Ok(()), |path| write_pid(path, pid)).map(|()| said));
            if made.is_err() {
                // The process is a child, so its id cannot be reused. It may still run after its report.
                let ended = sys::process(pid)
                    .and_then(|process| sys::kill_and_wait(process.as_fd(), deadlines::GONE));
                ended.unwrap_or_else(|error| log::warn!("kill process {pid}: {error}"));
                delete_failed(root, &life, pid).unwrap_or_else(|error| log::warn!("{error:#}"));
            }
            if let Some(wanted) = Wanted::reported(&made?) {
                // This process has nothing of the container, and ends before the other.
                maker::launch(&life.config, wanted);
            }
            Ok(0)
        }
    }
}

/// Runs the container's process. Until it has reported that the container is created, the caller prints errors.
fn container(root: &StateRoot, mut life: Life, home: Option<&Home>, reporter: &Reporter) -> u8 {
    let entered = own_users::enter(Some(&mut life.bundle.spec.linux));
    let claimed = entered.and_then(|()| Ok(root.claim(&life.config.id)?));
    let (directory, held) = match claimed {
        Ok(claimed) => claimed,
        Err(error) => {
            let (code, message) = exit::of_error(&error);
            // Nothing exists on the host yet, whether the caller reads the report or not.
            let _ = reporter.send(exit::OCI_FAILED, &message);
            return code;
        }
    };
    // Holders of the lock wait for the end of this process, so only the kernel closes the lock.
    let _ = held.into_raw_fd();
    // This process closes its own descriptors before it has a machine.
    let poststop = life.bundle.spec.hooks.poststop.clone();
    let environment = Variables::own().kept_for(poststop.iter());
    life.environment = Variables::own();
    life.directory = Some(directory.clone());
    // The fork's process id differs from that of the process that read the bundle.
    life.state.pid = std::process::id();
    let parent = reporter.clone();
    let created = move |wanted: Option<Wanted>| {
        parent.send(0, &Wanted::report(wanted.as_ref())).map(drop).map_err(|_| Forgotten.into())
    };
    let lived = match home {
        None => live(&mut life, Box::new(created)),
        Some(home) => member::live(&mut life, home, Box::new(created)),
    };
    let error = match lived {
        Ok(code) => return code,
        Err(error) => error,
    };
    let (code, message) = exit::of_error(&error);
    match reporter.send(exit::OCI_FAILED, &message) {
        Ok(true) => {}
        Ok(false) if !error.is::<Forgotten>() => logging::failed(&message),
        _ => delete_forgotten(&life, &directory, &poststop, &environment),
    }
    code
}

/// The caller ended before the container was created.
#[derive(Debug, thiserror::Error)]
#[error("the calling process ended before the container was created")]
struct Forgotten;

/// Deletes what this process has created so far. The caller is gone, and an engine whose creation is interrupted may
/// not delete the container. An engine that does kills this process first, and finds the rest through the state file.
fn delete_forgotten(life: &Life, directory: &StateDir, poststop: &[Hook], environment: &Variables) {
    let delete = || {
        let state = directory.read()?;
        if !confine::is_entered() {
            // The container's cgroup is about to be removed, so this process joins that of its parent, which reaps it.
            let left = Cgroup::of_process(parent_id()).and_then(|cgroup| cgroup.join());
            left.context("leave the cgroup")?;
            return delete_remains(directory, state, poststop, environment);
        }
        life.leave_cgroup()?;
        // The machine ran, so that this process can neither run programs nor connect to systemd. `vmm delete` can.
        ensure!(
            poststop.is_empty() && !state.cgroup.has_unit(),
            "its hooks and its unit are left to vmm delete"
        );
        Ok(directory.delete_own(&state)?)
    };
    delete().unwrap_or_else(|error| log::warn!("{error:#}"));
}

/// Runs the container in a machine of its own, from its environment on the host to its end.
fn live(life: &mut Life, created: Started) -> Result<u8> {
    life.fork_kill_reporter()?;
    environment::seclude()?;
    confine::prepare(logging::forbidden).context("prepare the confinement")?;
    // Before the first thread starts, so that every thread blocks these signals. Hooks start with none blocked.
    let signals = Signals::block().context("block signals")?;
    life.host = Some(assembly::host());
    // KVM and this process each join a cgroup meanwhile. The kernel lets both pass after one grace period.
    let assembly = Assembly::begin()?;
    let prepared = life.prepare()?;
    let mut supervisor = life.begin(prepared, signals, assembly, created)?;
    supervisor.kill_reporter = life.kill_reporter.take();
    let code = supervisor.run()?;
    if let Some((name, error)) = supervisor.output_error() {
        log::warn!("write {name}: {error}");
    }
    Ok(code)
}
