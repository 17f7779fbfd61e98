//! The main thread's wait: one poll over the agent, the machine's end, the streams and whatever else its owner looks
//! after, [`vmm run`](crate::foreground) or a pod.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use host::sys;
use host::text::printable;
use link::LinkError;
use vmm::VmEnd;

use crate::sandbox::Sandbox;

/// How many of the console's last lines an error shows.
const TAIL_LINES: usize = 20;

/// The longest sleep that counts as silence at once. Of a longer one this program missed the rest itself: it was stopped, by
/// job control or a debugger, and the guest with it.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// How long a machine may take to end after its guest has closed the control channel.
const END_GRACE: Duration = Duration::from_secs(2);

/// Why the wait was in vain.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The guest's kernel gave up.
    #[error("guest kernel panicked: {tail}")]
    Panicked {
        /// The panic and the lines after it.
        tail: String,
    },
    /// The machine ended before its work was done.
    #[error("{step}: the virtual machine ended: {}{tail}", reason(end))]
    Ended {
        /// What was waited for.
        step: &'static str,
        /// How it ended.
        end: VmEnd,
        /// The console's last lines.
        tail: String,
    },
    /// The agent left something owing.
    #[error("{step}: no answer from the guest's agent for {} s{tail}", after.as_secs())]
    Silent {
        /// What was waited for.
        step: &'static str,
        /// For how long.
        after: Duration,
        /// The console's last lines.
        tail: String,
    },
    /// The agent has not said that a container has ended that was killed.
    #[error("container {container}: killed, and no answer from the guest's agent for {} s", after.as_secs())]
    Unkilled {
        /// Which.
        container: String,
        /// For how long.
        after: Duration,
    },
    /// A signal asked for an end before the container's process was there.
    #[error("ended by signal {0} before the container's process was started")]
    Interrupted(i32),
    /// The agent refused, or makes no sense.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The host refused something.
    #[error("{step}")]
    Host {
        /// What for.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl SessionError {
    /// Whether the guest did no more than reset itself, which is how a pod ends that was asked to: the reply that says
    /// so may be lost when the guest is faster than the thread that reads it.
    pub fn is_reset(&self) -> bool {
        matches!(self, SessionError::Ended { end: VmEnd::Reset, .. })
    }
}

/// This module's result.
pub type Result<T, E = SessionError> = std::result::Result<T, E>;

/// What the agent owes beside replies.
#[derive(Clone, Copy, Debug)]
struct Debt {
    /// Which of the things that its owner knows.
    what: u64,
    /// For how long.
    waited: Duration,
}

/// A sandbox, and the wait for what comes out of it.
pub struct Session {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// How long the agent may owe anything.
    patience: Duration,
    debt: Option<Debt>,
    /// Up to when time has passed for what the agent owes.
    counted: Instant,
    /// The machine has ended, and what it left was there to be looked at.
    over: bool,
}

impl Session {
    /// Returns a session in which the agent may owe anything for as long as `patience`.
    pub fn new(sandbox: Sandbox, patience: Duration) -> Session {
        Session { sandbox, patience, debt: None, counted: Instant::now(), over: false }
    }

    /// How long the agent may owe anything.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// What the agent is to bring beside replies, it owes from now on.
    pub fn begin(&mut self) {
        self.debt = None;
    }

