//! One run of the machine: restores the snapshot, sends the request, and passes output on until the command ends.

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

/// Timeout for output that the machine has sent before its exit line.
const FLUSH_MAX: Duration = Duration::from_secs(20);

/// Result of a run.
#[derive(Debug)]
pub enum Ending {
    /// The command has ended.
    Exited(Exit),
    /// The command exceeded the deadline.
    Deadline,
    /// PID 1 could not carry out the request, with step, operand and cause. A repetition would fail as well.
    Refused(String),
    /// The machine ended or stalled; `restored` if it had sent anything before.
    Machine { cause: String, restored: bool },
}

/// Returns the time without a line after which a machine has stalled. PID 1 sends a heartbeat each second of L1's
/// clock; a second of the instruction clock takes several seconds of this machine.
pub fn silence_max(clock: Clock) -> Duration {
    match clock {
        Clock::Wall => Duration::from_secs(30),
        Clock::Instructions => Duration::from_secs(120),
    }
}

/// Destination of an output stream.
#[derive(Clone)]
pub enum Sink {
    /// A descriptor of this process, unbuffered.
    Pass(Arc<File>),
    /// A buffer in memory.
    Keep(Arc<Mutex<Vec<u8>>>),
}

impl Sink {
    /// Returns a sink for a descriptor of this process. It bypasses the standard library's buffer.
    pub fn pass(descriptor: impl AsFd) -> io::Result<Sink> {
        Ok(Sink::Pass(Arc::new(File::from(descriptor.as_fd().try_clone_to_owned()?))))
    }

    /// Returns whether the sink accepts more. A pipe without a reader does not stop the command.
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

/// What an output stream has delivered to its sink.
#[derive(Default)]
struct Delivered {
    bytes: u64,
    at_end: bool,
}

/// Lets the main thread wait for the threads that deliver stdout and stderr.
#[derive(Default)]
struct Delivery {
    streams: Mutex<[Delivered; 2]>,
    changed: Condvar,
}

impl Delivery {
    fn update(&self, stream: usize, change: impl FnOnce(&mut Delivered)) {
        change(&mut self.streams.lock().unwrap()[stream]);
        self.changed.notify_all();
    }

    /// Waits until each stream has delivered `bytes` or is at its end. Returns whether all bytes were delivered.
    fn wait(&self, bytes: [u64; 2]) -> bool {
        let is_short = |streams: &mut [Delivered; 2]| {
            streams.iter().zip(bytes).any(|(stream, bytes)| stream.bytes < bytes && !stream.at_end)
        };
        let (streams, _) =
            self.changed.wait_timeout_while(self.streams.lock().unwrap(), FLUSH_MAX, is_short).unwrap();
        streams.iter().zip(bytes).all(|(stream, bytes)| stream.bytes >= bytes)
    }
}

/// Parameters of a run.
pub struct Session<'a> {
    /// Returns QEMU's arguments for a prefix of socket names.
    pub arguments: &'a dyn Fn(&str) -> Vec<std::ffi::OsString>,
    /// File with the state of the snapshot.
    pub state: &'a Path,
    /// The bytes for PID 1.
    pub request: &'a [u8],
    /// Whether the command reads this process's standard input.
    pub stdin: bool,
    /// Destinations of stdout and stderr.
    pub sinks: [Sink; 2],
    /// Timeout of the whole run.
    pub deadline: Duration,
    /// See [`silence_max`].
    pub silence_max: Duration,
    /// Called with each file that the command opens, if the request has a `trace` record.
    pub on_open: &'a dyn Fn(PathBuf),
}

