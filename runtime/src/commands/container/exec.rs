//! `vmm exec`: a process that stands for a further program of a container. It hands its descriptors to the container's
//! process, forwards signals and the window's size, and ends with the program's code.

use std::fs;
use std::io::{self, PipeWriter, pipe};
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, bail};
use host::signals::Signals;
use host::terminal::{self, RawTerminal};
use host::{environment, sys};
use oci::spec::ConsoleSize;
use serde_json::{Value, json};

use super::{check_console, refuse_descriptors, status, write_pid};
use crate::cli::container::{ExecArgs, ProcessArgs};
use crate::commands::pod::exec::wait;
use crate::commands::pod::{checked, connect, unexpected};
use crate::control::{Connection, ExecRequest, Reply, Request};
use crate::state::{PodState, StateDir, StateRoot};
use crate::{exit, logging, report};

/// What is said where the process that stands for the program could say nothing.
const SILENT: &str = "the process that stands for the program ended before that was started";

/// Runs a further program; returns its exit code, or in the background 0 once it runs.
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
    let process = process(&args, &state)?;
    let terminal = process["terminal"].as_bool().unwrap_or(false);
    check_console(terminal, args.console_socket.as_deref(), args.detach)?;
    let request = ExecRequest {
        container: args.id.clone(),
        terminal,
        process: Some(process),
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
    let signals = Signals::block().context("block signals")?;
    let mut connection = ask(&directory, request)?;
    let raw = if terminal { RawTerminal::of_stdin().context("make the terminal raw")? } else { None };
    let code = wait(&mut connection, &signals, terminal);
    drop(raw);
    code
}

/// Has the program started over our standard streams.
fn ask(directory: &StateDir, mut request: ExecRequest) -> Result<Connection> {
    let terminal = request.terminal;
    if terminal && let Some(ConsoleSize { height, width }) = terminal::size() {
        request.size = Some((height, width));
    }
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let fds = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let fds = if terminal { &fds[..2] } else { &fds[..] };
    let mut connection = connect(directory)?;
    match checked(connection.ask(&Request::Exec(request), fds)?)? {
        Reply::Started => Ok(connection),
        other => unexpected(&other),
    }
}

/// Goes on in a process of its own; this one waits until the program runs.
fn detach(directory: &StateDir, request: ExecRequest, args: &ExecArgs) -> Result<u8> {
    let (reader, writer) = pipe().context("make a pipe")?;
    match sys::fork_detached(None).context("make the process that stands for the program")? {
        0 => {
            drop(reader);
            Ok(stand(directory, request, args.console_socket.as_deref(), writer))
        }
        pid => {
            drop(writer);
            report::wait(reader, SILENT)?;
            args.pid_file.as_deref().map_or(Ok(()), |path| write_pid(path, pid)).map(|()| 0)
        }
    }
}

/// The process that stands for the program.
fn stand(directory: &StateDir, request: ExecRequest, socket: Option<&Path>, writer: PipeWriter) -> u8 {
    let terminal = request.terminal;
    let size = request.process.as_ref().and_then(|process| {
        let side = |name| process["consoleSize"][name].as_u64()?.try_into().ok();
        Some(ConsoleSize { height: side("height")?, width: side("width")? })
    });
    let begun = (|| -> Result<_> {
        socket.map_or(Ok(()), |socket| environment::open_terminal(socket, size))?;
        let signals = Signals::block().context("block signals")?;
        Ok((ask(directory, request)?, signals))
    })();
    let ended = match begun {
        Ok((mut connection, signals)) => {
            // Whoever wanted it may be gone; then its program has no one to end for, either.
            if report::send(writer, 0, "").is_err() {
                return exit::FAILED;
            }
            wait(&mut connection, &signals, terminal)
        }
        Err(error) => {
            let (_, message) = exit::of_error(&error);
            // Nobody is left to tell where it cannot be written.
            let _ = report::send(writer, exit::OCI_FAILED, &message);
            return exit::OCI_FAILED;
        }
    };
    ended.unwrap_or_else(|error| {
        let (code, message) = exit::of_error(&error);
        logging::failed(&message);
        code
    })
}

