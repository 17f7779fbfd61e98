//! `vmm checkpoint` and `vmm restore`.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::status::status;
use crate::checkpoint::Draft;
use crate::cli::RunArgs;
use crate::cli::checkpoint::{CheckpointArgs, RestoreArgs};
use crate::commands::request::{connect, done};
use crate::commands::run;
use crate::control::Request;
use crate::deadlines;
use crate::state::StateRoot;
use crate::template::key;

/// Saves a running container.
pub fn checkpoint(root: &StateRoot, args: &CheckpointArgs) -> Result<u8> {
    let unsupported = [
        (args.pre_dump, "--pre-dump"),
        (args.lazy_pages, "--lazy-pages"),
        (args.parent_path.is_some(), "--parent-path"),
        (args.page_server.is_some(), "--page-server"),
        (args.status_fd.is_some(), "--status-fd"),
    ];
    if let Some((_, flag)) = unsupported.iter().find(|(given, _)| *given) {
        bail!("{flag}: not supported");
    }
    let directory = root.container(&args.id)?;
    let state = directory.look()?;
    if !matches!(status(&state), "running" | "paused") {
        bail!("container not running");
    }
    if !state.joined.is_empty() {
        bail!("checkpoint: the container has joined the machine of {}, which is not supported", state.joined);
    }
    let label = key::common().context("this program's file cannot be examined")?;
    let draft = Draft::begin(&args.image.image_path)?;
    // An ordinary user cannot open it, because the process is not dumpable.
    let pages = File::open(format!("/proc/{}/pagemap", state.pid)).ok();
    let fds = [Some(&draft.memory), Some(&draft.state), pages.as_ref()];
    let fds: Vec<_> = fds.into_iter().flatten().map(AsFd::as_fd).collect();
    let leave_running = args.leave_running;
    let request = Request::Checkpoint { container: args.id.clone(), label, leave_running };
    let saved = connect(&directory).and_then(|mut connection| {
        done(connection.ask(&request, &fds)?)?;
        Ok(connection)
    });
    let mut connection = match saved {
        Ok(connection) => connection,
        Err(error) => {
            draft.discard();
            return Err(error);
        }
    };
    // Until this is confirmed, the machine waits. If this process ends before, the container goes on.
    draft.finish()?;
    if !leave_running {
        connection.tell(&[Request::Confirm])?;
        connection.wait_for_end("checkpoint", deadlines::ENDING)?;
    }
    Ok(0)
}

/// Creates a container that goes on from a checkpoint.
pub fn restore(root: &StateRoot, args: RestoreArgs, start: Instant) -> Result<u8> {
    if args.lazy_pages {
        bail!("--lazy-pages: not supported");
    }
    let RestoreArgs { image, bundle, detach, engine, id, .. } = args;
    let (target, bundle, image) = (Some(id), Some(bundle), Some(image.image_path));
    run::run(root, RunArgs { target, bundle, detach, engine, image, ..RunArgs::default() }, start)
}
