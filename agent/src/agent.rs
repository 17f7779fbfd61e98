//! The agent: one event loop that owns all state.
//!
//! A turn waits for events and then runs rounds until there is no progress: commands, input, output, exits, and writes to
//! the ports. Ports and process streams are edge-triggered; each object remembers whether it is ready.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::mem::MaybeUninit;
use core::ops::Bound;
use core::time::Duration;

use agent_proto::command::Code;
use agent_proto::payload::{self, ProcessEvent};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;

use crate::channel::{Control, Input, Port, json};
use crate::container::Container;
use crate::destroy::Destroy;
use crate::fault::{Fault, Step};
use crate::pod::Pod;
use crate::process::Process;
use crate::process::report::{self, Report};
use crate::streams::{Inbound, Output, Pump, Streams};

/// Limit of rounds in one turn, after which the agent checks for events again.
const ROUNDS: usize = 16;
/// Limit of events read at a time.
const EVENTS: usize = 64;
const EDGES: EventFlags = EventFlags::IN.union(EventFlags::OUT).union(EventFlags::ET);

/// The environment in which the agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// The agent is PID 1 of a guest: containers are isolated, and orphans become its children.
    Guest,
    /// The agent runs in a test on a host: a container is an ordinary child process without isolation.
    Host,
}

/// Result of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The loop continues.
    Continue,
    /// The host has closed the control channel. A port also reports this before the host has opened it.
    HostGone,
    /// The pod has been destroyed and the host has been told: the machine must be reset.
    PowerOff,
}

/// Source of an event: one of the channels, or together with a process's key one of its file descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Role {
    Control,
    Streams,
    Deadline,
    Report,
    Exit,
    Stdin,
    Stdout,
    Stderr,
    Terminal,
}

const ROLES: [Role; 9] = [
    Role::Control,
    Role::Streams,
    Role::Deadline,
    Role::Report,
    Role::Exit,
    Role::Stdin,
    Role::Stdout,
    Role::Stderr,
    Role::Terminal,
];

/// The agent's state.
#[derive(Debug)]
pub struct Agent {
    pub(crate) setting: Setting,
    pub(crate) control: Control,
    pub(crate) streams: Streams,
    pub(crate) pod: Option<Pod>,
    pub(crate) containers: Vec<Container>,
    /// Containers of STARTPOD that have not been started yet.
    pub(crate) to_start: VecDeque<payload::Container>,
    pub(crate) processes: BTreeMap<u32, Process>,
    pub(crate) destroy: Option<Destroy>,
    /// The machine must be reset once everything queued for the host has been sent.
    pub(crate) power_off: bool,
    pub(crate) next_key: u32,
    /// A child has exited and must be reaped.
    pub(crate) children: bool,
    pub(crate) epoll: OwnedFd,
    /// Key of the process whose output is served first in the next round.
    first: u32,
    busy: bool,
    host_gone: bool,
}

impl Agent {
    /// Returns an agent with these two channels, which must be non-blocking, and sends READY.
    pub fn new(control: OwnedFd, streams: OwnedFd, setting: Setting) -> Result<Agent, Fault> {
        // READY first, because the host waits for it.
        let mut control = Control::new(control)?;
        let mut streams = Streams::new(streams);
        let epoll = epoll::create(CreateFlags::CLOEXEC).step("make", "epoll")?;
        watch(&epoll, control.port().as_fd(), 0, Role::Control, EDGES)?;
        watch(&epoll, streams.port().as_fd(), 0, Role::Streams, EDGES)?;
        Ok(Agent {
            setting,
            control,
            streams,
            pod: None,
            containers: Vec::new(),
            to_start: VecDeque::new(),
            processes: BTreeMap::new(),
            destroy: None,
            power_off: false,
            next_key: 1,
            children: false,
            epoll,
            first: 0,
            busy: false,
            host_gone: false,
        })
    }

    /// Waits for events, at most for `timeout`, and handles them.
    ///
    /// # Errors
    ///
    /// If the link to the host is broken, or a system call fails that must not fail.
    pub fn run_once(&mut self, timeout: Option<Duration>) -> Result<Turn, Fault> {
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
        self.epoll.as_fd()
    }

