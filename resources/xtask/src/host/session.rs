//! One run of the machine, from the snapshot to the command's end.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::machine::{Clock, MONITOR};
use super::monitor::Monitor;
use super::qemu::{Qemu, Sockets};
use super::request::{Exit, Line, Lines};

/// How long output that the machine has already sent may take to come through.
const FLUSH_MAX: Duration = Duration::from_secs(20);

/// How the run ended.
#[derive(Debug)]
pub enum Ending {
    /// The command ended.
    Exited(Exit),
    /// The deadline came while the machine was alive.
    Deadline,
    /// The machine could not do what the request asks for, and would not another time.
    Refused(String),
    /// The machine ended or stalled. `restored`: it had begun to run.
    Machine { cause: String, restored: bool },
}

/// How long the machine may be silent. Its PID 1 says something once a second of its own time; a second of counted
/// instructions takes a few.
pub fn silence_max(clock: Clock) -> Duration {
    match clock {
        Clock::Wall => Duration::from_secs(30),
        Clock::Instructions => Duration::from_secs(120),
    }
}

/// Where the command's output goes.
#[derive(Clone)]
pub enum Sink {
    /// This process's own descriptor, as it comes.
    Pass(Arc<File>),
    /// Memory.
    Keep(Arc<Mutex<Vec<u8>>>),
}

impl Sink {
    /// This process's stdout or stderr, without the buffer that the standard library puts before it.
    pub fn pass(descriptor: impl AsFd) -> io::Result<Sink> {
        Ok(Sink::Pass(Arc::new(File::from(descriptor.as_fd().try_clone_to_owned()?))))
    }

    /// Returns whether the sink takes more. Nobody may be left at the other end of a pipe: that is no reason to stop
    /// the command.
    fn write(&self, bytes: &[u8]) -> bool {
        match self {
            Sink::Pass(file) => (&**file).write_all(bytes).is_ok(),
            Sink::Keep(buffer) => {
                buffer.lock().unwrap().extend_from_slice(bytes);
                true
            }
        }
    }
}

/// How many bytes of stdout and stderr have come through, and whether more can.
#[derive(Default)]
struct Progress {
    state: Mutex<[(u64, bool); 2]>,
    changed: Condvar,
}

impl Progress {
    fn update(&self, stream: usize, change: impl FnOnce(&mut (u64, bool))) {
        change(&mut self.state.lock().unwrap()[stream]);
        self.changed.notify_all();
    }

    /// Waits until each stream has carried `bytes` or can carry no more; returns whether it has carried them.
    fn wait(&self, bytes: [u64; 2]) -> bool {
        let short = |state: &mut [(u64, bool); 2]| (0..2).any(|i| state[i].0 < bytes[i] && !state[i].1);
        let (state, _) =
            self.changed.wait_timeout_while(self.state.lock().unwrap(), FLUSH_MAX, short).unwrap();
        (0..2).all(|i| state[i].0 >= bytes[i])
    }
}

/// What one run is given.
pub struct Session<'a> {
    /// QEMU's arguments for sockets that begin with the given text.
    pub arguments: &'a dyn Fn(&str) -> Vec<std::ffi::OsString>,
    /// The file with the machine's state.
    pub state: &'a Path,
    /// What to send to PID 1.
    pub request: &'a [u8],
    /// Whether this process's standard input is the command's.
    pub stdin: bool,
    /// Of stdout and stderr.
    pub sinks: [Sink; 2],
    /// Of the whole run.
    pub deadline: Duration,
    /// How long the machine may be silent.
    pub silence_max: Duration,
    /// What to do with each file that was opened, if the request asks for them.
    pub opened: &'a dyn Fn(PathBuf),
}

