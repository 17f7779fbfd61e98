//! The emulated KVM host: runs any command as root in a machine with a working /dev/kvm, even if this machine has no
//! usable KVM. `tests/host/README.md` describes its design, its cost and how to measure in it.
//!
//! Reading order: `machine` (the QEMU command line), `snapshot` (the booted state), `request` (the protocol of its PID
//! 1, `tests/host/init.c`), `session` (one run), and then this file, which uses them. This module does not depend on
//! vmm.

mod check;
mod cli;
mod environment;
mod kernel;
mod kvm;
mod machine;
mod monitor;
mod qemu;
mod request;
mod session;
mod snapshot;
mod trace;

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use std::{env, fs};

use anyhow::{Context, bail, ensure};

pub use cli::{HostArgs, main};
pub use kvm::kvm_usable;
pub use machine::Clock;
use machine::{Machine, OUT_SLOTS};
use request::{Exit, REQUEST_MAX, Request};
use session::{Ending, Session, Sink, silence_max};
use snapshot::Snapshot;
use trace::Trace;

/// Exit code of a run that exceeded its timeout.
pub const TIMED_OUT: i32 = 124;
/// Exit code of `cargo xtask host` when the machine, not the command, failed.
pub const FAILED: u8 = 125;
/// Default memory of the machine in MiB.
pub const MEMORY_MIB: u32 = 2048;
/// Default timeout of a command.
pub const DEADLINE: Duration = Duration::from_secs(600);
/// Default number of CPUs of the command.
const CPUS: u32 = 2;
/// Maximum number of repetitions of a run that failed because the machine ended or stalled.
const RERUNS_MAX: u32 = 2;
/// Maximum number of lines of the machine's log in an error.
const LOG_LINES: usize = 30;

/// Options for running a command. Working folder and environment are those of this process, but for
/// [`environment::inherited`].
#[derive(Clone)]
pub struct Host {
    outs: Vec<PathBuf>,
    stage: Vec<PathBuf>,
    env: Vec<(OsString, OsString)>,
    memory_mib: u32,
    cpus: Option<u32>,
    clock: Clock,
    deadline: Duration,
    stdin: bool,
    stage_opened: bool,
    verbose: bool,
}

/// Output and exit code of a command.
#[derive(Debug)]
pub struct Output {
    /// Exit code, 128 + signal, or `TIMED_OUT`.
    pub status: i32,
    /// Complete standard output.
    pub stdout: Vec<u8>,
    /// Complete standard error.
    pub stderr: Vec<u8>,
    /// Number of earlier attempts that failed because of the machine.
    pub reruns: u32,
}

impl Default for Host {
    fn default() -> Self {
        Host {
            outs: Vec::new(),
            stage: Vec::new(),
            env: Vec::new(),
            memory_mib: MEMORY_MIB,
            cpus: None,
            clock: Clock::Wall,
            deadline: DEADLINE,
            stdin: false,
            stage_opened: false,
            verbose: false,
        }
    }
}

impl Host {
    /// Returns the defaults: a machine of 2 GiB, two CPUs and ten minutes for the command, on the wall clock.
    pub fn new() -> Host {
        Host::default()
    }

    /// Shares `folder` for writing, and creates it if it is missing. Files that the command writes elsewhere are lost.
    pub fn out(mut self, folder: impl Into<PathBuf>) -> Host {
        self.outs.push(folder.into());
        self
    }

    /// Copies the file or folder `path` into the machine's memory before the command starts.
    pub fn stage(mut self, path: impl Into<PathBuf>) -> Host {
        self.stage.push(path.into());
        self
    }

    /// Runs the command once before, in a temporary machine, and stages every file that it opened.
    pub fn stage_opened(mut self, first: bool) -> Host {
        self.stage_opened = first;
        self
    }

    /// Sets the environment variable `key`, which overrides that of this process.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Host {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Sets the machine's memory in MiB, which includes files that the command writes.
    pub fn memory(mut self, mib: u32) -> Host {
        self.memory_mib = mib;
        self
    }

    /// Sets the number of CPUs for the command. The instruction clock permits only one.
    pub fn cpus(mut self, count: u32) -> Host {
        self.cpus = Some(count);
        self
    }

    /// Sets the clock of the machine.
    pub fn clock(mut self, clock: Clock) -> Host {
        self.clock = clock;
        self
    }

    /// Sets the timeout of the command, in seconds of this machine's time.
    pub fn deadline(mut self, seconds: u64) -> Host {
        self.deadline = Duration::from_secs(seconds);
        self
    }

