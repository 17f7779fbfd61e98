//! The containers of a pod and their further processes: what the agent is asked for them, what it answers, and what comes of
//! it. Descriptors of clients, the machine and the share are the supervisor's; what concerns it is returned.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use agent_proto::command::Code;
use agent_proto::payload::{ContainerLimits, ContainerName};
use link::{CommandId, LinkError};
use oci::spec::ConsoleSize;

use super::exec::{self, Exec};
use super::log::LogFile;
use super::member::{Ending, Member, Phase, StartError};
use super::plan::ContainerSpec;
use super::{Asker, Guest};
use crate::control::{ExecRequest, Reply};
use crate::{deadlines, exit};
pub use happened::Happened;

mod ending;
mod happened;
mod replies;

/// The most containers that are started at once: each start is a fork of the agent's, and a command without its reply.
const STARTS_MAX: usize = 16;
/// The most further processes at a time.
const EXECS_MAX: usize = 256;
/// The most questions about the guest that wait for their answers.
const QUESTIONS_MAX: usize = 16;

/// Whose reply a command's is.
#[derive(Debug)]
enum Awaited {
    Start(String),
    Clear(String),
    Exec(String),
    Stats(Asker),
    Processes(Asker),
    Update(Asker),
    Pause { asker: Asker, container: String, paused: bool },
}

/// This module's result: what fails it is the link.
pub type Result<T, E = LinkError> = std::result::Result<T, E>;

/// The containers and their further processes.
#[derive(Debug)]
pub struct Crew {
    /// The containers, in the podfile's order.
    pub members: Vec<Member>,
    execs: Vec<Exec>,
    awaited: Vec<(CommandId, Awaited)>,
    /// Who waits for a container's end.
    waiters: Vec<(String, Asker)>,
    next_seq: u64,
    next_exec: u64,
    null: File,
    /// How long a container may take to end after SIGKILL.
    pub kill_patience: Duration,
    /// When containers that were asked to end are killed.
    patience: Option<Instant>,
    stopping: bool,
}

impl Crew {
    /// Returns a pod's crew without any container.
    pub fn new() -> io::Result<Crew> {
        Ok(Crew {
            members: Vec::new(),
            execs: Vec::new(),
            awaited: Vec::new(),
            waiters: Vec::new(),
            next_seq: 1,
            next_exec: 1,
            null: File::open("/dev/null")?,
            kill_patience: deadlines::KILL,
            patience: None,
            stopping: false,
        })
    }

    /// Adds a container that is to be started.
    pub fn add(&mut self, spec: ContainerSpec, log: Option<LogFile>, adder: Option<Asker>) {
        let mut member = Member::new(spec, log, Instant::now());
        member.adder = adder;
        self.members.push(member);
    }

    /// Adds the container that this process stands for.
    pub fn add_standing(&mut self, spec: ContainerSpec) {
        self.members.push(Member::standing(spec));
    }

    /// Starts a container that waits for it; `asker` is told how it went.
    pub fn start(&mut self, name: &str, asker: Asker) -> Option<Reply> {
        match self.members.iter_mut().find(|member| member.spec.name() == name) {
            Some(member) if member.phase == Phase::Created => {
                (member.phase, member.adder) = (Phase::Waiting(Instant::now()), Some(asker));
                None
            }
            Some(member) if member.phase == Phase::Ended => {
                Some(refused("cannot start a container that has stopped".to_owned()))
            }
            Some(_) => Some(refused("cannot start an already running container".to_owned())),
            None => Some(unknown(name)),
        }
    }

    /// Takes what has come from the agent, and does what is due.
    pub fn step(&mut self, guest: &mut Guest<'_>, now: Instant) -> Result<Vec<Happened>> {
        let mut happened = Vec::new();
        self.take_replies(guest, now, &mut happened)?;
        while let Some(event) = guest.link.event() {
            self.take_event(guest, event, &mut happened)?;
        }
        self.advance_execs(guest, &mut happened);
        self.advance_members(guest, now, &mut happened)?;
        self.start_members(guest, now, &mut happened)?;
        self.dismiss(&mut happened);
        self.find_unkilled(now, &mut happened);
        guest.link.flush()?;
        Ok(happened)
    }

