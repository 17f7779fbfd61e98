//! An exec process whose streams are this process's own: this process passes its descriptors to the pod, forwards signals
//! and window sizes, and returns the exec process's exit code.

use std::io;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use host::signals::{SignalAction, Signals};
use host::sys;
use host::terminal::{self, RawTerminal};

use super::request::{checked, connect, unexpected};
use crate::control::{Connection, ControlError, ExecRequest, Reply, Request};
use crate::state::StateDir;

/// Starts an exec process and waits for its end. Returns its exit code.
pub fn run(directory: &StateDir, request: ExecRequest) -> Result<u8> {
    let terminal = request.terminal;
    let signals = Signals::block().context("block signals")?;
    let mut connection = start(directory, request)?;
    let raw = if terminal { RawTerminal::of_stdin().context("set the terminal to raw mode")? } else { None };
    let code = wait(&mut connection, &signals, terminal, &mut || {});
    drop(raw);
    code
}

/// Starts the exec process with this process's standard streams, and in a terminal with the size of its window.
pub fn start(directory: &StateDir, mut request: ExecRequest) -> Result<Connection> {
    if request.terminal {
        request.size = terminal::size().map(|size| (size.height, size.width));
    }
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let fds = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let fds = if request.terminal { &fds[..2] } else { &fds[..] };
    let mut connection = connect(directory)?;
    match checked(connection.ask(&Request::Exec(Box::new(request)), fds)?)? {
        Reply::Started => Ok(connection),
        other => unexpected(&other),
    }
}

/// Waits for the end of the exec process or the container that this process represents, and forwards signals to it.
/// Calls `killed` when the guest's kernel has killed a process of the container for its memory limit.
pub fn wait(
    connection: &mut Connection,
    signals: &Signals,
    terminal: bool,
    killed: &mut dyn FnMut(),
) -> Result<u8> {
    loop {
        if let Some((reply, _)) = connection.take()? {
            return match checked(reply)? {
                Reply::Exited(code) => Ok(code),
                Reply::OomKill => {
                    killed();
                    continue;
                }
                other => unexpected(&other),
            };
        }
        let fds = [(connection.fd(), connection.interest()), (signals.fd(), libc::POLLIN)];
        let [answer, signal] = sys::poll(fds, None).context("poll")?;
        if signal {
            while let Some(action) = signals.next().context("read a signal")? {
                let request = match action {
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
            return Err(ControlError::Ended.into());
        }
    }
}
