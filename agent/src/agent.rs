//! The agent: one event loop, which owns all state.
//!
//! A turn waits for events and then runs rounds until there is no progress: commands, input, output, exits, and writes
//! to the ports. Ports and process streams are edge-triggered; each object remembers whether it is ready.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::mem::MaybeUninit;
use core::ops::Bound;
use core::time::Duration;

use agent_proto::command::Code;
use agent_proto::payload::ProcessEvent;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;

use crate::channel::{Input, Port, json};
use crate::destroy;
use crate::error::{Error, Step};
use crate::process::Process;
pub use crate::state::Setting;
use crate::state::{EventSource, State};
use crate::streams::{Inbound, Output, Pump, Streams};
use crate::timeline;

/// Limit of rounds in one turn, after which the agent checks for events again.
const ROUNDS: usize = 16;
/// Limit of events read at a time.
const EVENTS: usize = 64;

/// Result of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The loop continues.
    Continue,
    /// The host has closed the control channel. A port also reports this before the host has opened it.
    HostGone,
    /// The pod has been destroyed and the reply has been sent: the machine must be reset.
    PowerOff,
}

/// The agent: its state, and the event loop over it.
#[derive(Debug)]
pub struct Agent {
    state: State,
    /// Key of the process whose output is served first in the next round.
    first: u32,
    busy: bool,
    host_gone: bool,
}

impl Agent {
    /// Returns an agent with these two channels, which must be non-blocking, and sends READY.
    pub fn new(control: OwnedFd, streams: OwnedFd, setting: Setting) -> Result<Agent, Error> {
        let state = State::new(control, streams, setting)?;
        Ok(Agent { state, first: 0, busy: false, host_gone: false })
    }

    /// Waits for events, at most for `timeout`, and handles them.
    ///
    /// # Errors
    ///
    /// If the link to the host is broken, or if a system call fails that the agent cannot do without.
    pub fn run_once(&mut self, timeout: Option<Duration>) -> Result<Turn, Error> {
        self.wait(if self.busy { Some(Duration::ZERO) } else { timeout })?;
        self.busy = false;
        for _ in 0..ROUNDS {
            if !self.round()? {
                return Ok(self.turn());
            }
        }
        self.busy = true;
        Ok(self.turn())
    }

