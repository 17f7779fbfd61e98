//! The main thread's wait: one poll for the agent, the machine's end, the streams, and descriptors of the caller.

use host::HostError;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use host::steal::StealCounters;
use host::sys;
use host::text::printable;
use link::LinkError;
use vmm::VmEnd;

use crate::clock::GuestClock;
use crate::deadlines;
use crate::sandbox::Sandbox;

/// Number of the console's last lines in an error message.
const TAIL_LINES: usize = 20;

/// Maximum duration of one sleep that counts as silence. If a sleep took longer, this process was suspended with its
/// guest, for example by job control or a debugger.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// Minimum time between two counts.
const COUNT_AFTER: Duration = Duration::from_millis(100);

/// Maximum time for a machine to end after its guest has closed the control channel.
const END_GRACE: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("guest kernel panicked: {tail}")]
    Panicked { tail: String },
    #[error("{step}: the virtual machine ended: {}{tail}", reason(end))]
    Ended { step: &'static str, end: VmEnd, tail: String },
    #[error("{step}: no answer from the guest's agent for {} s{tail}", after.as_secs())]
    Silent { step: &'static str, after: Duration, tail: String },
    #[error("container {container}: killed, and no answer from the guest's agent for {} s", after.as_secs())]
    Unkilled { container: String, after: Duration },
    /// A signal to terminate arrived before the container's process was started.
    #[error("ended by signal {0} before the container's process was started")]
    Interrupted(i32),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Host(#[from] HostError),
}

impl SessionError {
    /// Whether the guest only reset itself, which is how a pod ends that was asked to: the reply to the request may be
    /// lost if the guest is faster than the thread that reads it.
    pub fn is_reset(&self) -> bool {
        matches!(self, SessionError::Ended { end: VmEnd::Reset, .. })
    }
}

pub type Result<T, E = SessionError> = std::result::Result<T, E>;

/// Output that the agent owes.
#[derive(Clone, Copy, Debug)]
struct Debt {
    /// Number of the stream.
    stream: u64,
    waited: Duration,
}

/// A sandbox, and the wait for its events.
pub struct Session {
    pub sandbox: Sandbox,
    pub patience: Duration,
    debt: Option<Debt>,
    /// The time up to which the agent's silence has been counted.
    counted: Instant,
    /// Steal time of the machine's threads.
    steal: StealCounters,
    /// What it was at the last count.
    stolen: Duration,
    /// Time that was not counted because the host's CPUs did something else, and that nobody has taken.
    starved: Duration,
    /// The machine has ended, and the last events before that were returned.
    over: bool,
    /// The guest's clock, once its containers were started.
    clock: Option<GuestClock>,
}

impl Session {
    /// Returns a session in which `patience` is the maximum time for an answer of the agent.
    pub fn new(sandbox: Sandbox, patience: Duration) -> Session {
        let steal = StealCounters::of_this_process();
        let steal = steal.inspect_err(|error| log::debug!("steal time: {error}")).unwrap_or_default();
        let [stolen, starved] = [steal.read(), Duration::ZERO];
        let counted = Instant::now();
        Session { sandbox, patience, debt: None, counted, steal, stolen, starved, over: false, clock: None }
    }

    /// Returns for how long, since the last call, the guest could not go on because the host's CPUs did something else.
    pub fn take_starved(&mut self) -> Duration {
        std::mem::take(&mut self.starved)
    }

    /// Keeps the guest's clock right from now on, until [`begin_end`](Self::begin_end).
    pub fn keep_clock(&mut self) {
        self.clock = Some(GuestClock::new(&self.sandbox.link, Instant::now()));
    }

    /// Prepares for the wait for the guest's end: restarts the count for what the agent owes besides replies, and leaves
    /// the guest's clock alone.
    pub fn begin_end(&mut self) {
        (self.debt, self.clock) = (None, None);
    }

    /// Sleeps until something happens, at most until `until`, and reads what the agent has sent. `step` names what the caller
    /// waits for. `owed` is the stream of which the agent owes output, if it does: the agent has the full time for each stream.
    /// Returns which of `others` are ready.
    ///
    /// # Errors
    ///
    /// The agent is silent or broke the protocol, or the machine has ended. In that last case the call returns once
    /// more, so that events before the end can be handled, and the next call fails.
    pub fn turn(
        &mut self,
        step: &'static str,
        owed: Option<u64>,
        others: &[(BorrowedFd<'_>, i16)],
        until: Option<Instant>,
    ) -> Result<Vec<bool>> {
        if self.over {
            return Err(self.ended(step));
        }
        self.count_silence();
        let silence = self.time_for_answers(owed)?;
        let rest = until.map(|until| until.saturating_duration_since(Instant::now()));
        let check = self.clock.as_ref().and_then(GuestClock::due);
        let check = check.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = [silence, rest, check].into_iter().flatten().min();
        let (sandbox, link) = (&self.sandbox, &self.sandbox.link);
        let own = [
            (link.fd(), link.interest()),
            (sandbox.end_fd(), libc::POLLIN),
            (sandbox.streams.notify_fd(), libc::POLLIN),
        ];
        let set = self.clock.as_ref().and_then(GuestClock::fd).map(|fd| (fd, libc::POLLIN));
        let polled = own.iter().chain(&set).chain(others);
        let mut ready = sys::poll_all(polled, timeout).map_err(HostError::step("poll"))?;
        let others = ready.split_off(own.len() + usize::from(set.is_some()));
        self.count_silence();
        let (agent, end, streams, set) = (ready[0], ready[1], ready[2], ready.get(3) == Some(&true));
        if streams {
            self.sandbox.streams.acknowledge();
            if let Some(error) = self.sandbox.streams.lost() {
                return Err(LinkError::Streams(error).into());
            }
        }
        if agent || end {
            self.take_agent(step)?;
        }
        if let Some(clock) = self.clock.as_mut().filter(|_| !end) {
            let stepped = clock.step(&mut self.sandbox.link, set);
            self.check_link(step, stepped)?;
        }
        self.over = end;
        Ok(others)
    }

    fn take_agent(&mut self, step: &'static str) -> Result<()> {
        let received = self.sandbox.link.receive().map(drop);
        self.check_link(step, received)
    }

    fn check_link(&self, step: &'static str, result: Result<(), LinkError>) -> Result<()> {
        match result {
            Err(error @ LinkError::Channel { .. }) => Err(self.lost(step, error)),
            other => Ok(other?),
        }
    }

    /// Returns the reason for a closed channel: usually the machine's end, whose own reason is more precise.
    fn lost(&self, step: &'static str, error: LinkError) -> SessionError {
        match sys::poll([(self.sandbox.end_fd(), libc::POLLIN)], Some(END_GRACE)) {
            Ok([true]) => self.ended(step),
            _ => error.into(),
        }
    }

    /// Counts the time since the last count as the agent's silence.
    fn count_silence(&mut self) {
        let elapsed = self.counted.elapsed();
        if elapsed < COUNT_AFTER {
            return;
        }
        self.counted = Instant::now();
        let stolen = self.steal.read();
        let starved = starved(elapsed, stolen.saturating_sub(self.stolen));
        let time = counted(elapsed - starved);
        self.stolen = stolen;
        self.starved += starved;
        self.sandbox.link.pass(time);
        self.debt.iter_mut().for_each(|debt| debt.waited += time);
    }

    /// Returns how long the agent may still be silent; `None` if it owes nothing. Fails once that time is over.
    fn time_for_answers(&mut self, owed: Option<u64>) -> Result<Option<Duration>> {
        self.debt = owed.map(|stream| match self.debt {
            Some(debt) if debt.stream == stream => debt,
            _ => Debt { stream, waited: Duration::ZERO },
        });
        let output = "wait for the container's output";
        let debts = self.debt.map(|debt| (output, debt.waited)).into_iter().chain(self.sandbox.link.owed());
        let Some((step, waited)) = debts.max_by_key(|(_, waited)| *waited) else { return Ok(None) };
        match self.patience.saturating_sub(waited) {
            Duration::ZERO => Err(SessionError::Silent {
                step,
                after: self.patience,
                tail: indented(&self.sandbox.console_tail()),
            }),
            left => Ok(Some(left.min(SILENCE_MAX))),
        }
    }

    /// Returns the error for the machine's end.
    fn ended(&self, step: &'static str) -> SessionError {
        let console = self.sandbox.console_tail();
        if let Some(tail) = panic_of(&console) {
            return SessionError::Panicked { tail };
        }
        let end = self.sandbox.end().unwrap_or(VmEnd::Stopped);
        SessionError::Ended { step, end, tail: indented(&console) }
    }
}

/// Returns how much of the time between two counts is the agent's silence.
fn counted(time: Duration) -> Duration {
    time.min(SILENCE_MAX)
}

/// Returns for how much of `time` the guest could not go on because the host's CPUs did something else. `stolen` is the sum of
/// the threads' steal time in it: a vCPU that waits for the file server waits for a thread that may wait for a CPU. A guest
/// cannot make the host wait for ever by that.
fn starved(time: Duration, stolen: Duration) -> Duration {
    stolen.min(time - time / deadlines::STARVED)
}

fn reason(end: &VmEnd) -> &str {
    match end {
        VmEnd::Reset => "the guest reset itself",
        VmEnd::Shutdown => "the guest shut down",
        VmEnd::Failed(reason) => reason,
        VmEnd::Stopped => "it was stopped",
    }
}

/// Returns the kernel's panic message and the lines around it.
fn panic_of(console: &str) -> Option<String> {
    let (_, panic) = console.rsplit_once("Kernel panic - not syncing")?;
    let first = printable(panic.lines().next()?.trim_start_matches([':', ' ']));
    // The lines before the panic name the cause as often as those after it.
    Some(format!("{first}{}", indented(console)))
}

/// Returns the last lines of the console, indented below an error message.
fn indented(console: &str) -> String {
    let console = tail(console);
    if console.trim().is_empty() {
        return "; the guest's console has no output (--console serial:- shows its first instructions)"
            .to_owned();
    }
    console.lines().map(|line| format!("\n  guest: {}", printable(line))).collect()
}

fn tail(console: &str) -> &str {
    let console = console.trim_end();
    let start = console.rmatch_indices('\n').nth(TAIL_LINES - 1).map_or(0, |(at, _)| at + 1);
    &console[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_found_in_the_console() {
        let console =
            "[0.1] a\r\n[0.2] Kernel panic - not syncing: Attempted to kill init!\r\n[0.3] CPU: 0\r\n";
        assert_eq!(
            panic_of(console).unwrap(),
            "Attempted to kill init!\n  guest: [0.1] a\n  guest: [0.2] Kernel panic - not syncing: Attempted to kill \
             init!\n  guest: [0.3] CPU: 0"
        );
        assert_eq!(panic_of("all is well"), None);
    }

    #[test]
    fn silence_is_not_counted_while_this_process_is_suspended() {
        assert_eq!(counted(Duration::from_secs(3600)), SILENCE_MAX);
        assert_eq!(counted(Duration::from_millis(900)), Duration::from_millis(900));
    }

    #[test]
    fn a_tenth_of_the_time_counts_even_if_the_machine_has_no_cpu() {
        let starved =
            |time, stolen| starved(Duration::from_secs(time), Duration::from_secs(stolen)).as_secs();
        assert_eq!(
            [(10, 0), (10, 8), (10, 10), (10, 600)].map(|(time, stolen)| starved(time, stolen)),
            [0, 8, 9, 9]
        );
    }

    #[test]
    fn the_console_s_tail_is_short_and_harmless() {
        let console: String = (0..100).map(|n| format!("line {n}\x1b[2J\n")).collect();
        let shown = indented(&console);
        assert_eq!(shown.lines().count(), TAIL_LINES + 1);
        assert!(shown.ends_with("guest: line 99\\u{1b}[2J"));
        assert!(indented("\n\n").contains("has no output"));
    }
}