impl Session<'_> {
    /// Runs the machine until the command ends. Returns the result, and the log of QEMU and L1's kernel.
    pub fn run(&self) -> anyhow::Result<(Ending, String)> {
        let mut sockets = Sockets::bind()?;
        let qemu = Qemu::start(&(self.arguments)(&sockets.prefix), &sockets)?;
        let delivery = Arc::new(Delivery::default());
        for (index, (port, sink)) in ["stdout", "stderr"].into_iter().zip(&self.sinks).enumerate() {
            let (listener, sink, delivery) = (sockets.take(port), sink.clone(), delivery.clone());
            thread::spawn(move || {
                deliver(&listener, &sink, |length| delivery.update(index, |stream| stream.bytes += length));
                delivery.update(index, |stream| stream.at_end = true);
            });
        }
        let stdin = sockets.take("stdin");
        let mut unused = None;
        if self.stdin {
            thread::spawn(move || send_stdin(&stdin));
        } else {
            // QEMU's connection waits in the queue of the listener, which must stay open.
            unused = Some(stdin);
        }
        let (monitor, _) = sockets.take(MONITOR).accept().context("wait for QEMU's monitor")?;
        let (control, _) = sockets.take("control").accept().context("wait for QEMU's control port")?;
        let mut monitor = Monitor::open(monitor);
        let restored = monitor.as_mut().map(|monitor| monitor.restore(self.state));
        let mut ending = match restored {
            Ok(Ok(())) => self.watch(control)?,
            Ok(Err(error)) => Ending::Machine { cause: format!("{error:#}"), restored: false },
            Err(error) => Ending::Machine { cause: format!("{error:#}"), restored: false },
        };
        if let Ending::Exited(exit) = &ending
            && !delivery.wait(exit.bytes)
        {
            ending =
                Ending::Machine { cause: "the machine lost output of the command".into(), restored: true };
        }
        let log = qemu.log();
        drop(qemu);
        drop(unused);
        // QEMU has ended, so both streams reach their end. All output must be delivered before this returns.
        delivery.wait([u64::MAX; 2]);
        Ok((ending, log))
    }

    /// Sends the request and reads the control port until the run ends.
    fn watch(&self, mut control: UnixStream) -> anyhow::Result<Ending> {
        let mut restored = false;
        let machine = |cause: String, restored| Ok(Ending::Machine { cause, restored });
        control.set_write_timeout(Some(self.silence_max)).context("set the control port's timeout")?;
        if let Err(error) = control.write_all(self.request) {
            return machine(format!("send the request to the machine: {error}"), restored);
        }
        let (mut lines, mut chunk) = (Lines::default(), [0; 512]);
        let end = Instant::now() + self.deadline;
        let mut last_line = Instant::now();
        loop {
            let now = Instant::now();
            let silence = now - last_line;
            if silence >= self.silence_max || (now >= end && silence >= self.silence_max / 2) {
                return machine(format!("the machine stalled for {} s", silence.as_secs()), restored);
            }
            if now >= end {
                return Ok(Ending::Deadline);
            }
            let timeout = (end - now).min(self.silence_max - silence);
            control.set_read_timeout(Some(timeout)).context("set the control port's timeout")?;
            match control.read(&mut chunk) {
                Ok(0) => return machine("the machine ended".into(), restored),
                Ok(length) => lines.push(&chunk[..length]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return machine(format!("read the control port: {error}"), restored),
            }
            (last_line, restored) = (Instant::now(), true);
            while let Some(line) = lines.next() {
                match line {
                    Ok(Line::Beat | Line::Ready) => {}
                    Ok(Line::Opened(path)) => (self.on_open)(path),
                    Ok(Line::Exit(exit)) => return Ok(Ending::Exited(exit)),
                    Ok(Line::Fail(what)) => return Ok(Ending::Refused(what)),
                    Err(text) => {
                        return machine(format!("unexpected line {text:?} of the machine"), restored);
                    }
                }
            }
        }
    }
}

/// Passes a port's bytes to `sink` and reports the length of each piece.
fn deliver(listener: &UnixListener, sink: &Sink, mut delivered: impl FnMut(u64)) {
    let Ok((mut port, _)) = listener.accept() else { return };
    let mut buffer = vec![0; 64 << 10];
    let mut accepts = true;
    while let Ok(length @ 1..) = port.read(&mut buffer) {
        accepts = accepts && sink.write(&buffer[..length]);
        delivered(length as u64);
    }
}

/// Passes this process's standard input to a port, with its end.
fn send_stdin(listener: &UnixListener) {
    let Ok((mut port, _)) = listener.accept() else { return };
    // After an error there is no more input, or no reader.
    let _ = io::copy(&mut io::stdin().lock(), &mut port);
    let _ = port.shutdown(Shutdown::Write);
    // Waits for QEMU: a closed socket would drop bytes that QEMU has not read.
    let _ = port.read(&mut [0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_complete_when_both_streams_are() {
        let delivery = Delivery::default();
        delivery.update(0, |stream| stream.bytes += 5);
        delivery.update(1, |stream| stream.at_end = true);
        assert!(delivery.wait([5, 0]));
        assert!(!delivery.wait([5, 1]), "a stream at its end delivers no more");
    }

    fn watch(lines: &[u8], deadline: Duration, silence_max: Duration) -> Ending {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(lines).unwrap();
        let session = Session {
            arguments: &|_| Vec::new(),
            state: Path::new("/"),
            request: b"arg true\0\0",
            stdin: false,
            sinks: [Sink::Keep(Arc::default()), Sink::Keep(Arc::default())],
            deadline,
            silence_max,
            on_open: &|_| (),
        };
        if deadline == LONG && silence_max == LONG {
            theirs.shutdown(Shutdown::Write).unwrap();
        }
        session.watch(ours).unwrap()
    }

    const LONG: Duration = Duration::from_secs(1000);
    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn the_exit_line_ends_the_run() {
        let ending = watch(b"\n\nexit 3 1 2 4 5 6\n", LONG, LONG);
        let Ending::Exited(exit) = ending else { panic!("{ending:?}") };
        assert_eq!((exit.status, exit.bytes), (3, [1, 2]));
    }

    #[test]
    fn a_failed_machine_differs_from_a_refused_request() {
        assert!(matches!(watch(b"\n", LONG, LONG), Ending::Machine { restored: true, .. }));
        assert!(matches!(watch(b"", LONG, LONG), Ending::Machine { restored: false, .. }));
        assert!(matches!(watch(b"\nfail /x: No such file\n", LONG, LONG), Ending::Refused(_)));
        assert!(matches!(watch(b"\nnonsense\n", LONG, LONG), Ending::Machine { .. }));
    }

    #[test]
    fn a_silent_machine_has_stalled_and_a_live_one_exceeds_the_deadline() {
        assert!(matches!(watch(b"\n", LONG, SHORT), Ending::Machine { .. }));
        assert!(matches!(watch(b"\n", SHORT, LONG), Ending::Deadline));
    }
}
