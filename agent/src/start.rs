//! Starting processes: the init process of NEWCONTAINER and the exec processes of EXECCMD.

use alloc::format;
use alloc::vec::Vec;

use agent_proto::command::Code;
use agent_proto::payload::{self, ErrorCode, ExecCommand};
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use rustix::thread::ThreadNameSpaceType;

use crate::container::setup::Setup;
use crate::container::{self, Container, has_own_pids, namespaces, pod_shm};
use crate::error::{Error, START_FAILED, Step};
use crate::pod::{self, Pod};
use crate::process::child::{self, Child, ChildContainer};
use crate::process::report::{self, Report};
use crate::process::{Pending, Pipes, Process, pipes};
use crate::state::{EventSource, Setting, State, watch};
use crate::sys::{self, Fork};

/// Limit of processes, running or not yet reported.
const PROCESSES_MAX: usize = 1024;
/// Limit of containers, running or not yet removed.
const CONTAINERS_MAX: usize = 256;

/// A process that was forked.
pub(crate) struct Forked {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

/// The command that starts a process, and is answered when the program runs.
#[derive(Clone, Copy)]
pub(crate) struct StartCommand {
    pub(crate) id: u32,
    pub(crate) code: Code,
}

impl State {
    /// Stores a pod that has started, and starts the first of STARTPOD's containers. Returns true if there are none.
    pub(crate) fn start_containers(
        &mut self,
        id: u32,
        pod: Pod,
        containers: Vec<payload::Container>,
    ) -> Result<bool, Error> {
        self.pod = Some(pod);
        self.to_start = containers.into();
        self.start_next(id)
    }

    /// Starts the next container of STARTPOD. Returns true if all have been started.
    fn start_next(&mut self, id: u32) -> Result<bool, Error> {
        let Some(spec) = self.to_start.pop_front() else { return Ok(true) };
        self.start_container(StartCommand { id, code: Code::StartPod }, &spec).map(|()| false)
    }

    /// Starts a container. The command is answered when its program runs.
    pub(crate) fn start_container(
        &mut self,
        command: StartCommand,
        spec: &payload::Container,
    ) -> Result<(), Error> {
        container::check(spec)?;
        self.remove_exited(&spec.id);
        if self.containers.iter().any(|container| container.id == spec.id) {
            return Err(Error::new(ErrorCode::Exists, format!("container {} already exists", spec.id)));
        }
        if self.containers.len() >= CONTAINERS_MAX {
            return Err(Error::failed(format!("limit of {CONTAINERS_MAX} containers reached")));
        }
        self.check_streams(&spec.process)?;
        let joined = self.joined(spec)?;
        let isolated = self.setting == Setting::Guest;
        if isolated && self.pod.is_some() {
            self.start_sockets(spec)?;
        }
        let pod = self.pod.as_mut().ok_or_else(no_pod)?;
        if isolated && spec.initialize {
            pod.write_hostname()?;
        }
        if isolated && let Some(shm) = pod_shm(spec) {
            pod.mount_shm(&shm.data)?;
        }
        let mut container = Container::new(spec, isolated)?;
        let flags = if isolated { namespaces::flags(spec.oci.as_ref()) } else { 0 };
        let setup = Setup { spec, has_resolv_conf: pod.has_resolv_conf, joined: &joined };
        let new = if isolated { ChildContainer::New(setup) } else { ChildContainer::None };
        let hostname = pod.hostname.clone();
        let (ends, child) = prepare(&spec.process, new, &hostname)?;
        let fork = || fork(flags, container.cgroup(), child);
        let pids = joined.iter().find(|(kind, _)| *kind == ThreadNameSpaceType::PROCESS_ID);
        let forked = match pids {
            _ if !isolated || has_own_pids(spec) => fork(),
            Some((_, init)) => pod::fork_with_pids(init.as_fd(), pod::agent_pidfd()?.as_fd(), fork),
            None => pod.fork_with_shared_pids(fork),
        }?;
        let key = self.add(&spec.id, &spec.process, forked, ends, command)?;
        container.init = Some(key);
        if let Some(kills) = &container.oom_kills {
            let changed = EventFlags::PRI | EventFlags::ET;
            watch(&self.epoll, kills.as_fd(), 0, EventSource::OomKill, changed)?;
        }
        self.containers.push(container);
        Ok(())
    }