    /// Returns a file descriptor that is readable when there are events, for an outer event loop.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.state.epoll.as_fd()
    }

    /// Returns the control channel.
    pub fn control(&mut self) -> BorrowedFd<'_> {
        let port: &Port = self.state.control.port();
        port.as_fd()
    }

    fn turn(&mut self) -> Turn {
        if self.state.power_off && self.state.control.port().unsent() == 0 {
            Turn::PowerOff
        } else if core::mem::take(&mut self.host_gone) {
            Turn::HostGone
        } else {
            Turn::Continue
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut events = [MaybeUninit::<Event>::uninit(); EVENTS];
        let events = match epoll::wait(&self.state.epoll, &mut events, timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno).step("wait for", "events"),
        };
        for event in events {
            self.woken(event.data.u64());
        }
        Ok(())
    }

    fn woken(&mut self, token: u64) {
        let Some((source, key)) = EventSource::from_token(token) else { return };
        let state = &mut self.state;
        let process = state.processes.get_mut(&key);
        match (source, process) {
            (EventSource::Control, _) => state.control.port().woken(),
            (EventSource::Streams, _) => state.streams.port().woken(),
            (EventSource::GracePeriod, _) => self.grace_period_ended(),
            (EventSource::Exit, _) => state.child_exited = true,
            (EventSource::OomKill, _) => state.oom_killed = true,
            (EventSource::Sockets, _) => state.carry_if_asked(),
            (EventSource::Report, Some(process)) => process.reported = true,
            (EventSource::Stdin, Some(process)) => process.stdin.iter_mut().for_each(|stdin| stdin.woken()),
            (EventSource::Stdout, Some(process)) => process.stdout.iter_mut().for_each(Output::woken),
            (EventSource::Stderr, Some(process)) => process.stderr.iter_mut().for_each(Output::woken),
            (EventSource::Terminal, Some(process)) => {
                process.stdin.iter_mut().for_each(|stdin| stdin.woken());
                process.stdout.iter_mut().for_each(Output::woken);
            }
            (_, None) => {}
        }
    }

    /// Runs one round. Returns whether there was progress.
    fn round(&mut self) -> Result<bool, Error> {
        let mut moved = self.serve_commands()?;
        moved |= self.take_reports()?;
        self.state.reap()?;
        moved |= self.serve_input()?;
        moved |= self.pump_output();
        self.state.streams.queue_credit();
        moved |= self.state.streams.port().flush()?;
        moved |= self.state.report_oom_kills();
        moved |= self.report_exits();
        moved = moved || self.complete_destroy();
        moved |= self.state.control.port().flush()?;
        Ok(moved)
    }

    fn serve_commands(&mut self) -> Result<bool, Error> {
        let mut moved = false;
        while !self.is_held() {
            match self.state.control.take()? {
                Some((frame, first)) => {
                    self.state.command(frame, first);
                    moved = true;
                }
                None => match self.state.control.fill()? {
                    Input::Data(_) => moved = true,
                    Input::Nothing => break,
                    Input::Closed => {
                        self.host_gone = true;
                        break;
                    }
                },
            }
        }
        Ok(moved)
    }

    /// Whether no command may start now. API 4244 has no message ids: replies come in the order of the commands, so a
    /// command starts only when all earlier commands have been answered.
    fn is_held(&self) -> bool {
        self.state.power_off
            || !self.state.control.is_extended()
                && (self.state.destroy.is_some()
                    || self.state.processes.values().any(|process| process.pending.is_some()))
    }

    fn take_reports(&mut self) -> Result<bool, Error> {
        let reported: Vec<u32> = self
            .state
            .processes
            .iter()
            .filter(|(_, process)| process.reported)
            .map(|(key, _)| *key)
            .collect();
        for key in &reported {
            self.state.take_report(*key)?;
        }
        Ok(!reported.is_empty())
    }

    fn serve_input(&mut self) -> Result<bool, Error> {
        let mut moved = false;
        if !self.state.processes.values().any(Process::is_full) {
            let State { processes, streams, control, .. } = &mut self.state;
            let read = streams.receive(control.is_extended(), |inbound| deliver(processes, inbound))?;
            moved = matches!(read, Input::Data(_));
        }
        let extended = self.state.control.is_extended();
        for process in self.state.processes.values_mut() {
            let Some(stdin) = &mut process.stdin else { continue };
            if let Some(taken) = stdin.pump() {
                moved = true;
                if extended {
                    self.state.streams.give_credit(stdin.seq, taken);
                }
            }
        }
        Ok(moved)
    }

    /// Queues one frame of every stream that has data, while there is space. Each round starts with another process, so
    /// that no stream starves.
    fn pump_output(&mut self) -> bool {
        let extended = self.state.control.is_extended();
        let mut moved = false;
        self.first += 1;
        for range in
            [(Bound::Included(self.first), Bound::Unbounded), (Bound::Unbounded, Bound::Excluded(self.first))]
        {
            for (key, process) in self.state.processes.range_mut(range) {
                let errors_first = self.first.is_multiple_of(2);
                if pump_process(process, &mut self.state.streams, extended, errors_first) {
                    moved = true;
                    self.first = *key;
                }
            }
        }
        moved
    }

    /// Reports the exit of every process whose output has been sent completely, and removes the process.
    fn report_exits(&mut self) -> bool {
        let sent = self.state.streams.sent();
        let over = |process: &Process| process.drained_at.is_some_and(|queued| queued <= sent);
        let keys: Vec<u32> =
            self.state.processes.iter().filter(|(_, process)| over(process)).map(|(key, _)| *key).collect();
        for key in &keys {
            let Some(process) = self.state.processes.remove(key) else { continue };
            if process.failed {
                continue;
            }
            // The kernel may report the kill later than the end.
            self.state.oom_killed = true;
            self.state.report_oom_kills();
            let (exit, status) = process.exit();
            let event = ProcessEvent {
                container: process.container,
                process: process.id,
                event: ProcessEvent::FINISHED.into(),
                status,
                exit: self.state.control.is_extended().then_some(exit),
            };
            self.state.control.send(Code::ProcessAsyncEvent, 0, json(&event));
        }
        !keys.is_empty()
    }

    /// Kills the processes that have not exited after SIGTERM.
    fn grace_period_ended(&mut self) {
        if self.state.destroy.is_some() {
            destroy::kill(&self.state.processes, &self.state.containers);
        }
    }

    /// Completes DESTROYPOD when all processes have exited. Called when there is no more progress, so any remaining
    /// output is output that the host does not accept.
    fn complete_destroy(&mut self) -> bool {
        let state = &mut self.state;
        if state.destroy.is_none() || state.processes.values().any(|process| process.pidfd.is_some()) {
            return false;
        }
        let Some(destroy) = state.destroy.take() else { return false };
        if let Some(sockets) = state.sockets.take() {
            sockets.finish();
        }
        if state.setting == Setting::Guest {
            // At the end, so that it does not affect measurements.
            timeline::copy_if_wanted();
            rustix::fs::sync();
        }
        state.control.reply(destroy.id, Ok(Vec::new()), Code::DestroyPod as u32);
        state.power_off = true;
        true
    }
}

/// Queues a frame of each of a process's outputs, or their end frames. Returns whether there was progress.
fn pump_process(process: &mut Process, streams: &mut Streams, extended: bool, errors_first: bool) -> bool {
    // No stream frames, not even end frames, are sent before the host knows whether the program runs.
    if process.pending.is_some() {
        return false;
    }
    let exited = process.status.is_some();
    let mut moved = false;
    let mut outputs = [&mut process.stdout, &mut process.stderr];
    if errors_first {
        outputs.reverse();
    }
    for output in outputs.into_iter().flatten() {
        let pump = output.pump(streams, extended, exited);
        moved |= pump != Pump::Idle;
        if pump == Pump::Ended && extended && !process.failed {
            streams.end(output.seq);
        }
    }
    if exited && process.drained_at.is_none() && process.is_drained() {
        moved = true;
        if !extended && !process.failed {
            streams.end(process.seqs.0);
        }
        process.drained_at = Some(streams.queued());
    }
    moved
}

/// Passes the host's input to its process. Returns false if there is no such process.
fn deliver(processes: &mut BTreeMap<u32, Process>, inbound: Inbound<'_>) -> bool {
    let (Inbound::Data(seq, _) | Inbound::End(seq)) = inbound else {
        if let Inbound::Credit(credit) = inbound {
            let process = processes.values_mut().find(|process| process.has_seq(credit.seq));
            process.into_iter().for_each(|process| process.credit(credit));
        }
        return true;
    };
    let Some(process) = processes.values_mut().find(|process| process.seqs.0 == seq) else { return false };
    process.input(inbound);
    true
}

#[cfg(test)]
mod tests;
