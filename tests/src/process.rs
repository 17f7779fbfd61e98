//! A running `vmm` with a deadline.

use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Maximum time for a program, and for each output that a test waits for. It is long because the emulated host runs a
/// guest at a hundredth of the speed of hardware, and twenty of them in one test. `$VMM_TEST_DEADLINE` sets another, in seconds.
pub(crate) fn deadline() -> Duration {
    let seconds =
        std::env::var("VMM_TEST_DEADLINE").ok().map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(600))
}

/// Maximum time in which the outputs of a killed program end.
const AFTER_KILL: Duration = Duration::from_secs(10);

/// How a run ended.
#[derive(Debug)]
pub struct Finished {
    /// The program's own status.
    pub status: ExitStatus,
    /// Everything from its standard output.
    pub stdout: Vec<u8>,
    /// Everything from its standard error.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Asserts the exit code.
    #[track_caller]
    pub fn code(self, code: i32) -> Finished {
        assert_eq!(self.status.code(), Some(code), "{} {self}", self.status);
        self
    }

    /// Asserts standard output, to the byte.
    #[track_caller]
    pub fn stdout(self, text: &str) -> Finished {
        assert_eq!(String::from_utf8_lossy(&self.stdout), text, "{self}");
        self
    }

    /// Asserts standard error, to the byte.
    #[track_caller]
    pub fn stderr(self, text: &str) -> Finished {
        assert_eq!(String::from_utf8_lossy(&self.stderr), text, "{self}");
        self
    }

    /// Asserts that standard error is a message of `vmm` that contains each of `parts`.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Finished {
        let text = String::from_utf8_lossy(&self.stderr).into_owned();
        for part in parts {
            // The guest's errors begin with a lower-case letter, those of the host's libc with a capital.
            assert!(text.to_lowercase().contains(&part.to_lowercase()), "no {part:?} in {self}");
        }
        assert!(text.starts_with("vmm: "), "{self}");
        self
    }

    /// Standard output as text, without the last newline.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}]\n--- stdout\n{}\n--- stderr\n{}", self.status, tail(&self.stdout), tail(&self.stderr))
    }
}

/// A running program with pipes for its standard streams.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    deadline: Duration,
    /// A directory that the program uses and that must not be removed before its end.
    _directory: Option<Arc<TempDir>>,
}

impl Running {
    /// Starts `command` with pipes.
    pub fn start(mut command: Command) -> Running {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the program under test");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        Running { child, stdin, stdout, deadline: deadline(), _directory: None }
    }

    /// Keeps `directory` until the program has ended.
    pub fn in_directory(self, directory: Arc<TempDir>) -> Running {
        Running { _directory: Some(directory), ..self }
    }

    /// Gives the program `times` as long as others have, because it has as much more to do.
    pub fn for_longer(self, times: u32) -> Running {
        Running { deadline: self.deadline * times, ..self }
    }

    /// The program's process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, such as `TERM`, to the program.
    pub fn signal(&self, signal: &str) {
        check_output(Command::new("/bin/busybox").args(["kill", "-s", signal, &self.pid().to_string()]));
    }

    /// Writes `input` in another thread, and then closes standard input.
    pub fn feed(mut self, input: &[u8]) -> Running {
        let mut stdin = self.stdin.take().expect("standard input is open");
        let input = input.to_vec();
        // A container may end without reading its input, so a broken pipe is not an error.
        thread::spawn(move || drop(stdin.write_all(&input)));
        self
    }

