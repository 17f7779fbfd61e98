//! Requests to a pod's socket, and what their answers mean for a command.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::control::{Connection, Reply, Request};
use crate::deadlines;
use crate::exit::CodedError;
use crate::state::{PodState, StateDir, StateError, StateRoot};

/// Sends a request to a living pod. A refusal is returned as an error.
pub fn ask(root: &StateRoot, pod: &str, request: &Request) -> Result<Reply> {
    checked(connect(&open_pod(root, pod)?)?.ask(request, &[])?)
}

/// Opens a pod's directory, for a request that concerns all of its containers.
pub fn open_pod(root: &StateRoot, pod: &str) -> Result<StateDir> {
    let directory = root.open(pod)?;
    let joined = directory.read()?.joined;
    if !joined.is_empty() {
        bail!("{pod:?} is a container of pod {joined:?}");
    }
    Ok(directory)
}

/// Sends a request that has no other answer than `Done`.
pub fn tell(root: &StateRoot, pod: &str, request: &Request) -> Result<()> {
    done(ask(root, pod, request)?)
}

/// Connects to the machine in which a container or pod runs.
pub fn connect(directory: &StateDir) -> Result<Connection> {
    let directory = &directory.machine()?;
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
    match checked(reply)? {
        Reply::Done => Ok(()),
        other => unexpected(&other),
    }
}

/// Returns an error for a reply that does not fit the request.
pub fn unexpected<T>(reply: &Reply) -> Result<T> {
    bail!("unexpected answer of the pod: {reply:?}")
}

/// Returns the directory and state of a pod that is the OCI container `id` and has not ended, and the container's name
/// in it. A podfile's pod is one if it has one container.
pub fn running_container(root: &StateRoot, id: &str) -> Result<(StateDir, PodState, String)> {
    let directory = root.open(id)?;
    let state = directory.look()?;
    if state.status == "stopped" {
        return Err(StateError::Stopped(id.to_owned()).into());
    }
    let container = match state.containers.as_slice() {
        _ if state.oci.is_some() => id.to_owned(),
        [one] => one.name.clone(),
        all => bail!("pod {:?} has {} containers and is not an OCI container", state.id, all.len()),
    };
    Ok((directory, state, container))
}