    /// Returns the control channel.
    pub fn control(&mut self) -> BorrowedFd<'_> {
        let port: &Port = self.control.port();
        port.as_fd()
    }

    fn turn(&mut self) -> Turn {
        if self.power_off && self.control.port().unsent() == 0 {
            Turn::PowerOff
        } else if core::mem::take(&mut self.host_gone) {
            Turn::HostGone
        } else {
            Turn::Continue
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Fault> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut events = [MaybeUninit::<Event>::uninit(); EVENTS];
        let events = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
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
        let Some(role) = ROLES.get((token & 0xf) as usize) else { return };
        let process = self.processes.get_mut(&((token >> 4) as u32));
        match (role, process) {
            (Role::Control, _) => self.control.port().woken(),
            (Role::Streams, _) => self.streams.port().woken(),
            (Role::Deadline, _) => self.deadline_passed(),
            (Role::Exit, _) => self.children = true,
            (Role::Report, Some(process)) => process.reported = true,
            (Role::Stdin, Some(process)) => process.stdin.iter_mut().for_each(|stdin| stdin.woken()),
            (Role::Stdout, Some(process)) => process.stdout.iter_mut().for_each(Output::woken),
            (Role::Stderr, Some(process)) => process.stderr.iter_mut().for_each(Output::woken),
            (Role::Terminal, Some(process)) => {
                process.stdin.iter_mut().for_each(|stdin| stdin.woken());
                process.stdout.iter_mut().for_each(Output::woken);
            }
            (_, None) => {}
        }
    }

    /// Runs one round. Returns whether there was progress.
    fn round(&mut self) -> Result<bool, Fault> {
        let mut moved = self.serve_commands()?;
        moved |= self.take_reports()?;
        self.reap()?;
        moved |= self.serve_input()?;
        moved |= self.pump_output();
        self.streams.queue_credit();
        moved |= self.streams.port().flush()?;
        moved |= self.report_exits();
        moved = moved || self.finish_destroy();
        moved |= self.control.port().flush()?;
        Ok(moved)
    }

    fn serve_commands(&mut self) -> Result<bool, Fault> {
        let mut moved = false;
        while !self.is_held() {
            match self.control.take()? {
                Some((frame, first)) => {
                    self.command(frame, first);
                    moved = true;
                }
                None => match self.control.fill()? {
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

    /// Whether no command may start now. API 4244 has no message ids: replies come in the order of the commands, so a command
    /// starts only when all replies have been given.
    fn is_held(&self) -> bool {
        self.power_off
            || !self.control.is_extended()
                && (self.destroy.is_some()
                    || self.processes.values().any(|process| process.pending.is_some()))
    }

    fn take_reports(&mut self) -> Result<bool, Fault> {
        let reported: Vec<u32> =
            self.processes.iter().filter(|(_, process)| process.reported).map(|(key, _)| *key).collect();
        for key in &reported {
            self.take_report(*key)?;
        }
        Ok(!reported.is_empty())
    }

    pub(crate) fn take_report(&mut self, key: u32) -> Result<(), Fault> {
        loop {
            let Some(process) = self.processes.get_mut(&key) else { return Ok(()) };
            let Some(report) = process.pending.as_ref().and_then(|pending| pending.report.as_ref()) else {
                process.reported = false;
                return Ok(());
            };
            match report::receive(report) {
                Report::Nothing => {
                    process.reported = false;
                    return Ok(());
                }
                Report::Terminal(master) => match process.set_terminal(master) {
                    Ok(master) => watch(&self.epoll, master.as_fd(), key, Role::Terminal, EDGES)?,
                    Err(fault) => process.fail(fault),
                },
                Report::Fault(fault) => process.fail(fault),
                Report::Started => {
                    process.close_report();
                    self.answer_start(key);
                }
            }
        }
    }

    fn serve_input(&mut self) -> Result<bool, Fault> {
        let mut moved = false;
        if !self.processes.values().any(Process::is_full) {
            let processes = &mut self.processes;
            let read =
                self.streams.receive(self.control.is_extended(), |inbound| deliver(processes, inbound))?;
            moved = matches!(read, Input::Data(_));
        }
        let extended = self.control.is_extended();
        for process in self.processes.values_mut() {
            let Some(stdin) = &mut process.stdin else { continue };
            if let Some(taken) = stdin.pump() {
                moved = true;
                if extended {
                    self.streams.give_credit(stdin.seq, taken);
                }
            }
        }
        Ok(moved)
    }

    /// Queues one frame of every stream that has data, while there is space. Each round starts with another process, so that no
    /// stream starves.
    fn pump_output(&mut self) -> bool {
        let extended = self.control.is_extended();
        let mut moved = false;
        self.first += 1;
        for range in
            [(Bound::Included(self.first), Bound::Unbounded), (Bound::Unbounded, Bound::Excluded(self.first))]
        {
            for (key, process) in self.processes.range_mut(range) {
                let errors_first = self.first.is_multiple_of(2);
                if pump_process(process, &mut self.streams, extended, errors_first) {
                    moved = true;
                    self.first = *key;
                }
            }
        }
        moved
    }

    /// Reports the exit of every process whose output has been sent completely, and removes the process.
    fn report_exits(&mut self) -> bool {
        let sent = self.streams.sent();
        let over = |process: &Process| process.drained_at.is_some_and(|queued| queued <= sent);
        let keys: Vec<u32> =
            self.processes.iter().filter(|(_, process)| over(process)).map(|(key, _)| *key).collect();
        for key in &keys {
            let Some(process) = self.processes.remove(key) else { continue };
            if process.failed {
                continue;
            }
            let (exit, status) = process.exit();
            let event = ProcessEvent {
                container: process.container,
                process: process.id,
                event: "finished".into(),
                status,
                exit: self.control.is_extended().then_some(exit),
            };
            self.control.send(Code::ProcessAsyncEvent, 0, json(&event));
        }
        !keys.is_empty()
    }

    /// Registers a process's file descriptors with the event loop.
    pub(crate) fn watch_process(
        &mut self,
        key: u32,
        fds: &[(Option<BorrowedFd<'_>>, Role)],
    ) -> Result<(), Fault> {
        for (fd, role) in fds {
            let flags = match role {
                Role::Stdin => EventFlags::OUT | EventFlags::ET,
                Role::Stdout | Role::Stderr => EventFlags::IN | EventFlags::ET,
                _ => EventFlags::IN,
            };
            if let Some(fd) = fd {
                watch(&self.epoll, *fd, key, *role, flags)?;
            }
        }
        Ok(())
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

pub(crate) fn watch(
    epoll: &OwnedFd,
    fd: BorrowedFd<'_>,
    key: u32,
    role: Role,
    flags: EventFlags,
) -> Result<(), Fault> {
    let token = u64::from(key) << 4 | role as u64;
    epoll::add(epoll, fd, EventData::new_u64(token), flags).step("watch", "descriptor")
}

#[cfg(test)]
mod tests;