    /// Whether the command reads this process's standard input. A run with input is never repeated.
    pub fn stdin(mut self, pass: bool) -> Host {
        self.stdin = pass;
        self
    }

    /// Whether to print the duration of each step to stderr.
    pub fn verbose(mut self, verbose: bool) -> Host {
        self.verbose = verbose;
        self
    }

    /// Installs the required packages and creates the snapshot, if necessary.
    pub fn prepare(&self) -> anyhow::Result<()> {
        Snapshot::get(&self.machine()?).map(|_| ())
    }

    /// Runs `command`, with its output passed on to this process's stdout and stderr. Returns its exit code, 128 +
    /// signal, or `TIMED_OUT`. An error means that the machine failed.
    pub fn run<S: AsRef<OsStr>>(&self, command: &[S]) -> anyhow::Result<i32> {
        let sinks = [Sink::pass(io::stdout())?, Sink::pass(io::stderr())?];
        self.attempts(command, || sinks.clone()).map(|(status, _)| status)
    }

    /// Runs `command` and returns its output. An error means that the machine failed.
    pub fn output<S: AsRef<OsStr>>(&self, command: &[S]) -> anyhow::Result<Output> {
        let kept = Mutex::new([Arc::default(), Arc::default()]);
        let sinks = || {
            // The output of a failed attempt is dropped.
            let fresh: [Arc<Mutex<Vec<u8>>>; 2] = Default::default();
            *kept.lock().unwrap() = fresh.clone();
            fresh.map(Sink::Keep)
        };
        let (status, reruns) = self.attempts(command, sinks)?;
        let [stdout, stderr] =
            kept.into_inner().unwrap().map(|buffer| std::mem::take(&mut *buffer.lock().unwrap()));
        Ok(Output { status, stdout, stderr, reruns })
    }