    /// Returns the pidfds of the init processes whose namespaces a new container is to use, by the kind of namespace.
    fn joined(&self, spec: &payload::Container) -> Result<Vec<(ThreadNameSpaceType, OwnedFd)>, Error> {
        let joined = spec.oci.iter().flat_map(|oci| &oci.joined);
        let opened = joined.map(|(kind, name)| {
            let kind = namespaces::joinable(kind).ok_or_else(|| Error::not_found("namespace", kind))?;
            let (pid, _) = self.init_of(name)?;
            Ok((kind, pidfd_open(pid, PidfdFlags::empty()).step("open", "pidfd")?))
        });
        opened.collect()
    }

    /// Returns the init process of a container. Until it runs its program, the container is not yet isolated from the
    /// agent's namespaces.
    pub(crate) fn init_of(&self, name: &str) -> Result<(Pid, BorrowedFd<'_>), Error> {
        let init = self.container(name)?.init.and_then(|key| self.processes.get(&key));
        let init = init.filter(|init| init.pending.is_none());
        init.and_then(|init| Some((init.pid, init.pidfd()?)))
            .ok_or_else(|| Error::new(ErrorCode::NotFound, format!("container {name} is not running")))
    }

    /// Removes exited containers for API 4244, whose hosts rely on that: the container with this name, or at the limit
    /// all of them. They are kept until then, so that late commands still find them. In the extended form the host
    /// removes containers.
    fn remove_exited(&mut self, id: &str) {
        if self.control.is_extended() {
            return;
        }
        let all = self.containers.len() >= CONTAINERS_MAX;
        let processes = &self.processes;
        let runs =
            |id: &str| processes.values().any(|process| process.container == id && process.pidfd.is_some());
        self.containers.retain(|container| runs(&container.id) || !(all || container.id == id));
    }

    /// Starts an exec process of a container. The command is answered when its program runs.
    pub(crate) fn start_exec(&mut self, id: u32, command: &ExecCommand) -> Result<(), Error> {
        let (spec, started_by) = (&command.process, StartCommand { id, code: Code::ExecCmd });
        self.check_new(&command.container, spec)?;
        let hostname = self.pod.as_ref().ok_or_else(no_pod)?.hostname.clone();
        if command.container == container::GUEST {
            // The guest itself, in which API 4244's hosts run their tools.
            let (ends, child) = prepare(spec, ChildContainer::None, &hostname)?;
            let forked = fork(0, None, child)?;
            return self.add(container::GUEST, spec, forked, ends, started_by).map(drop);
        }
        let container = self.container(&command.container)?;
        let (pid, init) = self.init_of(&command.container)?;
        let path = spec.oci.as_ref().map_or("", |oci| &oci.cgroup);
        let exec_cgroup = container.exec_cgroup(path, pid)?;
        let cgroup = exec_cgroup.as_ref().map(AsFd::as_fd).or(container.cgroup());
        let isolated = self.setting == Setting::Guest;
        let maps = container.maps.as_ref();
        let existing = if isolated { ChildContainer::Existing(init, maps) } else { ChildContainer::None };
        let (ends, child) = prepare(spec, existing, &hostname)?;
        let fork = || fork(0, cgroup, child);
        let forked =
            if isolated { pod::fork_with_pids(init, pod::agent_pidfd()?.as_fd(), fork) } else { fork() }?;
        self.add(&command.container, spec, forked, ends, started_by).map(drop)
    }

    /// Refuses a process beside the init process whose name or stream is in use.
    pub(crate) fn check_new(&self, container: &str, spec: &payload::Process) -> Result<(), Error> {
        self.check_streams(spec)?;
        let taken = |process: &Process| process.container == container && process.id == spec.id;
        if self.processes.values().any(taken) {
            return Err(Error::new(ErrorCode::Exists, format!("process {} already exists", spec.id)));
        }
        Ok(())
    }

    fn check_streams(&self, spec: &payload::Process) -> Result<(), Error> {
        let taken = |seq| self.processes.values().any(|process| process.has_seq(seq));
        if let Some(seq) = [spec.stdio, spec.stderr].into_iter().find(|seq| taken(*seq)) {
            return Err(Error::new(ErrorCode::Exists, format!("stream {seq} is already in use")));
        }
        if self.processes.len() >= PROCESSES_MAX {
            return Err(Error::failed(format!("limit of {PROCESSES_MAX} processes reached")));
        }
        Ok(())
    }