    /// When [`step`](Self::step) has something to do though nothing comes.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        // What is due and waits for another one's start is looked at again when that is answered.
        let starting = self.members.iter().any(|member| member.phase == Phase::Starting);
        let starts = self.members.iter().filter_map(|member| match member.phase {
            Phase::Waiting(at) if !starting || at > now => Some(at),
            _ => None,
        });
        // One that is being started is killed when it has been.
        let asked = |member: &&Member| {
            self.lives(member) && member.phase != Phase::Starting && member.killed.is_none()
        };
        let killing =
            self.patience.filter(|_| self.stopping && self.members.iter().any(|member| asked(&member)));
        let killed = self.members.iter().filter(|member| self.lives(member));
        starts.chain(killing).chain(killed.filter_map(|member| member.killed)).min()
    }

    /// Returns the oldest stream of which the guest owes output that it says it has sent.
    pub fn owed(&self, guest: &Guest<'_>) -> Option<u64> {
        let members = self.members.iter().filter_map(|member| member.owed(guest));
        members.chain(self.execs.iter().filter_map(|exec| exec.owed(guest))).min()
    }

    /// A process that is started in a paused container runs when that goes on: until then the agent owes nothing for it.
    pub fn excuse_paused(&self, guest: &mut Guest<'_>) {
        for (command, awaited) in &self.awaited {
            let Awaited::Exec(process) = awaited else { continue };
            let exec = self.execs.iter().find(|exec| exec.process == *process);
            let paused = |exec: &Exec| {
                self.members.iter().any(|member| member.paused && member.spec.name() == exec.container)
            };
            guest.link.excuse(*command, exec.is_some_and(paused));
        }
    }

    /// Whether there are containers, or were to be, and every one has ended for good.
    pub fn is_over(&self) -> bool {
        (self.stopping || !self.members.is_empty())
            && self.members.iter().all(|member| member.phase == Phase::Ended)
    }

    /// Whether every container has been started.
    pub fn is_started(&self) -> bool {
        let settled = |member: &Member| matches!(member.phase, Phase::Created | Phase::Ended);
        self.members.iter().all(|member| member.has_run || settled(member))
    }

    /// The pod's exit code: that of the first container, in the podfile's order, that did not end with 0.
    pub fn exit_code(&self) -> u8 {
        let mut codes = self.members.iter().filter_map(|member| member.exit);
        codes.find(|code| *code != 0).unwrap_or(0)
    }

    /// Gives a container's terminal another size.
    pub fn resize(&self, guest: &mut Guest<'_>, name: &str, size: ConsoleSize) -> Result<()> {
        let mut running = self.members.iter().filter(|member| member.phase == Phase::Running);
        let meant =
            running.find(|member| member.spec.name() == name && member.spec.plan.container.process.terminal);
        meant.map_or(Ok(()), |member| member.resize(guest, size))
    }

    /// Who waits for a further process of theirs.
    pub fn askers(&self) -> impl Iterator<Item = Asker> {
        self.execs.iter().filter_map(|exec| exec.client)
    }

    /// Removes a container, which ends first if it runs and `force` says so.
    pub fn remove(&mut self, name: &str, force: bool, asker: Asker) -> Option<Reply> {
        let Some(member) = self.members.iter_mut().find(|member| member.spec.name() == name) else {
            return Some(unknown(name));
        };
        if member.phase != Phase::Ended && !force {
            return Some(refused(format!("container {name:?} is running")));
        }
        member.leaves = true;
        member.ending = member.ending.max(Ending::Wanted);
        member.removers.push(asker);
        None
    }

    /// Tells `asker` when the container will not run again.
    pub fn wait(&mut self, name: &str, asker: Asker) -> Option<Reply> {
        match self.members.iter().find(|member| member.spec.name() == name) {
            None => Some(unknown(name)),
            Some(member) if member.phase == Phase::Ended => Some(Reply::Exited(member.exit.unwrap_or(0))),
            Some(_) => {
                self.waiters.push((name.to_owned(), asker));
                None
            }
        }
    }

    /// Asks about every container, or has the container `name` pause or go on.
    pub fn ask(&mut self, guest: &mut Guest<'_>, asker: Asker, question: &Question) -> Result<Option<Reply>> {
        let asked = |what: &&(CommandId, Awaited)| {
            matches!(
                what.1,
                Awaited::Stats(_) | Awaited::Processes(_) | Awaited::Update(_) | Awaited::Pause { .. }
            )
        };
        if self.awaited.iter().filter(asked).count() >= QUESTIONS_MAX {
            return Ok(Some(refused(format!("{QUESTIONS_MAX} questions wait for the guest's answer"))));
        }
        let container = ContainerName { container: question.container().to_owned() };
        let (code, awaited) = match question {
            Question::Stats => (Code::Stats, Awaited::Stats(asker)),
            Question::Processes => (Code::Processes, Awaited::Processes(asker)),
            Question::Pause { container, paused } => {
                let known = |member: &Member| member.phase == Phase::Running && is_meant(container, member);
                if !self.members.iter().any(known) {
                    return Ok(Some(self.not_running(container)));
                }
                let code = if *paused { Code::Pause } else { Code::Resume };
                (code, Awaited::Pause { asker, container: container.clone(), paused: *paused })
            }
        };
        let command = guest.link.send(code, "ask the guest", &container)?;
        self.awaited.push((command, awaited));
        Ok(None)
    }

    /// Gives a container other limits.
    pub fn update(
        &mut self,
        guest: &mut Guest<'_>,
        asker: Asker,
        container: String,
        cgroup: BTreeMap<String, String>,
    ) -> Result<Option<Reply>> {
        let known = |member: &Member| member.phase == Phase::Running && member.spec.name() == container;
        if !self.members.iter().any(known) {
            return Ok(Some(self.not_running(&container)));
        }
        let limits = ContainerLimits { container, cgroup };
        let command = guest.link.send(Code::Update, "update the container", &limits)?;
        self.awaited.push((command, Awaited::Update(asker)));
        Ok(None)
    }

    /// Starts a further process over the client's descriptors.
    pub fn exec(
        &mut self,
        guest: &mut Guest<'_>,
        client: Asker,
        request: &ExecRequest,
        fds: &[OwnedFd],
    ) -> Result<Option<Reply>> {
        let found = self.members.iter().find(|member| member.spec.name() == request.container);
        let Some(member) = found else { return Ok(Some(unknown(&request.container))) };
        if member.phase != Phase::Running || member.paused && !request.ignore_paused {
            return Ok(Some(self.not_running(&request.container)));
        }
        if self.execs.iter().any(|exec| exec.client == Some(client)) {
            return Ok(Some(refused("exec: the connection has a process already".to_owned())));
        }
        if request.args.is_empty() && request.process.is_none() {
            return Ok(Some(refused("exec: no program".to_owned())));
        }
        if fds.len() != if request.terminal { 2 } else { 3 } {
            return Ok(Some(refused("exec: the client's descriptors are not there".to_owned())));
        }
        if self.execs.len() >= EXECS_MAX {
            return Ok(Some(refused(format!("exec: {EXECS_MAX} processes are the most"))));
        }
        let name = format!("exec-{}", self.next_exec);
        let process = match exec::wanted(&member.spec.plan.container, &name, request) {
            Ok(process) => process,
            Err(why) => return Ok(Some(refused(format!("exec: {why}")))),
        };
        let program = process.args.first().filter(|_| request.process.is_some()).cloned();
        let seq = self.next_seq;
        match Exec::start(guest, client, &request.container, process, (seq, fds)) {
            Ok((mut exec, command)) => {
                exec.program = program;
                self.awaited.push((command, Awaited::Exec(exec.process.clone())));
                self.execs.push(exec);
                self.next_exec += 1;
                self.next_seq += 2;
                Ok(None)
            }
            Err(StartError::Host(error)) => {
                Ok(Some(refused(format!("exec: open the client's streams: {error}"))))
            }
            Err(StartError::Link(error)) => Err(error),
        }
    }

    /// A client's process.
    pub fn exec_of(&mut self, client: Asker) -> Option<&mut Exec> {
        self.execs.iter_mut().find(|exec| exec.client == Some(client))
    }

    /// A client is gone.
    pub fn forget(&mut self, guest: &mut Guest<'_>, client: Asker) -> Result<()> {
        self.waiters.retain(|(_, waiter)| *waiter != client);
        self.exec_of(client).map_or(Ok(()), |exec| exec.abandon(guest))
    }

    fn advance_execs(&mut self, guest: &mut Guest<'_>, happened: &mut Vec<Happened>) {
        let mut index = 0;
        while let Some(exec) = self.execs.get(index) {
            if !exec.is_delivered(guest) {
                index += 1;
                continue;
            }
            let mut exec = self.execs.remove(index);
            let failed = exec.close(guest);
            let exec::Phase::Draining(exit) = exec.phase else { continue };
            let reply = match failed {
                Some((name, error)) => refused(format!("write {name}: {error}")),
                None => Reply::Exited(exit::of_exit(&exit)),
            };
            happened.extend(exec.client.map(|client| Happened::Last(client, reply)));
            happened.push(Happened::Changed);
        }
    }

    fn start_members(
        &mut self,
        guest: &mut Guest<'_>,
        now: Instant,
        happened: &mut Vec<Happened>,
    ) -> Result<()> {
        let mut starting = self.members.iter().filter(|member| member.phase == Phase::Starting).count();
        // One after the other where an image has several: each makes what the image lacks, and the guest's views of it are
        // apart for a while.
        let root = |member: &Member| member.spec.plan.binds.first().map(|bind| bind.host.clone());
        let is_starting = |member: &&Member| member.phase == Phase::Starting;
        let mut roots: Vec<_> = self.members.iter().filter(is_starting).filter_map(root).collect();
        for member in &mut self.members {
            let due = matches!(member.phase, Phase::Waiting(at) if at <= now);
            let root = root(member);
            if !due || starting >= STARTS_MAX || root.as_ref().is_some_and(|root| roots.contains(root)) {
                continue;
            }
            roots.extend(root);
            match member.start(guest, self.next_seq, &self.null) {
                Ok(command) => {
                    self.next_seq += 2;
                    starting += 1;
                    self.awaited.push((command, Awaited::Start(member.spec.name().to_owned())));
                }
                Err(StartError::Link(error)) => return Err(error),
                Err(StartError::Host(error)) => {
                    start_failed(guest, member, exit::FAILED, format!("open its output: {error}"), happened);
                }
            }
        }
        Ok(())
    }

    /// Tells who waits for those that have ended, and lets go of those that leave.
    fn dismiss(&mut self, happened: &mut Vec<Happened>) {
        for member in self.members.iter().filter(|member| member.phase == Phase::Ended) {
            let reply = Reply::Exited(member.exit.unwrap_or(0));
            let told = self.waiters.extract_if(.., |(name, _)| *name == member.spec.name());
            happened.extend(told.map(|(_, asker)| Happened::Answer(asker, reply.clone())));
        }
        let leaves = |member: &mut Member| member.leaves && member.phase == Phase::Ended;
        for member in self.members.extract_if(.., leaves) {
            happened.extend(member.removers.iter().map(|asker| Happened::Answer(*asker, Reply::Done)));
            happened.push(Happened::Left(Box::new(member.spec)));
        }
    }

    fn not_running(&self, name: &str) -> Reply {
        match self.members.iter().find(|member| member.spec.name() == name) {
            // The words by which engines know that there was nobody to signal.
            Some(member) if member.stands => refused("container not running".to_owned()),
            Some(member) => refused(format!("container {name:?} is {}, not running", member.state().status)),
            None if name.is_empty() => refused("no container is running".to_owned()),
            None => unknown(name),
        }
    }
}