    /// Sleeps until something happens, at most until `until`, and reads what the agent has sent. `step` names what the caller
    /// waits for. `owed` is the stream of which the agent owes output, if it does: the agent has the full time for each stream.
    /// Returns which of `others` are ready.
    ///
    /// # Errors
    ///
    /// The agent is silent or makes no sense, or the machine has ended; once that was so, what came before the end can
    /// be looked at, and the next turn is the error.
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
        self.pass();
        let patience = self.timeout(owed)?;
        let rest = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = [patience, rest].into_iter().flatten().min();
        let (sandbox, link) = (&self.sandbox, &self.sandbox.link);
        let own = [
            (link.fd(), link.interest()),
            (sandbox.end_fd(), libc::POLLIN),
            (sandbox.streams.notify_fd(), libc::POLLIN),
        ];
        let mut ready = sys::poll_all(own.iter().chain(others), timeout).map_err(host("poll"))?;
        let others = ready.split_off(own.len());
        self.pass();
        let (agent, end, streams) = (ready[0], ready[1], ready[2]);
        if streams {
            self.sandbox.streams.acknowledge();
            if let Some(error) = self.sandbox.streams.lost() {
                return Err(LinkError::Streams(error).into());
            }
        }
        if agent || end {
            self.take_agent(step)?;
        }
        self.over = end;
        Ok(others)
    }

    fn take_agent(&mut self, step: &'static str) -> Result<()> {
        match self.sandbox.link.receive() {
            Ok(_) => Ok(()),
            Err(error @ LinkError::Channel { .. }) => Err(self.lost(step, error)),
            Err(error) => Err(error.into()),
        }
    }

    /// Says why the channel is gone: as a rule the machine is ending, and its own reason says more.
    fn lost(&self, step: &'static str, error: LinkError) -> SessionError {
        match sys::poll([(self.sandbox.end_fd(), libc::POLLIN)], Some(END_GRACE)) {
            Ok([true]) => self.ended(step),
            _ => error.into(),
        }
    }

    /// Lets the time pass for what the agent owes.
    fn pass(&mut self) {
        let time = counted(self.counted.elapsed());
        self.counted = Instant::now();
        self.sandbox.link.pass(time);
        self.debt.iter_mut().for_each(|debt| debt.waited += time);
    }

    /// How long to wait: for ever, unless the agent owes something.
    fn timeout(&mut self, owed: Option<u64>) -> Result<Option<Duration>> {
        self.debt = owed.map(|what| match self.debt {
            Some(debt) if debt.what == what => debt,
            _ => Debt { what, waited: Duration::ZERO },
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

    /// Says why the machine ended.
    fn ended(&self, step: &'static str) -> SessionError {
        let console = self.sandbox.console_tail();
        if let Some(tail) = panic_of(&console) {
            return SessionError::Panicked { tail };
        }
        let end = self.sandbox.end().unwrap_or(VmEnd::Stopped);
        SessionError::Ended { step, end, tail: indented(&console) }
    }
}

/// Returns how much of a time between two looks counts as the agent's silence.
fn counted(time: Duration) -> Duration {
    time.min(SILENCE_MAX)
}

fn reason(end: &VmEnd) -> &str {
    match end {
        VmEnd::Reset => "the guest reset itself",
        VmEnd::Shutdown => "the guest switched itself off",
        VmEnd::Failed(reason) => reason,
        VmEnd::Stopped => "it was stopped",
    }
}

/// Returns the kernel's panic message and what came after it.
fn panic_of(console: &str) -> Option<String> {
    let (_, panic) = console.rsplit_once("Kernel panic - not syncing")?;
    let first = printable(panic.lines().next()?.trim_start_matches([':', ' ']));
    // The cause stands in the lines before the panic as often as in those after it.
    Some(format!("{first}{}", indented(console)))
}

/// Returns the last lines of the console, each on a line of its own below an error's.
fn indented(console: &str) -> String {
    let console = tail(console);
    if console.trim().is_empty() {
        return "; it said nothing on its console (--console serial:- shows it from its first instructions)"
            .to_owned();
    }
    console.lines().map(|line| format!("\n  guest: {}", printable(line))).collect()
}

fn tail(console: &str) -> &str {
    let console = console.trim_end();
    let start = console.rmatch_indices('\n').nth(TAIL_LINES - 1).map_or(0, |(at, _)| at + 1);
    &console[start..]
}

pub(crate) fn host(step: &'static str) -> impl FnOnce(io::Error) -> SessionError {
    move |source| SessionError::Host { step, source }
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
    fn silence_is_not_counted_while_this_program_is_stopped() {
        assert_eq!(counted(Duration::from_secs(3600)), SILENCE_MAX);
        assert_eq!(counted(Duration::from_millis(900)), Duration::from_millis(900));
    }

    #[test]
    fn the_console_s_tail_is_short_and_harmless() {
        let console: String = (0..100).map(|n| format!("line {n}\x1b[2J\n")).collect();
        let shown = indented(&console);
        assert_eq!(shown.lines().count(), TAIL_LINES + 1);
        assert!(shown.ends_with("guest: line 99\\u{1b}[2J"));
        assert!(indented("\n\n").contains("it said nothing"));
    }
}
