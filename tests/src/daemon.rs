//! An engine's daemon: its log says when it is ready, and it is stopped on drop.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Maximum time for a daemon to become ready.
const DEADLINE: Duration = Duration::from_secs(180);

/// Number of lines of the log that are printed after a failed case.
const LOG_LINES: usize = 25;

/// A running daemon.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` with its standard error in the file `log`, and waits until a line of it contains `ready`.
    pub fn start(mut command: Command, log: &Path, ready: &'static str) -> Daemon {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let lines = BufReader::new(child.stderr.take().expect("standard error is a pipe"));
        let mut file = File::options().create(true).append(true).open(log).expect("open the log");
        let (send, receive) = channel();
        thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                // The daemon continues if its log cannot be written.
                writeln!(file, "{line}").ok();
                if line.contains(ready) {
                    // The receiver is gone after the first message or the deadline.
                    send.send(()).ok();
                }
            }
        });
        match receive.recv_timeout(DEADLINE) {
            Ok(()) => Daemon { child, log: log.to_owned() },
            Err(error) => {
                drop(child.kill());
                let what = match error {
                    RecvTimeoutError::Timeout => "is not ready",
                    RecvTimeoutError::Disconnected => "has ended",
                };
                panic!("{command:?} {what}:\n{}", tail(log));
            }
        }
    }

    /// Prints the end of the log.
    pub fn show_log(&self) {
        eprintln!("--- the end of {}\n{}", self.log.display(), tail(&self.log));
    }

    /// Sends `signal` to the daemon and waits for its end.
    pub fn end(&mut self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("signal the daemon");
        self.child.wait().expect("wait for the daemon");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.end(Signal::TERM);
        }
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