    fn attempts<S: AsRef<OsStr>>(
        &self,
        command: &[S],
        sinks: impl Fn() -> [Sink; 2],
    ) -> anyhow::Result<(i32, u32)> {
        let machine = self.machine()?;
        let outs = self.outs.iter().map(|folder| make_folder(folder)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut stage = self.stage.iter().map(|path| find(path)).collect::<anyhow::Result<Vec<_>>>()?;
        if self.stage_opened {
            ensure!(
                !self.stdin,
                "--stage-opened runs the command twice, which standard input does not permit"
            );
            let trace = Trace::default();
            let drop_output = || [Sink::Keep(Arc::default()), Sink::Keep(Arc::default())];
            let first = Run { machine, outs: &outs, stage: &stage, trace: Some(&trace) };
            let (status, reruns) = self.rerun(&first, command, drop_output)?;
            if status == TIMED_OUT {
                return Ok((status, reruns));
            }
            stage.extend(trace.staged_files(&outs));
        }
        self.rerun(&Run { machine, outs: &outs, stage: &stage, trace: None }, command, sinks)
    }

    /// Runs `command`, and repeats it if the machine ended or stalled. Returns its exit code and the number of
    /// repetitions.
    fn rerun<S: AsRef<OsStr>>(
        &self,
        run: &Run,
        command: &[S],
        sinks: impl Fn() -> [Sink; 2],
    ) -> anyhow::Result<(i32, u32)> {
        let mut reruns = 0;
        loop {
            let snapshot = Snapshot::get(&run.machine)?;
            let begin = Instant::now();
            let session = Session {
                arguments: &|sockets| snapshot.arguments(&run.machine, sockets, run.outs),
                state: &snapshot.state(),
                request: &self.request(&snapshot, run, command)?,
                stdin: self.stdin,
                sinks: sinks(),
                deadline: self.deadline,
                silence_max: silence_max(self.clock),
                on_open: &|path| run.trace.iter().for_each(|trace| trace.record(path.clone())),
            };
            let (ending, log) = session.run()?;
            match ending {
                Ending::Exited(exit) => {
                    self.say_times(begin.elapsed(), &exit, reruns);
                    return Ok((exit.status, reruns));
                }
                Ending::Deadline => {
                    eprintln!("xtask host: command stopped after {} s", self.deadline.as_secs());
                    return Ok((TIMED_OUT, reruns));
                }
                Ending::Refused(reason) => bail!("set up the command in the machine: {reason}"),
                Ending::Machine { cause, .. } if self.stdin || reruns == RERUNS_MAX => {
                    bail!("{cause}, after {reruns} reruns; its log ends with:\n{}", last_lines(&log))
                }
                Ending::Machine { cause, restored } => {
                    reruns += 1;
                    eprintln!("xtask host: {cause}; running the command again ({reruns} of {RERUNS_MAX})");
                    if !restored {
                        snapshot.discard();
                    }
                }
            }
        }
    }

    fn machine(&self) -> anyhow::Result<Machine> {
        let cpus = match (self.clock, self.cpus) {
            (Clock::Instructions, Some(2..)) => bail!("the instruction clock permits only one CPU"),
            (Clock::Instructions, _) => 1,
            (Clock::Wall, cpus) => cpus.unwrap_or(CPUS),
        };
        ensure!(cpus > 0, "the number of CPUs is 0");
        ensure!(
            self.outs.len() <= OUT_SLOTS,
            "{} folders shared for writing: limit of {OUT_SLOTS}",
            self.outs.len()
        );
        Ok(Machine { memory_mib: self.memory_mib, cpus, clock: self.clock })
    }

    /// Returns the request, with the current time and fresh entropy.
    fn request<S: AsRef<OsStr>>(
        &self,
        snapshot: &Snapshot,
        run: &Run,
        command: &[S],
    ) -> anyhow::Result<Vec<u8>> {
        ensure!(!command.is_empty(), "the command is empty");
        let mut request = Request::default();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("read the clock")?;
        request.record("time", format!("{}.{:09}", now.as_secs(), now.subsec_nanos()));
        request.record("seed", seed()?);
        request.record("folder", env::current_dir().context("find the working folder")?);
        request.record("modules", find(&snapshot.kernel.modules())?);
        if self.stdin {
            request.record("stdin", "");
        }
        if run.trace.is_some() {
            request.record("trace", "");
        }
        run.outs.iter().for_each(|folder| request.record("out", folder));
        run.stage.iter().for_each(|path| request.record("stage", path));
        command.iter().for_each(|word| request.record("arg", word));
        let inherited = environment::inherited().into_iter();
        let own = inherited.filter(|(key, _)| !self.env.iter().any(|(set, _)| set == key));
        own.chain(self.env.iter().cloned()).for_each(|(key, value)| request.env(&key, &value));
        let request = request.finish();
        ensure!(request.len() < REQUEST_MAX, "a request of {} bytes: limit of {REQUEST_MAX}", request.len());
        Ok(request)
    }

    fn say_times(&self, all: Duration, exit: &Exit, reruns: u32) {
        if reruns > 0 {
            eprintln!("xtask host: the machine failed in {reruns} of {} runs", reruns + 1);
        }
        if self.verbose {
            let clock = if self.clock == Clock::Wall { "" } else { " of counted instructions" };
            let seconds = |us: u64| us as f64 / 1e6;
            eprintln!(
                "xtask host: {:.2} s in all; in the machine{clock}: mounts and staging {:.3} s, command {:.3} s, \
                 sync {:.3} s",
                all.as_secs_f64(),
                seconds(exit.mount_us),
                seconds(exit.command_us),
                seconds(exit.sync_us)
            );
        }
    }
}

/// A run of the machine, with absolute paths.
struct Run<'a> {
    machine: Machine,
    outs: &'a [PathBuf],
    stage: &'a [PathBuf],
    /// Records the files that the command opens.
    trace: Option<&'a Trace>,
}

/// Creates `folder` and returns its absolute path.
fn make_folder(folder: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    find(folder)
}

/// Returns the absolute path of `path`.
fn find(path: &Path) -> anyhow::Result<PathBuf> {
    fs::canonicalize(path).with_context(|| format!("find {}", path.display()))
}

/// Returns entropy as text.
fn seed() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.trim_end().lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_determine_the_machine() {
        let machine = Host::new().memory(512).cpus(3).machine().unwrap();
        assert_eq!(machine, Machine { memory_mib: 512, cpus: 3, clock: Clock::Wall });
        assert_eq!(Host::new().clock(Clock::Instructions).machine().unwrap().cpus, 1);
    }

    #[test]
    fn impossible_machines_are_refused() {
        assert!(Host::new().cpus(0).machine().is_err());
        assert!(Host::new().clock(Clock::Instructions).cpus(2).machine().is_err());
        let many = (0..=OUT_SLOTS).fold(Host::new(), |host, index| host.out(format!("/tmp/{index}")));
        assert!(many.machine().is_err());
    }

    #[test]
    fn an_error_has_only_the_last_lines_of_the_log() {
        let log: String = (0..100).map(|index| format!("{index}\n")).collect();
        let last = last_lines(&log);
        assert!(last.starts_with("70\n") && last.ends_with("\n99"));
        assert_eq!(last_lines("\n"), "");
    }
}