/// Returns the process as config.json would have it: from a file, or the container's first with other words.
fn process(args: &ExecArgs, state: &PodState) -> Result<Value> {
    if let Some(path) = &args.process {
        return read(path);
    }
    if args.args.is_empty() {
        bail!("process args cannot be empty");
    }
    let bundle = state.oci.clone().unwrap_or_default().bundle;
    let mut process = read(&bundle.join("config.json"))?["process"].take();
    process["args"] = json!(args.args);
    lay(&mut process, &args.words)?;
    Ok(process)
}

/// Returns a cgroup's path below the container's own, which is empty for that one.
fn cgroup(path: &str) -> Result<String> {
    if path.contains(':') {
        bail!(
            "--cgroup {path:?}: not supported: the guest's cgroups are of version 2, where no controller has its own path"
        );
    }
    let below = path.trim_matches('/');
    if below.split('/').any(|name| name == "..") {
        bail!("--cgroup {path:?}: a path out of the container's cgroup");
    }
    Ok(below.to_owned())
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
}

/// Lays what was said in words over a process.
fn lay(process: &mut Value, words: &ProcessArgs) -> Result<()> {
    let Value::Object(fields) = &mut *process else { bail!("the container has no process") };
    // The size is that of the first one's terminal.
    fields.remove("consoleSize");
    process["terminal"] = json!(words.tty);
    if let Some(cwd) = &words.cwd {
        process["cwd"] = json!(cwd);
    }
    if let Some(profile) = &words.apparmor {
        process["apparmorProfile"] = json!(profile);
    }
    if let Some(label) = &words.process_label {
        process["selinuxLabel"] = json!(label);
    }
    if words.no_new_privs {
        process["noNewPrivileges"] = json!(true);
    }
    extend(process, "env", words.env.iter().map(|variable| json!(variable)));
    if let Some(user) = &words.user {
        let (uid, gid) = user.split_once(':').map_or((user.as_str(), None), |(uid, gid)| (uid, Some(gid)));
        let number = |text: &str| text.parse::<u32>().with_context(|| format!("--user {user:?}: no number"));
        process["user"]["uid"] = json!(number(uid)?);
        if let Some(gid) = gid {
            process["user"]["gid"] = json!(number(gid)?);
        }
    }
    if !words.additional_gids.is_empty() {
        extend(&mut process["user"], "additionalGids", words.additional_gids.iter().map(|gid| json!(gid)));
    }
    if !words.cap.is_empty() {
        for set in ["bounding", "effective", "permitted"] {
            extend(&mut process["capabilities"], set, words.cap.iter().map(|name| json!(name)));
        }
    }
    Ok(())
}

/// Adds to the list `name` of `object`, which may not be there.
fn extend(object: &mut Value, name: &str, more: impl Iterator<Item = Value>) {
    let more: Vec<Value> = more.collect();
    if more.is_empty() {
        // A name that is looked for to be changed is there afterwards, if only with null.
        return;
    }
    match &mut object[name] {
        Value::Array(list) => list.extend(more),
        other => *other = more.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_laid_over_the_container_s_first_process() {
        let mut process = json!({
            "terminal": true, "consoleSize": {"height": 1, "width": 2}, "cwd": "/", "env": ["A=b"],
            "user": {"uid": 0, "gid": 0}, "capabilities": {"bounding": ["CAP_KILL"]}
        });
        let words = ProcessArgs {
            cwd: Some("/x".into()),
            env: vec!["C=d".into()],
            user: Some("7:8".into()),
            additional_gids: vec![9],
            no_new_privs: true,
            cap: vec!["CAP_CHOWN".into()],
            ..ProcessArgs::default()
        };
        lay(&mut process, &words).unwrap();
        let wanted = json!({
            "terminal": false, "cwd": "/x", "env": ["A=b", "C=d"], "noNewPrivileges": true,
            "user": {"uid": 7, "gid": 8, "additionalGids": [9]},
            "capabilities": {
                "bounding": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]
            }
        });
        assert_eq!(process, wanted);
        lay(&mut process, &ProcessArgs::default()).unwrap();
        assert_eq!(process, wanted, "no word adds nothing");
        let ann = ProcessArgs { user: Some("ann".into()), ..ProcessArgs::default() };
        assert_eq!(lay(&mut process, &ann).unwrap_err().to_string(), "--user \"ann\": no number");
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
