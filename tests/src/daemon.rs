//! An engine's daemon: started with a log of its own, ready when the log says so, killed when it is dropped.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// The longest that a daemon may take to be ready or to end.
const DEADLINE: Duration = Duration::from_secs(180);

/// How much of the log is shown where a case failed, in lines.
const LOG_LINES: usize = 25;

/// A daemon that runs.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`, whose standard error goes to `log`, and waits until a line of it holds `ready`.
    pub fn start(mut command: Command, log: &Path, ready: &'static str) -> Daemon {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let lines = BufReader::new(child.stderr.take().expect("standard error is a pipe"));
        let mut file = File::options().create(true).append(true).open(log).expect("make the log");
        let (send, receive) = channel();
        thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                // A log that cannot be written is no reason to stop the daemon.
                writeln!(file, "{line}").ok();
                if line.contains(ready) {
                    // Whoever waited may have given up.
                    send.send(()).ok();
                }
            }
        });
        match receive.recv_timeout(DEADLINE) {
            Ok(()) => Daemon { child, log: log.to_owned() },
            Err(error) => {
                drop(child.kill());
                let why = match error {
                    RecvTimeoutError::Timeout => "is not ready",
                    RecvTimeoutError::Disconnected => "has ended",
                };
                panic!("{command:?} {why}:\n{}", tail(log));
            }
        }
    }

    /// Prints the end of its log.
    pub fn show_log(&self) {
        eprintln!("--- the end of {}\n{}", self.log.display(), tail(&self.log));
    }

    /// Ends it with `signal` and waits for that.
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