/// What is asked about the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// What containers use.
    Stats,
    /// Their processes.
    Processes,
    /// They stop where they are, or go on.
    Pause {
        /// Which; every one where it is empty.
        container: String,
        /// They stop.
        paused: bool,
    },
}

impl Question {
    fn container(&self) -> &str {
        if let Question::Pause { container, .. } = self { container } else { "" }
    }
}

fn is_meant(name: &str, member: &Member) -> bool {
    name.is_empty() || member.spec.name() == name
}

/// A container that never ran fails its pod, or whoever added it; one that had run has ended.
fn start_failed(
    guest: &mut Guest<'_>,
    member: &mut Member,
    code: u8,
    message: String,
    happened: &mut Vec<Happened>,
) {
    member.failed(guest, code, message.clone());
    let message = match member.stands {
        true => message,
        false => format!("start container {:?}: {message}", member.spec.name()),
    };
    match member.adder.take() {
        Some(adder) => {
            member.leaves = !member.stands;
            happened.push(Happened::Answer(adder, Reply::Failed { code, message }));
        }
        None if member.has_run => log::warn!("{message}"),
        None => happened.push(Happened::StartFailed { code, message }),
    }
}

/// Returns the answer that says why something is not done.
pub fn refused(message: String) -> Reply {
    Reply::Failed { code: exit::FAILED, message }
}

fn unknown(name: &str) -> Reply {
    refused(format!("the pod has no container {name:?}"))
}

#[cfg(test)]
mod tests;
