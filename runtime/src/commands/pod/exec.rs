//! `vmm pod exec`: passes its descriptors to the pod, forwards signals and window sizes, and returns the exec process's
//! exit code.

use std::io;
use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use host::signals::{SignalAction, Signals};
use host::sys;
use host::terminal::{self, RawTerminal};
use oci::exec::ProcessChanges;

use super::{checked, connect, unexpected};
use crate::cli::pod::ExecArgs;
use crate::control::{Connection, ExecRequest, Reply, Request};
use crate::state::StateRoot;

/// Runs an exec process in a container. Returns its exit code.
pub fn exec(root: &StateRoot, args: ExecArgs) -> Result<u8> {
    let signals = Signals::block().context("block signals")?;
    let mut connection = connect(&root.open(&args.pod)?)?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let fds = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let fds = if args.tty { &fds[..2] } else { &fds[..] };
    let terminal = args.tty;
    match checked(connection.ask(&Request::Exec(Box::new(request(args)?)), fds)?)? {
        Reply::Started => {}
        other => return unexpected(&other),
    }
    let raw = if terminal { RawTerminal::of_stdin().context("set the terminal to raw mode")? } else { None };
    let code = wait(&mut connection, &signals, terminal);
    drop(raw);
    code
}

fn request(args: ExecArgs) -> Result<ExecRequest> {
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
    Ok(ExecRequest {
        container: args.container,
        changes,
        user: args.user.unwrap_or_default(),
        terminal: args.tty,
        size: terminal::size().filter(|_| args.tty).map(|size| (size.height, size.width)),
        ..ExecRequest::default()
    })
}

/// Waits for the end of the exec process, and forwards signals to it.
pub fn wait(connection: &mut Connection, signals: &Signals, terminal: bool) -> Result<u8> {
    loop {
        if let Some((reply, _)) = connection.take()? {
            return match checked(reply)? {
                Reply::Exited(code) => Ok(code),
                other => unexpected(&other),
            };
        }
        let fds = [(connection.fd(), connection.interest()), (signals.fd(), libc::POLLIN)];
        let [answer, signal] = sys::poll(fds, None).context("poll")?;
        if signal {
            while let Some(asked) = signals.next().context("read a signal")? {
                let request = match asked {
                    SignalAction::Forward(signal) => Request::Signal(signal),
                    SignalAction::Resize => match terminal::size().filter(|_| terminal) {
                        Some(size) => Request::Resize(size.height, size.width),
                        None => continue,
                    },
                };
                connection.send(&request)?;
            }
        }
        // This command does not wait for a pod that reads nothing.
        connection.flush()?;
        if answer && !connection.receive()? {
            return Err(crate::control::ControlError::Ended.into());
        }
    }
}
