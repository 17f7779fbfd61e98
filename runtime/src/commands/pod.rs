//! `vmm pod`: `run` runs a pod in this process; the other commands send requests to the pod's socket.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use host::signals::name::signal_of;
use host::sys;
use oci::exec::ProcessChanges;

use super::attached;
use super::request::{ask, connect, done, open_pod, tell, unexpected};
use crate::cli::pod::{PodCommand, PodExecArgs, TargetArgs};
use crate::control::{ExecRequest, Reply, Request};
use crate::deadlines;
use crate::pod::podfile;
use crate::state::{StateDir, StateError, StateRoot};

mod logs;
mod run;
mod table;

/// Executes a `vmm pod` command. Returns the exit code.
pub fn pod(root: &StateRoot, command: PodCommand) -> Result<u8> {
    match command {
        PodCommand::Run(args) => return run::run(root, *args),
        PodCommand::Exec(args) => return exec(root, args),
        PodCommand::Logs(args) => logs::logs(root, &args)?,
        PodCommand::List { json } => list(root, json)?,
        PodCommand::Ps { pod, processes: false, json } => table::containers(&root.open(&pod)?.look()?, json)?,
        PodCommand::Ps { pod, processes: true, json } => match ask(root, &pod, &Request::Processes)? {
            Reply::Processes(all) => table::processes(&all, json)?,
            other => return unexpected(&other),
        },
        PodCommand::Stats { pod, json } => match ask(root, &pod, &Request::Stats)? {
            Reply::Stats(all) => table::usage(&all, json)?,
            other => return unexpected(&other),
        },
        PodCommand::Stop { time, pod } => stop(&open_pod(root, &pod)?, time)?,
        PodCommand::Kill { signal, all, pod, container } => {
            let number = signal_of(&signal).with_context(|| format!("unknown signal {signal:?}"))?;
            let container = container.unwrap_or_default();
            tell(root, &pod, &Request::Kill { container, signal: number, all })?;
        }
        PodCommand::Rm { force, pods } => pods.iter().try_for_each(|pod| remove(root, pod, force))?,
        PodCommand::Add { pod, container } => add(root, &pod, &container)?,
        PodCommand::Remove { force, pod, container } => {
            tell(root, &pod, &Request::Remove { container, force })?;
        }
        PodCommand::Pause(target) => pause(root, target, true)?,
        PodCommand::Resume(target) => pause(root, target, false)?,
    }
    Ok(0)
}

fn list(root: &StateRoot, json: bool) -> Result<()> {
    let mut states = Vec::new();
    for directory in root.list()? {
        match directory.look() {
            Ok(state) => states.push(state),
            // A pod that ends meanwhile, or whose state is damaged, must not prevent the list of the others.
            Err(error) => log::warn!("pod {}: {error:#}", directory.id),
        }
    }
    table::pods(&states, json)
}

/// Stops a pod and waits until its process has ended.
fn stop(directory: &StateDir, grace: u64) -> Result<()> {
    let patience = Duration::from_secs(directory.read()?.patience.saturating_add(grace));
    let mut connection = connect(directory)?;
    let request = Request::Stop { grace };
    done(connection.ask(&request, &[])?)?;
    Ok(connection.wait_for_end(request.command(), patience + deadlines::ENDING)?)
}

fn remove(root: &StateRoot, pod: &str, force: bool) -> Result<()> {
    let directory = open_pod(root, pod)?;
    if directory.is_living() {
        if !force {
            return Err(StateError::Running(pod.to_owned()).into());
        }
        // The wait lets the pod write its output and last state, if it answers.
        if let Err(error) = stop(&directory, 0)
            && let Some(process) = directory.process()?
        {
            log::warn!("{error:#}; killing the pod's process");
            sys::kill_and_wait(process.as_fd(), deadlines::GONE)
                .with_context(|| format!("kill pod {pod:?}"))?;
        }
    }
    match directory.remove() {
        // A pod in the foreground removes its directory itself.
        Err(_) if root.open(pod).is_err() => Ok(()),
        removed => Ok(removed?),
    }
}

fn add(root: &StateRoot, pod: &str, path: &Path) -> Result<()> {
    let container = podfile::read_value(path)?;
    let base = path.canonicalize().with_context(|| format!("open {}", path.display()))?;
    let base = base.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
    tell(root, pod, &Request::Add { base, container })
}

fn pause(root: &StateRoot, target: TargetArgs, paused: bool) -> Result<()> {
    let container = target.container.unwrap_or_default();
    tell(root, &target.pod, &Request::Pause { container, paused })
}

/// Runs an exec process in a container. Returns its exit code.
fn exec(root: &StateRoot, args: PodExecArgs) -> Result<u8> {
    let directory = root.open(&args.pod)?;
    for variable in &args.env {
        let named = variable.split_once('=').is_some_and(|(name, _)| !name.is_empty());
        ensure!(named, "--env {variable:?}: not NAME=VALUE");
    }
    let changes = ProcessChanges {
        args: args.args,
        env: args.env,
        cwd: args.workdir,
        terminal: args.tty,
        ..ProcessChanges::default()
    };
    let request = ExecRequest {
        container: args.container,
        changes,
        user: args.user.unwrap_or_default(),
        terminal: args.tty,
        ..ExecRequest::default()
    };
    attached::run(&directory, request)
}
