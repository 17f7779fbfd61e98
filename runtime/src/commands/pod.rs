//! `vmm pod`: `run` runs a pod in this process; the other commands send requests to the pod's socket.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use host::signals::name::signal_of;
use host::sys;

use crate::cli::pod::{MeantArgs, PodArgs, PodCommand};
use crate::control::{Connection, Reply, Request};
use crate::deadlines;
use crate::exit::CodedError;
use crate::pod::podfile;
use crate::state::{StateDir, StateError, StateRoot};

pub mod exec;
pub mod logs;
pub mod run;
mod table;

/// Executes a `vmm pod` command. Returns the exit code.
pub fn pod(args: PodArgs) -> Result<u8> {
    let root = StateRoot::new(args.root, |name| std::env::var_os(name));
    match args.command {
        PodCommand::Run(args) => return run::run(&root, *args),
        PodCommand::Exec(args) => return exec::exec(&root, args),
        PodCommand::Logs(args) => logs::logs(&root, &args)?,
        PodCommand::List { json } => list(&root, json)?,
        PodCommand::Ps { pod, processes: false, json } => table::containers(&root.open(&pod)?.look()?, json)?,
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
            let number = signal_of(&signal).with_context(|| format!("unknown signal {signal:?}"))?;
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

/// Sends a request to a living pod. A refusal is returned as an error.
pub(super) fn ask(root: &StateRoot, pod: &str, request: &Request) -> Result<Reply> {
    checked(connect(&root.open(pod)?)?.ask(request, &[])?)
}

/// Connects to a living pod.
pub fn connect(directory: &StateDir) -> Result<Connection> {
    let patience = match directory.read()?.patience {
        // The pod does not listen yet.
        0 => deadlines::AGENT,
        seconds => Duration::from_secs(seconds),
    };
    Ok(Connection::to(&directory.id, patience, directory.connect()?)?)
}

/// Turns a refusal of the pod into an error with the pod's exit code.
pub fn checked(reply: Reply) -> Result<Reply> {
    match reply {
        Reply::Failed { code, message } => Err(CodedError { code, message }.into()),
        reply => Ok(reply),
    }
}

/// Turns every reply except `Done` into an error.
pub fn done(reply: Reply) -> Result<()> {
    if reply == Reply::Done { Ok(()) } else { unexpected(&reply) }
}

/// Returns an error for a reply that does not fit the request.
pub fn unexpected<T>(reply: &Reply) -> Result<T> {
    anyhow::bail!("unexpected answer of the pod: {reply:?}")
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
    done(checked(connection.ask(&request, &[])?)?)?;
    Ok(connection.wait_for_end(request.command(), patience + deadlines::ENDING)?)
}

fn remove(root: &StateRoot, pod: &str, force: bool) -> Result<()> {
    let directory = root.open(pod)?;
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
    done(ask(root, pod, &Request::Add { base, container })?)
}

fn pause(root: &StateRoot, meant: MeantArgs, paused: bool) -> Result<()> {
    let container = meant.container.unwrap_or_default();
    done(ask(root, &meant.pod, &Request::Pause { container, paused })?)
}

/// Prints a line to stdout. A closed pipe is not an error.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("write stdout"),
        _ => Ok(()),
    }
}