    /// Adds a forked process to the table and to the event loop.
    pub(crate) fn add(
        &mut self,
        container: &str,
        spec: &payload::Process,
        Forked { pid, pidfd }: Forked,
        ends: AgentEnds,
        StartCommand { id, code }: StartCommand,
    ) -> Result<u32, Error> {
        let key = self.next_key;
        self.next_key += 1;
        let watched = self.watch_process(
            key,
            &[
                (Some(pidfd.as_fd()), EventSource::Exit),
                (Some(ends.report.as_fd()), EventSource::Report),
                (ends.pipes.stdin.as_ref().map(AsFd::as_fd), EventSource::Stdin),
                (ends.pipes.stdout.as_ref().map(AsFd::as_fd), EventSource::Stdout),
                (ends.pipes.stderr.as_ref().map(AsFd::as_fd), EventSource::Stderr),
            ],
        );
        let pending = Pending { id, command: code as u32, report: Some(ends.report), error: None };
        let mut process = Process::new(container, spec, pid, pidfd, pending);
        if let Err(error) = watched {
            let _ = process.signal(Signal::KILL);
            return Err(error);
        }
        process.set_pipes(ends.pipes);
        self.processes.insert(key, process);
        Ok(key)
    }

    /// Handles all reports of the child that have arrived.
    pub(crate) fn take_report(&mut self, key: u32) -> Result<(), Error> {
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
                    Ok(master) => {
                        self.watch_process(key, &[(Some(master.as_fd()), EventSource::Terminal)])?;
                    }
                    Err(error) => process.fail(error),
                },
                Report::Error(error) => process.fail(error),
                Report::Started => {
                    process.close_report();
                    self.answer_start(key);
                }
            }
        }
    }

    /// Answers a start after the child's last report: the program runs, or why it does not. An error is sent when the
    /// child has been reaped, so that the host can try again at once.
    ///
    /// API 4244 has no such errors: a program that cannot be executed is reported as an exit with 126 or 127, and an
    /// exec process that could not be started as an exit with 125.
    pub(crate) fn answer_start(&mut self, key: u32) {
        let extended = self.control.is_extended();
        let Some(process) = self.processes.get_mut(&key) else { return };
        let is_init = process.is_init;
        let exited = process.status.is_some();
        let answerable =
            |pending: &mut Pending| pending.report.is_none() && (pending.error.is_none() || exited);
        let Some(pending) = process.pending.take_if(answerable) else { return };
        let reply = match pending.error {
            Some(error) if extended || is_init && error.exit_code() == START_FAILED => Err(error),
            _ => Ok(Vec::new()),
        };
        if reply.is_err() {
            process.failed = true;
            if is_init {
                let id = process.container.clone();
                self.containers.retain(|container| container.id != id);
            }
        }
        if pending.command == Code::StartPod as u32 {
            self.continue_pod(pending.id, reply);
        } else {
            self.control.reply(pending.id, reply, pending.command);
        }
    }

    /// Continues STARTPOD after one of its containers has started or failed.
    fn continue_pod(&mut self, id: u32, started: Result<Vec<u8>, Error>) {
        let reply = match started.and_then(|_| self.start_next(id)) {
            Ok(false) => return,
            Ok(true) => Ok(Vec::new()),
            Err(error) => {
                self.to_start.clear();
                Err(self.pod_failed(error))
            }
        };
        self.control.reply(id, reply, Code::StartPod as u32);
    }
}

/// The agent's ends of a child's pipes and report socket.
pub(crate) struct AgentEnds {
    pub(crate) pipes: Pipes,
    pub(crate) report: OwnedFd,
}

/// Creates the pipes and the report socket of a child. Returns the agent's ends, and the child to fork.
fn prepare<'a>(
    spec: &'a payload::Process,
    container: ChildContainer<'a>,
    hostname: &'a str,
) -> Result<(AgentEnds, Child<'a>), Error> {
    let (pipes, stdio) = pipes(spec)?;
    let (agent_report, report) = report::channel()?;
    Ok((AgentEnds { pipes, report: agent_report }, Child { spec, container, hostname, stdio, report }))
}

fn fork(flags: u64, cgroup: Option<BorrowedFd<'_>>, child: Child<'_>) -> Result<Forked, Error> {
    match sys::fork(flags, cgroup).step("start", "process")? {
        Fork::Child => child::run(child),
        Fork::Parent { pid, pidfd } => Ok(Forked { pid, pidfd }),
    }
}

fn no_pod() -> Error {
    Error::failed("no pod has been started")
}
