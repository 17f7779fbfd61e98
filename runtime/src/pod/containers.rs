//! The containers of a pod and their exec processes: commands to the agent, its replies, and their effects. The
//! supervisor owns clients, machine and share, so effects on them are returned as events.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use agent_proto::command::Code;
use agent_proto::payload::{ContainerLimits, ContainerName};
use link::{CommandId, LinkError};
use oci::spec::ConsoleSize;

use super::container::{Container, Phase, StartError, StopStage};
use super::exec::{self, Exec};
use super::log::LogFile;
use super::plan::ContainerSpec;
use super::process;
use super::{ClientId, Guest};
use crate::control::{ExecRequest, Reply};
use crate::{deadlines, exit};
pub use event::Event;
use forward::Forward;

mod event;
mod forward;
mod member;
mod replies;
mod stop;

/// Maximum number of concurrent starts: each needs a fork of the agent and has a pending command.
const STARTS_MAX: usize = 16;
/// Maximum number of exec processes at a time.
const EXECS_MAX: usize = 256;
/// Maximum number of pending requests for information from the guest.
const QUESTIONS_MAX: usize = 16;

/// The receiver of a command's reply.
#[derive(Debug)]
enum Awaited {
    Start(String),
    Clear(String),
    Exec(String),
    Forward(String),
    Stats(ClientId),
    Processes(ClientId),
    Update(ClientId),
    Pause { client: ClientId, container: String, paused: bool },
}

/// This module's result. Every error is one of the link.
pub type Result<T, E = LinkError> = std::result::Result<T, E>;

pub struct Containers {
    /// The containers, in the podfile's order.
    pub all: Vec<Container>,
    execs: Vec<Exec>,
    forwards: Vec<Forward>,
    awaited: Vec<(CommandId, Awaited)>,
    /// Clients that wait for a container's end.
    waiters: Vec<(String, ClientId)>,
    next_seq: u64,
    next_exec: u64,
    null: File,
    /// Time that a container has to end after SIGKILL.
    pub kill_patience: Duration,
    /// When containers that are being stopped are killed.
    patience: Option<Instant>,
    stopping: bool,
    /// What the supervisor is to do after this step.
    events: Vec<Event>,
}

impl Containers {
    pub fn new() -> io::Result<Containers> {
        Ok(Containers {
            all: Vec::new(),
            execs: Vec::new(),
            forwards: Vec::new(),
            awaited: Vec::new(),
            waiters: Vec::new(),
            next_seq: 1,
            next_exec: 1,
            null: File::open("/dev/null")?,
            kill_patience: deadlines::KILL,
            patience: None,
            stopping: false,
            events: Vec::new(),
        })
    }

    pub fn add(&mut self, spec: ContainerSpec, log: Option<LogFile>, adder: Option<ClientId>) {
        let mut container = Container::new(spec, log, Instant::now());
        container.starter = adder;
        self.all.push(container);
    }

    /// Adds the container that this process represents, in [`Phase::Created`] or to be started at a time.
    pub fn add_own(&mut self, spec: ContainerSpec, phase: Phase) {
        self.all.push(Container::own(spec, phase));
    }

    pub fn find(&self, name: &str) -> Option<&Container> {
        self.all.iter().find(|container| container.spec.name() == name)
    }

    fn find_mut(&mut self, name: &str) -> Option<&mut Container> {
        self.all.iter_mut().find(|container| container.spec.name() == name)
    }

    /// Starts a container in [`Phase::Created`]. `client` gets the result.
    pub fn start(&mut self, name: &str, client: ClientId) -> Option<Reply> {
        match self.find_mut(name) {
            Some(container) if container.phase == Phase::Created => {
                (container.phase, container.starter) = (Phase::Waiting(Instant::now()), Some(client));
                None
            }
            Some(container) if container.phase == Phase::Ended => {
                Some(refused("cannot start a container that has stopped".to_owned()))
            }
            Some(_) => Some(refused("cannot start an already running container".to_owned())),
            None => Some(unknown(name)),
        }
    }

    /// Handles the agent's frames and takes every step that is due.
    pub fn step(&mut self, guest: &mut Guest<'_>, now: Instant) -> Result<Vec<Event>> {
        self.take_replies(guest, now)?;
        while let Some(event) = guest.link.event() {
            self.take_event(guest, event)?;
        }
        self.execs.iter_mut().try_for_each(|exec| exec.process.advance(guest))?;
        self.advance_execs(guest);
        self.advance_forwards(guest);
        self.advance_containers(guest, now)?;
        self.start_containers(guest, now)?;
        self.dismiss();
        self.find_unkilled(now);
        guest.link.flush()?;
        Ok(std::mem::take(&mut self.events))
    }