    /// Writes `input` and keeps standard input open.
    pub fn write(&mut self, input: &[u8]) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        stdin.write_all(input).expect("write to the program under test");
    }

    /// Reads standard output up to the end of `mark`, and returns it.
    #[track_caller]
    pub fn wait_for(&mut self, mark: &str) -> String {
        let mut stdout = self.stdout.take().expect("standard output is open");
        let wanted = mark.to_owned();
        let (send, receive) = channel();
        thread::spawn(move || {
            let (mut seen, mut byte) = (Vec::new(), [0]);
            while !String::from_utf8_lossy(&seen).contains(&wanted) {
                match stdout.read(&mut byte) {
                    Ok(1) => seen.push(byte[0]),
                    _ => break,
                }
            }
            drop(send.send((seen, stdout)));
        });
        let (seen, stdout) = self.within(&receive, &format!("output {mark:?}"), |(seen, _)| tail(seen));
        self.stdout = Some(stdout);
        let seen = String::from_utf8_lossy(&seen).into_owned();
        assert!(seen.contains(mark), "output ended before {mark:?}: {seen:?}");
        seen
    }

    /// Returns standard output, for a test that reads it itself.
    pub fn take_stdout(&mut self) -> ChildStdout {
        self.stdout.take().expect("standard output is open")
    }

    /// Kills the program.
    pub fn stop(mut self) {
        self.child.kill().expect("kill the program under test");
        self.child.wait().expect("wait for the program under test");
    }

    /// Closes standard input, reads both outputs to their ends and waits for the exit.
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        drop(self.stdin.take());
        let stdout = self.stdout.take();
        let mut stderr = self.child.stderr.take().expect("standard error is open");
        let out = thread::spawn(move || {
            let mut all = Vec::new();
            if let Some(mut stdout) = stdout {
                stdout.read_to_end(&mut all).expect("read standard output");
            }
            all
        });
        let (send, receive) = channel();
        thread::spawn(move || {
            let mut all = Vec::new();
            stderr.read_to_end(&mut all).expect("read standard error");
            drop(send.send((all, out.join().expect("the reader does not panic"))));
        });
        let both = |(stderr, stdout): &(Vec<u8>, Vec<u8>)| format!("{}{}", tail(stdout), tail(stderr));
        let (stderr, stdout) = self.within(&receive, "end of the program", both);
        let status = self.child.wait().expect("wait for the program under test");
        Finished { status, stdout, stderr }
    }

    /// Receives from a reader. At the deadline, kills the program and fails with what its threads did and what the
    /// reader has until then, as `print` says it.
    #[track_caller]
    fn within<T>(&mut self, receive: &Receiver<T>, what: &str, print: impl Fn(&T) -> String) -> T {
        match receive.recv_timeout(self.deadline) {
            Ok(value) => value,
            Err(RecvTimeoutError::Timeout) => {
                let threads = threads(self.pid());
                self.child.kill().expect("kill the program under test");
                let read = receive.recv_timeout(AFTER_KILL).map_or("?".to_owned(), |value| print(&value));
                let seconds = self.deadline.as_secs();
                panic!("no {what} within {seconds} s\n--- threads\n{threads}--- output\n{read}");
            }
            Err(RecvTimeoutError::Disconnected) => panic!("no {what}: the reader panicked"),
        }
    }
}

/// Returns the end of an output as text.
fn tail(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(4000)..]).into_owned()
}

/// Returns a line for each thread of a process: its name, its state, what it waits for in the kernel, and its times in
/// ticks. A vCPU that spins has used more time than the others.
fn threads(pid: u32) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let line = |task: std::fs::DirEntry| {
        let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let (stat, wchan) = (read("stat"), read("wchan"));
        // proc(5): the name in parentheses is field 2, the state 3, the user and system times 14 and 15.
        let (name, fields) = stat.rsplit_once(')').unwrap_or_default();
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or("?");
        format!("{name}) {} {wchan} user {} system {}\n", field(3), field(14), field(15))
    };
    tasks.map(line).collect()
}

/// Runs `command` without input and returns its output. At the deadline, kills it and fails.
#[track_caller]
pub fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("start a command");
    by_deadline(child.id(), move || child.wait_with_output())
}

/// Runs `command` and returns its status. At the deadline, kills it and fails.
#[track_caller]
pub fn status(command: &mut Command) -> ExitStatus {
    wait(command.spawn().expect("start a command"))
}

/// Waits for the end of `child`. At the deadline, kills it and fails.
#[track_caller]
pub fn wait(mut child: Child) -> ExitStatus {
    by_deadline(child.id(), move || child.wait())
}

/// Waits for a process by calling `wait` in another thread. At the deadline, kills it and fails.
#[track_caller]
fn by_deadline<T: Send + 'static>(pid: u32, wait: impl FnOnce() -> io::Result<T> + Send + 'static) -> T {
    let (send, receive) = channel();
    thread::spawn(move || drop(send.send(wait())));
    if let Ok(ended) = receive.recv_timeout(deadline()) {
        return ended.expect("wait for a process");
    }
    let threads = threads(pid);
    let pid = Pid::from_raw(pid.try_into().expect("a process id")).expect("a process id");
    let _ = kill_process(pid, Signal::KILL);
    panic!("process {pid:?} has not ended within {} s\n--- threads\n{threads}", deadline().as_secs());
}

/// Runs `command`, asserts that it succeeds, and returns its standard output.
#[track_caller]
pub fn check_output(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?}: {:?} {:?} {}",
        output.status.code(),
        output.status.signal(),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("output is text")
}

/// Longest time in which something of which there is no event comes about.
const COMES_ABOUT: Duration = Duration::from_secs(120);

/// Asks `done` until it returns something.
#[track_caller]
pub fn until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + COMES_ABOUT;
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        thread::yield_now();
    }
}