impl Session<'_> {
    /// Runs the machine to its end; the second part is what QEMU and L1's kernel said.
    pub fn run(&self) -> anyhow::Result<(Ending, String)> {
        let mut sockets = Sockets::bind()?;
        let qemu = Qemu::start(&(self.arguments)(&sockets.prefix), &sockets)?;
        let progress = Arc::new(Progress::default());
        for (index, (port, sink)) in ["stdout", "stderr"].into_iter().zip(&self.sinks).enumerate() {
            let (listener, sink, progress) = (sockets.take(port), sink.clone(), progress.clone());
            thread::spawn(move || {
                pump_out(&listener, &sink, |length| progress.update(index, |state| state.0 += length));
                progress.update(index, |state| state.1 = true);
            });
        }
        // Without a reader the connection waits in the listener's queue, for as long as the listener is there.
        let stdin = sockets.take("stdin");
        let mut unused = None;
        if self.stdin {
            thread::spawn(move || pump_in(&stdin));
        } else {
            unused = Some(stdin);
        }
        let (monitor, _) = sockets.take(MONITOR).accept().context("wait for QEMU")?;
        let (control, _) = sockets.take("control").accept().context("wait for QEMU")?;
        let mut monitor = Monitor::open(monitor);
        let restored = monitor.as_mut().map(|monitor| monitor.restore(self.state));
        let mut ending = match restored {
            Ok(Ok(())) => self.watch(control)?,
            Ok(Err(error)) => Ending::Machine { cause: format!("{error:#}"), restored: false },
            Err(error) => Ending::Machine { cause: format!("{error:#}"), restored: false },
        };
        if let Ending::Exited(exit) = &ending
            && !progress.wait(exit.bytes)
        {
            ending = Ending::Machine { cause: "the machine lost output".into(), restored: true };
        }
        let log = qemu.log();
        drop(qemu);
        drop(unused);
        // With QEMU gone both streams are at their end: what was on the way is out before this returns.
        progress.wait([u64::MAX; 2]);
        Ok((ending, log))
    }

    /// Sends the request and follows the control port to the end of the run.
    fn watch(&self, mut control: UnixStream) -> anyhow::Result<Ending> {
        let mut restored = false;
        let machine = |cause: String, restored| Ok(Ending::Machine { cause, restored });
        control.set_write_timeout(Some(self.silence_max))?;
        if let Err(error) = control.write_all(self.request) {
            return machine(format!("the machine takes no request: {error}"), restored);
        }
        let (mut lines, mut chunk) = (Lines::default(), [0; 512]);
        let end = Instant::now() + self.deadline;
        let mut heard = Instant::now();
        loop {
            let now = Instant::now();
            let silent = now - heard;
            if silent >= self.silence_max || (now >= end && silent >= self.silence_max / 2) {
                return machine(
                    format!("the machine stalled: nothing heard for {} s", silent.as_secs()),
                    restored,
                );
            }
            if now >= end {
                return Ok(Ending::Deadline);
            }
            control.set_read_timeout(Some((end - now).min(self.silence_max - silent)))?;
            match control.read(&mut chunk) {
                Ok(0) => return machine("the machine ended".into(), restored),
                Ok(length) => lines.push(&chunk[..length]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return machine(format!("the machine's control port: {error}"), restored),
            }
            (heard, restored) = (Instant::now(), true);
            while let Some(line) = lines.next() {
                match line {
                    Ok(Line::Beat | Line::Ready) => {}
                    Ok(Line::Opened(path)) => (self.opened)(path),
                    Ok(Line::Exit(exit)) => return Ok(Ending::Exited(exit)),
                    Ok(Line::Fail(what)) => return Ok(Ending::Refused(what)),
                    Err(text) => return machine(format!("the machine says {text:?}"), restored),
                }
            }
        }
    }
}

/// Carries a port's bytes into `sink` and reports each length.
fn pump_out(listener: &UnixListener, sink: &Sink, mut carried: impl FnMut(u64)) {
    let Ok((mut port, _)) = listener.accept() else { return };
    let mut buffer = vec![0; 64 << 10];
    let mut open = true;
    while let Ok(length @ 1..) = port.read(&mut buffer) {
        open = open && sink.write(&buffer[..length]);
        carried(length as u64);
    }
}

/// Carries this process's standard input into a port; its end is the port's end.
fn pump_in(listener: &UnixListener) {
    let Ok((mut port, _)) = listener.accept() else { return };
    // An error means that one of the two ends is gone: either way no more will come.
    let _ = io::copy(&mut io::stdin().lock(), &mut port);
    let _ = port.shutdown(Shutdown::Write);
    // QEMU drops what it has not read when the other side is closed altogether.
    let _ = port.read(&mut [0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_complete_when_both_streams_are() {
        let progress = Progress::default();
        progress.update(0, |state| state.0 += 5);
        progress.update(1, |state| state.1 = true);
        assert!(progress.wait([5, 0]));
        assert!(!progress.wait([5, 1]), "a stream at its end carries no more");
    }

    fn watch(said: &[u8], deadline: Duration, silence_max: Duration) -> Ending {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(said).unwrap();
        let session = Session {
            arguments: &|_| Vec::new(),
            state: Path::new("/"),
            request: b"arg true\0\0",
            stdin: false,
            sinks: [Sink::Keep(Arc::default()), Sink::Keep(Arc::default())],
            deadline,
            silence_max,
            opened: &|_| (),
        };
        if deadline == LONG && silence_max == LONG {
            theirs.shutdown(Shutdown::Write).unwrap();
        }
        session.watch(ours).unwrap()
    }

    const LONG: Duration = Duration::from_secs(1000);
    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn exit_is_the_commands() {
        let ending = watch(b"\n\nexit 3 1 2 4 5 6\n", LONG, LONG);
        let Ending::Exited(exit) = ending else { panic!("{ending:?}") };
        assert_eq!((exit.status, exit.bytes), (3, [1, 2]));
    }

    #[test]
    fn end_of_machine_is_told_from_its_refusal() {
        assert!(matches!(watch(b"\n", LONG, LONG), Ending::Machine { restored: true, .. }));
        assert!(matches!(watch(b"", LONG, LONG), Ending::Machine { restored: false, .. }));
        assert!(matches!(watch(b"\nfail /x: No such file\n", LONG, LONG), Ending::Refused(_)));
        assert!(matches!(watch(b"\nnonsense\n", LONG, LONG), Ending::Machine { .. }));
    }

    #[test]
    fn silence_is_a_stall_before_it_is_a_deadline() {
        assert!(matches!(watch(b"\n", LONG, SHORT), Ending::Machine { .. }));
        assert!(matches!(watch(b"\n", SHORT, LONG), Ending::Deadline));
    }
}
