//! The OCI commands of a container's life, compatible with runc. `create` forks the container's process. The other
//! commands send requests to the socket of that process, or read its state file.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use host::hooks::{self, Variables};
use host::signals::name::signal_of;

use self::delete::{kill_opened, kill_process};
use self::hook_points::{bytes_of, hooks_of};
use self::status::{state_json, status};
use super::print;
use super::request::{connect, done};
use crate::cli::container::KillArgs;
use crate::control::{ControlError, Request};
use crate::state::{StateDir, StateError, StateRoot};

pub mod checkpoint;
pub mod create;
pub mod delete;
pub mod exec;
pub mod home;
pub mod hook_points;
pub mod life;
pub mod list;
pub mod member;
mod status;

pub fn state(root: &StateRoot, id: &str) -> Result<u8> {
    let state = root.container(id)?.look()?;
    let text = serde_json::to_string_pretty(&state_json(&state)).context("print the state")?;
    print(&format!("{text}\n")).map(|()| 0)
}

/// `vmm start`. The hooks run in this process, so that the container's process can answer requests meanwhile.
pub fn start(root: &StateRoot, id: &str) -> Result<u8> {
    let directory = root.container(id)?;
    let state = directory.look()?;
    match status(&state) {
        "created" => {}
        "stopped" => bail!("cannot start a container that has stopped"),
        "creating" => bail!("cannot start a container that is not created"),
        _ => bail!("cannot start an already running container"),
    }
    // Opened while the container lives: a process that ends releases its lock before it is gone, and is not found then.
    let process = directory.process()?;
    let hooks = hooks_of(&state)?;
    let run = || -> Result<()> {
        let own = Variables::own();
        hooks::run("startContainer", &hooks.start_container, &bytes_of(&state), &own)?;
        let container = id.to_owned();
        done(connect(&directory)?.ask(&Request::Start { container }, &[])?)?;
        if hooks.poststart.is_empty() {
            return Ok(());
        }
        Ok(hooks::run("poststart", &hooks.poststart, &bytes_of(&directory.look()?), &own)?)
    };
    if let Err(error) = run() {
        // A container that failed to start is deleted.
        if let Err(error) = kill_opened(&directory, process) {
            log::warn!("{error:#}");
        }
        return Err(error);
    }
    Ok(0)
}

pub fn kill(root: &StateRoot, args: &KillArgs) -> Result<u8> {
    let directory = root.container(&args.id)?;
    let signal = signal_of(&args.signal).with_context(|| format!("unknown signal {:?}", args.signal))?;
    match status(&directory.look()?) {
        "stopped" => bail!("container not running"),
        // The container's process runs hooks and does not answer requests.
        "creating" => kill_process(&directory)?,
        _ => {
            let request = Request::Kill { container: args.id.clone(), signal, all: args.all };
            match ask_running(&directory, &request) {
                // SIGKILL must succeed even if the container's process does not answer.
                Err(error) if signal == libc::SIGKILL && is_silence(&error) => {
                    log::warn!("{error:#}; killing the container's process");
                    kill_process(&directory)?;
                }
                asked => asked?,
            }
        }
    }
    Ok(0)
}

/// Sends a request to the process of a container that ran a moment ago. If the container has ended meanwhile, the error
/// is `container not running`, which engines that stop a container take for success.
fn ask_running(directory: &StateDir, request: &Request) -> Result<()> {
    let asked = connect(directory).and_then(|mut connection| Ok(connection.ask(request, &[])?));
    match asked {
        Ok(reply) => done(reply),
        Err(error) if matches!(error.downcast_ref(), Some(StateError::Stopped(_))) => {
            bail!("container not running")
        }
        Err(error) if matches!(error.downcast_ref(), Some(ControlError::Ended)) => {
            bail!("container not running")
        }
        Err(error) => Err(error),
    }
}

/// Whether the error says that a container's process exists and does not answer.
fn is_silence(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ControlError::Silent { .. }))
        || matches!(error.downcast_ref(), Some(StateError::Silent { .. }))
}

/// `vmm pause` and `vmm resume`.
pub fn pause(root: &StateRoot, id: &str, paused: bool) -> Result<u8> {
    let directory = root.container(id)?;
    match (status(&directory.look()?), paused) {
        ("running", true) | ("paused", false) => {}
        (_, true) => bail!("container not running"),
        (_, false) => bail!("container not paused"),
    }
    let request = Request::Pause { container: id.to_owned(), paused };
    ask_running(&directory, &request).map(|()| 0)
}

/// Writes a process id to `path`, atomically. Its directory may be another user's, so no existing file or link is
/// followed.
pub(super) fn write_pid(path: &Path, pid: u32) -> Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().with_context(|| format!("write {}: not a file", path.display()))?);
    let next: PathBuf = path.with_file_name(name);
    // A crashed command can have left the file.
    let _ = fs::remove_file(&next);
    File::create_new(&next)
        .and_then(|mut file| file.write_all(pid.to_string().as_bytes()))
        .and_then(|()| fs::rename(&next, path))
        .with_context(|| format!("write {}", path.display()))
}

/// Refuses additional descriptors, which a guest cannot use.
pub(super) fn refuse_descriptors(count: u32) -> Result<()> {
    if count > 0 {
        bail!("--preserve-fds {count}: not supported: a guest cannot use descriptors of the host");
    }
    Ok(())
}

/// Returns whether a terminal is to be sent to `socket`. Refuses one without the other, as runc does.
pub(super) fn check_console(terminal: bool, socket: Option<&Path>, detach: bool) -> Result<()> {
    match (terminal, socket) {
        (true, None) if detach => {
            bail!("cannot allocate tty if runc will detach without setting console socket")
        }
        (_, Some(_)) if !(terminal && detach) => {
            bail!("cannot use console socket if runc will not detach or allocate tty")
        }
        _ => Ok(()),
    }
}