    /// Returns when [`step`](Self::step) has work without an event.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        // A start that is due and waits for another is considered again when that one is answered.
        let starting = self.all.iter().any(|container| container.phase == Phase::Starting);
        let starts = self.all.iter().filter_map(|container| match container.phase {
            Phase::Waiting(at) if !starting || at > now => Some(at),
            _ => None,
        });
        // A container that is being started is killed afterwards.
        let asked = |container: &&Container| {
            self.lives(container) && container.phase != Phase::Starting && container.killed.is_none()
        };
        let killing =
            self.patience.filter(|_| self.stopping && self.all.iter().any(|container| asked(&container)));
        let killed = self.all.iter().filter(|container| self.lives(container));
        starts.chain(killing).chain(killed.filter_map(|container| container.killed)).min()
    }

    /// Returns the oldest stream for which the guest has reported more output than has arrived.
    pub fn owed(&self, guest: &Guest<'_>) -> Option<u64> {
        let all = self.all.iter().filter_map(|container| container.owed(guest));
        let execs = self.execs.iter().map(|exec| &exec.process);
        let others = execs.chain(self.forwards.iter().map(|forward| &forward.process));
        all.chain(others.filter_map(|process| process.owed(guest))).min()
    }

    /// Suspends the deadlines of execs in paused containers: their processes run when the container is resumed.
    pub fn excuse_paused(&self, guest: &mut Guest<'_>) {
        for (command, awaited) in &self.awaited {
            let Awaited::Exec(process) = awaited else { continue };
            let exec = self.execs.iter().find(|exec| exec.process.name == *process);
            let container = exec.and_then(|exec| self.find(&exec.process.container));
            guest.link.excuse(*command, container.is_some_and(|container| container.paused));
        }
    }

    /// Whether the container that this process represents has ended, or without one every container for good. An empty
    /// pod is over only once it is being stopped.
    pub fn is_over(&self) -> bool {
        if let Some(own) = self.own() {
            return own.phase == Phase::Ended;
        }
        (self.stopping || !self.all.is_empty())
            && self.all.iter().all(|container| container.phase == Phase::Ended)
    }

    /// Whether every container has been started.
    pub fn is_started(&self) -> bool {
        let settled = |container: &Container| matches!(container.phase, Phase::Created | Phase::Ended);
        self.all.iter().all(|container| container.has_run || settled(container))
    }

    /// The pod's exit code: that of the container that this process represents, or the first nonzero one, in the podfile's
    /// order.
    pub fn exit_code(&self) -> u8 {
        if let Some(own) = self.own() {
            return own.exit.unwrap_or(0);
        }
        let mut codes = self.all.iter().filter_map(|container| container.exit);
        codes.find(|code| *code != 0).unwrap_or(0)
    }

    pub fn resize(&mut self, guest: &mut Guest<'_>, name: &str, size: ConsoleSize) -> Result<()> {
        self.find_mut(name).map_or(Ok(()), |container| container.resize(guest, size))
    }

    /// Returns the clients that wait for an exec process of container `name`.
    pub fn clients(&self, name: &str) -> impl Iterator<Item = ClientId> {
        self.execs.iter().filter(move |exec| exec.process.container == name).filter_map(|exec| exec.client)
    }

    /// Removes a container. With `force`, a running container is killed first.
    pub fn remove(&mut self, name: &str, force: bool, client: ClientId) -> Option<Reply> {
        let Some(container) = self.find_mut(name) else { return Some(unknown(name)) };
        if container.phase != Phase::Ended && !force {
            return Some(refused(format!("container {name:?} is running")));
        }
        container.leaves = true;
        container.stop_stage = container.stop_stage.max(StopStage::Requested);
        container.removers.push(client);
        None
    }

    /// Tells `client` when the container has ended and will not be restarted.
    pub fn wait(&mut self, name: &str, client: ClientId) -> Option<Reply> {
        match self.find(name) {
            None => Some(unknown(name)),
            Some(container) if container.phase == Phase::Ended => {
                Some(Reply::Exited(container.exit.unwrap_or(0)))
            }
            Some(_) => {
                self.waiters.push((name.to_owned(), client));
                None
            }
        }
    }

    /// Asks the agent for the resource usage of every container.
    pub fn stats(&mut self, guest: &mut Guest<'_>, client: ClientId) -> Result<Option<Reply>> {
        self.ask(guest, Code::Stats, String::new(), Awaited::Stats(client))
    }

    /// Asks the agent for the processes of every container.
    pub fn processes(&mut self, guest: &mut Guest<'_>, client: ClientId) -> Result<Option<Reply>> {
        self.ask(guest, Code::Processes, String::new(), Awaited::Processes(client))
    }

    /// Pauses or resumes the container `name`, or every container if it is empty.
    pub fn pause(
        &mut self,
        guest: &mut Guest<'_>,
        client: ClientId,
        name: String,
        paused: bool,
    ) -> Result<Option<Reply>> {
        if !self.all.iter().any(|it| it.phase == Phase::Running && it.is_meant(&name)) {
            return Ok(Some(self.not_running(&name)));
        }
        let code = if paused { Code::Pause } else { Code::Resume };
        self.ask(guest, code, name.clone(), Awaited::Pause { client, container: name, paused })
    }

    fn ask(
        &mut self,
        guest: &mut Guest<'_>,
        code: Code,
        container: String,
        awaited: Awaited,
    ) -> Result<Option<Reply>> {
        let is_pending = |awaited: &Awaited| {
            matches!(
                awaited,
                Awaited::Stats(_) | Awaited::Processes(_) | Awaited::Update(_) | Awaited::Pause { .. }
            )
        };
        if self.awaited.iter().filter(|(_, awaited)| is_pending(awaited)).count() >= QUESTIONS_MAX {
            let why = format!("limit of {QUESTIONS_MAX} pending requests to the guest reached");
            return Ok(Some(refused(why)));
        }
        let command = guest.link.send(code, "ask the guest", &ContainerName { container })?;
        self.awaited.push((command, awaited));
        Ok(None)
    }

    /// Updates a container's limits.
    pub fn update(
        &mut self,
        guest: &mut Guest<'_>,
        client: ClientId,
        container: String,
        cgroup: BTreeMap<String, String>,
    ) -> Result<Option<Reply>> {
        if self.find(&container).is_none_or(|it| it.phase != Phase::Running) {
            return Ok(Some(self.not_running(&container)));
        }
        let limits = ContainerLimits { container, cgroup };
        let command = guest.link.send(Code::Update, "update the container", &limits)?;
        self.awaited.push((command, Awaited::Update(client)));
        Ok(None)
    }

    /// Starts an exec process with the client's descriptors.
    pub fn exec(
        &mut self,
        guest: &mut Guest<'_>,
        client: ClientId,
        request: &ExecRequest,
        fds: &[OwnedFd],
    ) -> Result<Option<Reply>> {
        let Some(container) = self.find(&request.container) else {
            return Ok(Some(unknown(&request.container)));
        };
        if container.phase != Phase::Running || container.paused && !request.ignore_paused {
            return Ok(Some(self.not_running(&request.container)));
        }
        if self.execs.iter().any(|exec| exec.client == Some(client)) {
            return Ok(Some(refused("exec: the connection already has a process".to_owned())));
        }
        if request.changes.args.is_empty() && request.process.is_none() {
            return Ok(Some(refused("exec: no program".to_owned())));
        }
        if fds.len() != if request.terminal { 2 } else { 3 } {
            return Ok(Some(refused("exec: the client's descriptors are missing".to_owned())));
        }
        if self.execs.len() >= EXECS_MAX {
            return Ok(Some(refused(format!("exec: limit of {EXECS_MAX} processes reached"))));
        }
        let name = format!("exec-{}", self.next_exec);
        let process = match exec::planned(&container.spec, &name, request) {
            Ok(process) => process,
            Err(why) => return Ok(Some(refused(format!("exec: {why}")))),
        };
        let program = process.args.first().filter(|_| request.for_engine).cloned();
        let streams = process::client_streams(self.next_seq, fds);
        match Exec::start(guest, client, &request.container, process, &streams) {
            Ok((mut exec, command)) => {
                exec.program = program;
                self.awaited.push((command, Awaited::Exec(exec.process.name.clone())));
                self.execs.push(exec);
                self.next_exec += 1;
                self.next_seq += 2;
                Ok(None)
            }
            Err(StartError::Host(error) | StartError::Terminal(error)) => {
                Ok(Some(refused(format!("exec: open the client's streams: {error}"))))
            }
            Err(StartError::Link(error)) => Err(error),
        }
    }

    fn exec_of(&mut self, client: ClientId) -> Option<&mut Exec> {
        self.execs.iter_mut().find(|exec| exec.client == Some(client))
    }

    /// Handles the end of a client's connection.
    pub fn forget(&mut self, guest: &mut Guest<'_>, client: ClientId) -> Result<()> {
        self.waiters.retain(|(_, waiter)| *waiter != client);
        if let Some(member) = self.member_of(client) {
            member.lose_client();
        }
        self.exec_of(client).map_or(Ok(()), |exec| exec.lose_client(guest))
    }

    fn advance_execs(&mut self, guest: &mut Guest<'_>) {
        let mut index = 0;
        while let Some(exec) = self.execs.get(index) {
            if !exec.is_delivered(guest) {
                index += 1;
                continue;
            }
            let mut exec = self.execs.remove(index);
            let failed = exec.process.close(guest);
            let process::ProcessPhase::Draining(exit) = exec.process.phase else { continue };
            let reply = match failed {
                Some((name, error)) => refused(format!("write {name}: {error}")),
                None => Reply::Exited(exit::of_exit(&exit)),
            };
            self.events.extend(exec.client.map(|client| Event::Last(client, reply)));
            self.events.push(Event::Changed);
        }
    }

    fn start_containers(&mut self, guest: &mut Guest<'_>, now: Instant) -> Result<()> {
        let mut starting = self.all.iter().filter(|container| container.phase == Phase::Starting).count();
        // Containers of the same image start one after the other: each creates what the image lacks, and the guest's
        // mounts of the share see each other's files with a delay.
        let root = |container: &Container| container.spec.plan.binds.first().map(|bind| bind.host.clone());
        let is_starting = |container: &&Container| container.phase == Phase::Starting;
        let mut roots: Vec<_> = self.all.iter().filter(is_starting).filter_map(root).collect();
        for container in &mut self.all {
            let due = matches!(container.phase, Phase::Waiting(at) if at <= now);
            let root = root(container);
            if !due || starting >= STARTS_MAX || root.as_ref().is_some_and(|root| roots.contains(root)) {
                continue;
            }
            roots.extend(root);
            match container.start(guest, self.next_seq, &self.null) {
                Ok(command) => {
                    self.next_seq += 2;
                    starting += 1;
                    self.awaited.push((command, Awaited::Start(container.spec.name().to_owned())));
                }
                Err(StartError::Link(error)) => return Err(error),
                Err(StartError::Host(error) | StartError::Terminal(error)) => {
                    start_failed(
                        guest,
                        container,
                        exit::FAILED,
                        format!("open its output: {error}"),
                        &mut self.events,
                    );
                }
            }
        }
        Ok(())
    }

    /// Tells clients about containers that have ended, and drops containers that are to be removed.
    fn dismiss(&mut self) {
        for container in self.all.iter().filter(|container| container.phase == Phase::Ended) {
            let reply = Reply::Exited(container.exit.unwrap_or(0));
            let told = self.waiters.extract_if(.., |(name, _)| *name == container.spec.name());
            self.events.extend(told.map(|(_, client)| Event::Answer(client, reply.clone())));
        }
        let leaves = |container: &mut Container| {
            (container.leaves || container.member().is_some()) && container.phase == Phase::Ended
        };
        for mut container in self.all.extract_if(.., leaves) {
            let farewell = container.farewell();
            // The files are not used any more when the clients are told.
            self.events.push(Event::Left(Box::new(container.spec)));
            let removers = container.removers.iter().map(|client| Event::Answer(*client, Reply::Done));
            self.events.extend(removers.chain(farewell));
        }
    }

    fn not_running(&self, name: &str) -> Reply {
        match self.find(name) {
            // Engines recognize this text as "no process to signal".
            Some(container) if container.is_represented() => refused("container not running".to_owned()),
            Some(container) => {
                refused(format!("container {name:?} is {}, not running", container.state().status))
            }
            None if name.is_empty() => refused("no container is running".to_owned()),
            None => unknown(name),
        }
    }
}

/// Handles a failed start. If the container never ran, its pod or the client that added it gets the error.
fn start_failed(
    guest: &mut Guest<'_>,
    container: &mut Container,
    code: u8,
    message: String,
    events: &mut Vec<Event>,
) {
    container.failed(guest, code, message.clone());
    let message = match container.is_represented() {
        true => message,
        false => format!("start container {:?}: {message}", container.spec.name()),
    };
    match container.starter.take() {
        Some(adder) => {
            container.leaves = !container.is_represented();
            events.push(Event::Answer(adder, Reply::Failed { code, message }));
        }
        None if container.has_run => log::warn!("{message}"),
        None => events.push(Event::StartFailed { code, message }),
    }
}

pub fn refused(message: String) -> Reply {
    Reply::Failed { code: exit::FAILED, message }
}

fn unknown(name: &str) -> Reply {
    refused(format!("the pod has no container {name:?}"))
}

#[cfg(test)]
mod tests;
