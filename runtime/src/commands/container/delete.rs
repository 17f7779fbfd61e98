//! `vmm delete`, and how every other command deletes what a container left on the host. In this order: the container's
//! process is killed, [`StateDir::delete`] removes the network, the cgroup and the directory, and the hooks of its end
//! run.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};
use host::hooks::Variables;
use host::sys;
use oci::spec::Hook;

use super::hook_points::{hooks_of, run_last};
use super::member;
use super::status::status;
use crate::cli::container::DeleteArgs;
use crate::deadlines;
use crate::state::{PodState, StateDir, StateError, StateRoot};

pub fn delete(root: &StateRoot, args: &DeleteArgs) -> Result<u8> {
    let directory = match root.container(&args.id) {
        Err(StateError::NoContainer(_)) if args.force => return Ok(0),
        found => found?,
    };
    root.wait_for_claims()?;
    let state = directory.look()?;
    match status(&state) {
        // The process may be writing the guest's cached data back.
        "stopped" if args.force && directory.wait_until_released(deadlines::KILL).is_err() => {
            kill_process(&directory)?
        }
        "stopped" => {}
        "created" => kill_process(&directory)?,
        _ if args.force => kill_process(&directory)?,
        status => bail!("cannot delete container {} that is not stopped: {status}", args.id),
    }
    // The process may be about to end.
    directory.wait_until_released(deadlines::ENDING)?;
    if !state.joined.is_empty() {
        member::wait_until_dropped(&directory);
    }
    let state = directory.read().unwrap_or(state);
    let hooks = hooks_of(&state).map(|hooks| hooks.poststop).unwrap_or_else(|error| {
        log::warn!("{error:#}");
        Vec::new()
    });
    delete_remains(&directory, state, &hooks, &Variables::own()).map(|()| 0)
}

/// Deletes what a container left on the host, after its process has ended or was killed, and runs the hooks of its end.
pub(super) fn delete_remains(
    directory: &StateDir,
    state: PodState,
    poststop: &[Hook],
    environment: &Variables,
) -> Result<()> {
    directory.delete(&state)?;
    run_last(poststop, &state.stopped(), environment);
    Ok(())
}

/// Kills a container's process, and with it the machine, without a request to it. Waits for its end.
pub(super) fn kill_process(directory: &StateDir) -> Result<()> {
    kill_opened(directory, directory.process()?)
}

/// Like [`kill_process`], for a process that was opened while the container lived. Returns when the process is gone, even
/// if it was already ending.
pub(super) fn kill_opened(directory: &StateDir, process: Option<OwnedFd>) -> Result<()> {
    if let Some(process) = process {
        let killed = sys::kill_and_wait(process.as_fd(), deadlines::GONE);
        killed.with_context(|| format!("kill the process of container {}", directory.id))?;
    }
    Ok(directory.wait_until_released(deadlines::GONE)?)
}
