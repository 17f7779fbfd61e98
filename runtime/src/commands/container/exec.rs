//! `vmm exec`: runs an exec process.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use host::environment;
use host::signals::Signals;
use oci::exec::ProcessChanges;
use oci::spec::ConsoleSize;
use serde_json::Value;

use super::status::status;
use super::{check_console, refuse_descriptors, write_pid};
use crate::cli::container::ExecArgs;
use crate::commands::attached;
use crate::control::ExecRequest;
use crate::report::{self, Forked, Reporter};
use crate::state::{StateDir, StateRoot};
use crate::{exit, logging};

/// The error if the detached process ended without a report.
const SILENT: &str = "vmm's process ended before the exec process was started";

/// Runs an exec process. Returns its exit code, or with `--detach` 0 once it runs.
pub fn exec(root: &StateRoot, args: ExecArgs) -> Result<u8> {
    refuse_descriptors(args.preserve_fds)?;
    let directory = root.container(&args.id)?;
    let state = directory.look()?;
    match status(&state) {
        "running" => {}
        "paused" if args.ignore_paused => {}
        "paused" => bail!("cannot exec in a paused container (use --ignore-paused to override)"),
        "stopped" => bail!("cannot exec in a stopped container"),
        _ => bail!("cannot exec in a container that is not running"),
    }
    let process = args.process.as_deref().map(read).transpose()?;
    if process.is_none() && args.args.is_empty() {
        bail!("process args cannot be empty");
    }
    let terminal =
        process.as_ref().map_or(args.words.tty, |whole| whole["terminal"].as_bool().unwrap_or(false));
    check_console(terminal, args.console_socket.as_deref(), args.detach)?;
    let request = ExecRequest {
        container: args.id.clone(),
        terminal,
        changes: changes(&args)?,
        process,
        for_engine: true,
        ignore_paused: args.ignore_paused,
        cgroup: cgroup(&args.cgroup)?,
        ..ExecRequest::default()
    };
    if args.detach {
        return detach(&directory, request, &args);
    }
    if let Some(path) = &args.pid_file {
        write_pid(path, std::process::id())?;
    }
    attached::run(&directory, request)
}

/// Continues in a detached process. This process waits until the exec process runs.
fn detach(directory: &StateDir, request: ExecRequest, args: &ExecArgs) -> Result<u8> {
    match report::fork("fork a process for the exec process", None)? {
        Forked::Child(reporter) => {
            Ok(represent(directory, request, args.console_socket.as_deref(), &reporter))
        }
        Forked::Parent(pid, reader) => {
            report::wait(reader, SILENT)?;
            args.pid_file.as_deref().map_or(Ok(()), |path| write_pid(path, pid)).map(|()| 0)
        }
    }
}

/// The detached process, which represents the exec process on the host.
fn represent(directory: &StateDir, request: ExecRequest, socket: Option<&Path>, reporter: &Reporter) -> u8 {
    let terminal = request.terminal;
    let size = request.process.as_ref().and_then(|process| {
        let side = |name| process["consoleSize"][name].as_u64()?.try_into().ok();
        Some(ConsoleSize { height: side("height")?, width: side("width")? })
    });
    let begun = (|| -> Result<_> {
        socket.map_or(Ok(()), |socket| environment::open_terminal(socket, size))?;
        let signals = Signals::block().context("block signals")?;
        Ok((attached::start(directory, request)?, signals))
    })();
    let ended = match begun {
        Ok((mut connection, signals)) => {
            // If the caller is gone, this process ends, which kills the exec process.
            if reporter.send(0, "").is_err() {
                return exit::FAILED;
            }
            attached::wait(&mut connection, &signals, terminal, &mut || {})
        }
        Err(error) => {
            let (_, message) = exit::of_error(&error);
            // There is no other place to report an error of this write.
            let _ = reporter.send(exit::OCI_FAILED, &message);
            return exit::OCI_FAILED;
        }
    };
    ended.unwrap_or_else(|error| {
        let (code, message) = exit::of_error(&error);
        logging::failed(&message);
        code
    })
}

fn changes(args: &ExecArgs) -> Result<ProcessChanges> {
    let words = &args.words;
    let number = |text: &str| text.parse::<u32>().with_context(|| format!("--user {text:?}: not a number"));
    let user =
        words.user.as_deref().map(|user| user.split_once(':').map_or((user, None), |(u, g)| (u, Some(g))));
    Ok(ProcessChanges {
        args: args.args.clone(),
        terminal: words.tty,
        env: words.env.clone(),
        cwd: words.cwd.clone(),
        uid: user.map(|(uid, _)| number(uid)).transpose()?,
        gid: user.and_then(|(_, gid)| gid).map(number).transpose()?,
        additional_gids: words.additional_gids.clone(),
        no_new_privileges: words.no_new_privs,
        capabilities: words.cap.clone(),
        apparmor_profile: words.apparmor.clone(),
        selinux_label: words.process_label.clone(),
    })
}

/// Returns a cgroup's path relative to the container's cgroup, empty for that cgroup itself.
fn cgroup(path: &str) -> Result<String> {
    if path.contains(':') {
        bail!(
            "--cgroup {path:?}: not supported: the guest has cgroups v2, where a controller has no path of its own"
        );
    }
    let below = path.trim_matches('/');
    if below.split('/').any(|name| name == "..") {
        bail!("--cgroup {path:?}: outside of the container's cgroup");
    }
    Ok(below.to_owned())
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Words;
    use crate::cli::container::{ProcessArgs, read};

    #[test]
    fn a_user_is_a_number() {
        let args = |user: &str| {
            let words = ProcessArgs { user: Some(user.into()), ..ProcessArgs::default() };
            ExecArgs { words, ..exec_args() }
        };
        let of =
            |user: &str| changes(&args(user)).map(|it| (it.uid, it.gid)).map_err(|error| error.to_string());
        assert_eq!(of("7:8"), Ok((Some(7), Some(8))));
        assert_eq!(of("7"), Ok((Some(7), None)));
        assert_eq!(of("ann"), Err("--user \"ann\": not a number".to_owned()));
    }

    fn exec_args() -> ExecArgs {
        read("exec", Words { words: vec!["c".into(), "true".into()] }).unwrap()
    }

    #[test]
    fn a_cgroup_is_below_the_container_s() {
        for (path, below) in [("/", ""), ("/a/b/", "a/b"), ("a..b", "a..b")] {
            assert_eq!(cgroup(path).unwrap(), below);
        }
        for path in ["..", "/a/../..", "cpu:/a"] {
            cgroup(path).unwrap_err();
        }
    }
}
