//! `vmm pod`: pods are run here, and everything else is asked of the living process behind a pod's socket.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cli::pod::{MeantArgs, PodArgs, PodCommand};
use crate::control::{Connection, ControlError, Reply, Request};
use crate::exit::CodedError;
use crate::pod::podfile;
use crate::signals::name::signal_of;
use crate::state::{PodState, StateDir, StateError, StateRoot};

pub mod exec;
pub mod logs;
pub mod run;
mod table;

/// Does what `vmm pod` was told; returns the exit code.
pub fn pod(args: PodArgs) -> Result<u8> {
    let root = StateRoot::new(args.root, |name| std::env::var_os(name));
    match args.command {
        PodCommand::Run(args) => return run::run(&root, *args),
        PodCommand::Exec(args) => return exec::exec(&root, args),
        PodCommand::Logs(args) => logs::logs(&root, &args)?,
        PodCommand::List { json } => list(&root, json)?,
        PodCommand::Ps { pod, processes: false, json } => {
            table::containers(&state(&root.open(&pod)?)?, json)?
        }
        PodCommand::Ps { pod, processes: true, json } => match ask(&root, &pod, &Request::Processes)? {
            Reply::Processes(all) => table::processes(&all, json)?,
            other => return unexpected(&other),
        },
        PodCommand::Stats { pod, json } => match ask(&root, &pod, &Request::Stats)? {
            Reply::Stats(all) => table::usage(&all, json)?,
            other => return unexpected(&other),
        },
        PodCommand::Stop { time, pod } => stop(&root.open(&pod)?, time)?,
        PodCommand::Kill { signal, all, pod, container } => {
            let number = signal_of(&signal).with_context(|| format!("signal {signal:?}: there is none"))?;
            let container = container.unwrap_or_default();
            done(ask(&root, &pod, &Request::Kill { container, signal: number, all })?)?;
        }
        PodCommand::Rm { force, pods } => pods.iter().try_for_each(|pod| remove(&root, pod, force))?,
        PodCommand::Add { pod, container } => add(&root, &pod, &container)?,
        PodCommand::Remove { force, pod, container } => {
            done(ask(&root, &pod, &Request::Remove { container, force })?)?;
        }
        PodCommand::Pause(meant) => pause(&root, meant, true)?,
        PodCommand::Resume(meant) => pause(&root, meant, false)?,
    }
    Ok(0)
}

/// Asks a living pod; what it refuses is an error.
pub(super) fn ask(root: &StateRoot, pod: &str, request: &Request) -> Result<Reply> {
    checked(connect(&root.open(pod)?)?.ask(request, &[])?)
}

/// Connects to a living pod.
pub fn connect(directory: &StateDir) -> Result<Connection> {
    Ok(Connection::new(directory.connect()?, true)?)
}

/// An answer that says that something was not done is an error with the exit code that stands for it.
pub fn checked(reply: Reply) -> Result<Reply> {
    match reply {
        Reply::Failed { code, message } => Err(CodedError { code, message }.into()),
        reply => Ok(reply),
    }
}

/// Whatever is not the word that it was done is an error.
pub fn done(reply: Reply) -> Result<()> {
    if reply == Reply::Done { Ok(()) } else { unexpected(&reply) }
}

/// Says that an answer was another than what was asked for.
pub fn unexpected<T>(reply: &Reply) -> Result<T> {
    anyhow::bail!("the pod's answer was not expected: {reply:?}")
}

/// What a pod is: as it says itself, or as its last state does.
pub fn state(directory: &StateDir) -> Result<PodState> {
    match directory.connect() {
        Ok(socket) => match Connection::new(socket, true)?.ask(&Request::Status, &[]) {
            Ok(Reply::Status(state)) => Ok(*state),
            Ok(other) => unexpected(&checked(other)?),
            // It ended this moment.
            Err(ControlError::Ended) => Ok(directory.read_stopped()?),
            Err(error) => Err(error.into()),
        },
        Err(StateError::Stopped(_)) => Ok(directory.read_stopped()?),
        Err(error) => Err(error.into()),
    }
}

fn list(root: &StateRoot, json: bool) -> Result<()> {
    let mut states = Vec::new();
    for directory in root.list()? {
        match state(&directory) {
            Ok(state) => states.push(state),
            // One that ends this moment, or whose state is damaged, is no reason not to list the others.
            Err(error) => log::warn!("pod {}: {error:#}", directory.id),
        }
    }
    table::pods(&states, json)
}

/// Ends a pod and waits for its process to be gone.
fn stop(directory: &StateDir, grace: u64) -> Result<()> {
    let mut connection = connect(directory)?;
    done(checked(connection.ask(&Request::Stop { grace }, &[])?)?)?;
    Ok(connection.wait_for_end()?)
}

fn remove(root: &StateRoot, pod: &str, force: bool) -> Result<()> {
    let directory = root.open(pod)?;
    if directory.is_living() {
        if !force {
            return Err(StateError::Running(pod.to_owned()).into());
        }
        match stop(&directory, 0) {
            Err(error) if directory.is_living() => return Err(error),
            _ => {}
        }
    }
    match directory.remove() {
        // A pod in the foreground removes its own.
        Err(_) if root.open(pod).is_err() => Ok(()),
        removed => Ok(removed?),
    }
}

fn add(root: &StateRoot, pod: &str, path: &Path) -> Result<()> {
    let container = podfile::read_value(path)?;
    let base = path.canonicalize().with_context(|| format!("open {}", path.display()))?;
    let base = base.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
    done(ask(root, pod, &Request::Add { base, container })?)
}

fn pause(root: &StateRoot, meant: MeantArgs, paused: bool) -> Result<()> {
    let container = meant.container.unwrap_or_default();
    done(ask(root, &meant.pod, &Request::Pause { container, paused })?)
}

/// Prints a line to stdout; whoever reads it may have left.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("write stdout"),
        _ => Ok(()),
    }
}
