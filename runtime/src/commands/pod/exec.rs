//! `vmm pod exec`: hands its descriptors to the pod, forwards signals and the window's size, and ends with the process's code.

use std::io;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use host::signals::{Asked, Signals};
use host::sys;
use host::terminal::{self, RawTerminal};

use super::{checked, connect, unexpected};
use crate::cli::pod::ExecArgs;
use crate::control::{Connection, ExecRequest, Reply, Request};
use crate::state::StateRoot;

/// Runs a further program in a container; returns its exit code.
pub fn exec(root: &StateRoot, args: ExecArgs) -> Result<u8> {
    let signals = Signals::block().context("block signals")?;
    let mut connection = connect(&root.open(&args.pod)?)?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let fds = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let fds = if args.tty { &fds[..2] } else { &fds[..] };
    let terminal = args.tty;
    match checked(connection.ask(&Request::Exec(request(args)?), fds)?)? {
        Reply::Started => {}
        other => return unexpected(&other),
    }
    let raw = if terminal { RawTerminal::of_stdin().context("make the terminal raw")? } else { None };
    let code = wait(&mut connection, &signals, terminal);
    drop(raw);
    code
}

fn request(args: ExecArgs) -> Result<ExecRequest> {
    let mut envs = Vec::new();
    for variable in &args.env {
        let pair = variable.split_once('=').filter(|(name, _)| !name.is_empty());
        let (name, value) = pair.with_context(|| format!("--env {variable:?}: not NAME=VALUE"))?;
        envs.push((name.to_owned(), value.to_owned()));
    }
    Ok(ExecRequest {
        container: args.container,
        args: args.args,
        envs,
        workdir: args.workdir.unwrap_or_default(),
        user: args.user.unwrap_or_default(),
        terminal: args.tty,
        size: terminal::size().filter(|_| args.tty).map(|size| (size.height, size.width)),
        ..ExecRequest::default()
    })
}

/// Waits for the process's end, and hands on what comes for it.
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
                    Asked::Forward(signal) => Request::Signal(signal),
                    Asked::Resize => match terminal::size().filter(|_| terminal) {
                        Some(size) => Request::Resize(size.height, size.width),
                        None => continue,
                    },
                };
                connection.send(&request)?;
            }
        }
        // A pod that reads none of it is no reason to stay.
        connection.flush()?;
        if answer && !connection.receive()? {
            return Err(crate::control::ControlError::Ended.into());
        }
    }
}
