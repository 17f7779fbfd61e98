//! The process of a pod: one loop on the main thread serves machine, containers and clients of the pod's socket.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent_proto::command::Code;
use anyhow::{Context, Result};
use host::cgroup::Cgroup;
use host::cgroup::kill_reporter::KillReporter;
use host::confine::{self, Paths, Role};
use host::network::loopback::Loopback;
use host::signals::{SignalAction, Signals, requests_termination};
use host::terminal;
use link::CommandId;
use vmm::Timeline;

use super::ClientId;
use super::clients::Clients;
use super::containers::{Containers, Event, refused};
use super::log::Limits;
use super::output::PodOutput;
use super::plan::PodPlan;
use crate::deadlines;
use crate::exit::{self, CodedError};
use crate::network::LiveNetwork;
use crate::session::{Session, SessionError};
use crate::state::{OciState, PodState, StateDir};
use crate::template::Wanted;

mod checkpoint;
mod end;
mod forward;
mod requests;
mod share;

/// Time between the stop signal and SIGKILL when a signal ends the pod.
pub const GRACE: Duration = Duration::from_secs(10);
/// Limit of commands without a reply; above it, no client is served.
const BUSY: usize = 256;
/// Maximum time for the reader of this process's output to take the rest of it after the pod's end.
const LAST_OUTPUT: Duration = Duration::from_secs(10);

pub struct OwnContainer {
    pub oci: OciState,
    /// The container starts at once, a signal to terminate cancels the start, and the process removes its directory at
    /// its end. Otherwise a client starts the container.
    pub foreground: bool,
}

/// Called once when every container runs, with the template that is to be made for the next machine of this kind.
pub type Started = Box<dyn FnOnce(Option<Wanted>) -> Result<()>>;

pub struct Supervisor {
    session: Session,
    /// Outlives the machine.
    network: LiveNetwork,
    signals: Signals,
    pod: PodPlan,
    containers: Containers,
    clients: Clients,
    /// Connections to the loopback interface of the network namespace, which are made in the guest.
    pub loopback: Option<Loopback>,
    /// Destination of output besides the logs.
    pub outputs: PodOutput,
    /// Lines of output are prefixed with the container's name.
    pub named: bool,
    limits: Option<Limits>,
    directory: Option<StateDir>,
    created: u64,
    /// Number of containers so far, for unique names in the share.
    shared: u64,
    /// The OCI container that this process represents, if it does.
    pub own: Option<OwnContainer>,
    /// The machine's cgroup on the host.
    pub cgroup: Cgroup,
    /// Tells those who watch that cgroup about kills in the guest.
    pub kill_reporter: Option<KillReporter>,
    /// The marks of the boot, if they are wanted.
    pub timeline: Option<Arc<Timeline>>,
    /// Role of the main thread once the guest runs. `None`: the thread is not confined, because it runs hooks later.
    pub role: Option<Role>,
    /// Files that the main thread uses besides those of the pod's directory.
    pub files: Paths,
    /// The template that is to be made for the next machine of this kind.
    pub wanted: Option<Wanted>,
    /// The command STARTPOD, or RESUME in a machine that continues, until it is answered.
    starting: Option<CommandId>,
    /// READY has arrived.
    ready: bool,
    /// Called once when every container was started.
    started: Option<Started>,
    /// The pod is being stopped. Another signal kills its containers at once.
    stopping: bool,
    /// When output that is still not read is dropped, so that an unread pipe cannot delay the pod's end.
    last_output: Option<Instant>,
    /// The state has changed since it was written.
    changed: bool,
    /// The checkpoint that is being made.
    checkpoint: Option<checkpoint::Pending>,
    /// The machine was saved and is not to go on.
    saved: bool,
}

impl Supervisor {
    /// Asks the guest to start the pod. `started` is called once every container runs; if it fails, the pod ends.
    pub fn new(
        mut session: Session,
        signals: Signals,
        pod: PodPlan,
        network: LiveNetwork,
        started: Started,
    ) -> Result<Supervisor> {
        let link = &mut session.sandbox.link;
        let starting = match &pod.continued {
            Some(saved) => checkpoint::resume(link, saved, &pod.machine.pod)?,
            None => link.send(Code::StartPod, "start the pod", &pod.machine.pod)?,
        };
        let mut containers = Containers::new().context("open /dev/null")?;
        containers.kill_patience = deadlines::kill(session.patience);
        Ok(Supervisor {
            limits: Limits::of(&pod.log)?,
            created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            loopback: None,
            outputs: PodOutput::default(),
            named: false,
            containers,
            clients: Clients::new(None),
            directory: None,
            own: None,
            cgroup: Cgroup::default(),
            kill_reporter: None,
            timeline: None,
            role: Some(Role::Main),
            files: Paths::default(),
            wanted: None,
            starting: Some(starting),
            ready: false,
            started: Some(started),
            shared: 0,
            stopping: false,
            last_output: None,
            changed: true,
            checkpoint: None,
            saved: false,
            session,
            signals,
            pod,
            network,
        })
    }

    /// Lets other processes find the pod: by its directory, and by the socket on which `listener` listens.
    pub fn register(&mut self, directory: StateDir, listener: UnixListener) {
        self.clients = Clients::new(Some(listener));
        self.directory = Some(directory);
    }

    /// Stops the machine if it still runs. The network lasts until the supervisor is dropped.
    pub fn stop_machine(self) {
        let Supervisor { session, .. } = self;
        session.sandbox.stop();
    }

    /// Returns the error that kept output of the represented container from its reader, with the stream's name.
    pub fn output_error(&mut self) -> Option<(&'static str, io::Error)> {
        self.containers.all.first_mut()?.output_error.take()
    }

    fn mark(&self, name: &'static str) {
        if let Some(timeline) = &self.timeline {
            timeline.mark(name);
        }
    }

    /// Confines this thread, and runs the pod to its end. Returns its exit code.
    pub fn run(&mut self) -> Result<u8> {
        match self.role {
            // A client may add a container with files and a log anywhere.
            Some(Role::Pod) => confine::enter(Role::Pod),
            Some(role) => confine::enter_main(role, &self.paths()),
            None => {}
        }
        self.session.sandbox.vm.release();
        let result = self.live();
        // If the link failed, the guest cannot be asked to end the pod.
        let answers = result.as_ref().map_or_else(|error| error.is::<CodedError>(), |_| !self.saved);
        if let Err(error) = result.as_ref().map_err(exit::of_error) {
            // The clients' pending requests to the guest have failed.
            self.clients.fail(&refused(error.1));
        }
        let ended = self.shut_down(answers);
        // The first error is the cause of the other.
        let code = result?;
        ended.map(|()| code)
    }

    /// Returns the files that the main thread uses while the guest runs.
    fn paths(&self) -> Paths {
        let mut paths = self.files.clone();
        // Its directory is removed at the end, and other containers' commands create theirs beside it.
        paths.write.extend(self.directory.as_ref().map(StateDir::root));
        paths
    }

    /// Runs until every container has ended, or a request or signal stops the pod.
    fn live(&mut self) -> Result<u8> {
        loop {
            self.step()?;
            if self.containers.is_over() {
                return Ok(self.containers.exit_code());
            }
            let output = self.last_output.filter(|_| self.outputs.is_full());
            let clients = self.clients.deadline().filter(|_| !self.is_busy());
            let until = [self.containers.deadline(Instant::now()), output, clients, self.checkpoint_until()];
            let until = until.into_iter().flatten().min();
            self.wait("run the pod", until)?;
        }
    }

    /// Does all work that is possible without waiting.
    fn step(&mut self) -> Result<()> {
        let link = &mut self.session.sandbox.link;
        if !self.ready && link.ready().is_some() {
            self.ready = true;
            self.mark("agent_ready");
        }
        let link = &mut self.session.sandbox.link;
        if let Some(reply) = self.starting.and_then(|command| link.reply(command)) {
            reply?;
            (self.starting, self.changed) = (None, true);
            self.mark("pod_started");
        }
        self.network.step(&mut self.session.sandbox);
        self.advance_checkpoint()?;
        let mut guest = self.session.sandbox.guest();
        let events = self.containers.step(&mut guest, Instant::now())?;
        for event in events {
            self.take(event)?;
        }
        if self.starting.is_none()
            && self.containers.is_started()
            && let Some(started) = self.started.take()
        {
            self.write_state()?;
            started(self.wanted.take())?;
            self.session.keep_clock();
        }
        if self.changed
            && let Err(error) = self.write_state()
        {
            // A running pod survives a full disk or a lack of descriptors: the write is repeated.
            if self.started.is_some() {
                return Err(error);
            }
            self.changed = true;
            log::warn!("{error:#}");
        }
        if self.last_output.is_some_and(|last| last <= Instant::now()) {
            self.outputs.drop_unread();
        }
        self.flush_clients()
    }

    fn flush_clients(&mut self) -> Result<()> {
        for client in self.clients.flush() {
            self.forget(client)?;
        }
        Ok(())
    }

    /// Handles the end of a client's connection.
    fn forget(&mut self, client: ClientId) -> Result<()> {
        // The client may have waited for an exec process.
        self.changed = true;
        Ok(self.containers.forget(&mut self.session.sandbox.guest(), client)?)
    }

    /// Whether so many commands are pending that no further client is served.
    fn is_busy(&self) -> bool {
        self.session.sandbox.link.outstanding() >= BUSY || self.checkpoint.is_some()
    }

    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Answer(client, reply) => self.clients.answer(client, &self.outward(reply)),
            Event::Last(client, reply) => self.clients.answer_last(client, &reply),
            Event::Changed => self.changed = true,
            Event::Unkilled(container) => {
                let after = self.containers.kill_patience;
                return Err(SessionError::Unkilled { container, after }.into());
            }
            Event::Exited => self.mark("exited"),
            Event::OomKill => self.kill_reporter.iter_mut().for_each(KillReporter::report),
            Event::Runs(name) => {
                self.mark("container_started");
                let container = self.containers.find(&name);
                container
                    .map_or(Ok(()), |container| self.session.sandbox.seal(&container.spec.plan.binds))?;
            }
            Event::Left(spec) => {
                self.unshare(&spec.plan);
                self.changed = true;
            }
            // If a container does not start, the start of the pod has failed.
            Event::StartFailed { code, message } => return Err(CodedError { code, message }.into()),
        }
        Ok(())
    }

    /// Waits for an event. Handles signals, network changes, output and clients.
    fn wait(&mut self, step: &'static str, until: Option<Instant>) -> Result<()> {
        let mut guest = self.session.sandbox.guest();
        self.containers.excuse_paused(&mut guest);
        let owed = self.containers.owed(&guest);
        let busy = self.is_busy();
        let reads_output = !self.outputs.is_full();
        let takes_forwards = self.takes_forwards(busy);
        let mut others: Vec<(BorrowedFd<'_>, i16)> = vec![(self.signals.fd(), libc::POLLIN)];
        // A guest that is about to end needs no update of its network. A busy guest gets all changes at once later.
        let network = self.network.fd().filter(|_| !self.stopping && !busy);
        others.extend(network.map(|fd| (fd, libc::POLLIN)));
        let follows = network.is_some();
        let (before, loopback) = (others.len(), self.loopback.as_ref().filter(|_| takes_forwards));
        others.extend(loopback.into_iter().flat_map(Loopback::fds).map(|fd| (fd, libc::POLLIN)));
        let forwards = others.len() - before;
        others.extend(self.outputs.blocked().map(|fd| (fd, libc::POLLOUT)));
        if reads_output {
            let pipes = self.containers.all.iter().flat_map(|container| &container.pipes);
            others.extend(pipes.map(|pipe| (pipe.fd(), libc::POLLIN)));
        }
        let now = Instant::now();
        let (clients, fds): (Vec<_>, Vec<_>) = self.clients.interests(busy, now).into_iter().unzip();
        others.extend(fds);
        let mut ready = self.session.turn(step, owed, &others, until)?.into_iter();
        self.containers.excuse_starved(self.session.take_starved());
        if ready.next() == Some(true) {
            self.take_signals()?;
        }
        if follows && ready.next() == Some(true) {
            self.network.follow(&mut self.session.sandbox)?;
        }
        if ready.by_ref().take(forwards).fold(false, |any, ready| any | ready) {
            self.forward()?;
        }
        let blocked = self.outputs.blocked().count();
        let mut ready = ready.skip(blocked);
        self.outputs.flush();
        if reads_output {
            let (outputs, named) = (&mut self.outputs, self.named);
            self.containers
                .all
                .iter_mut()
                .for_each(|container| container.read_output(outputs, named, &mut ready));
        }
        let clients = clients.into_iter().zip(ready).filter_map(|(client, ready)| client.filter(|_| ready));
        let clients: Vec<_> = clients.collect();
        if busy { Ok(()) } else { self.serve_clients(&clients) }
    }

    fn take_signals(&mut self) -> Result<()> {
        while let Some(action) = self.signals.next().context("read a signal")? {
            let container = &self.own_name().to_owned();
            match action {
                // Nothing runs yet that would have to be stopped in order.
                SignalAction::Forward(signal) if self.is_awaited() && requests_termination(signal) => {
                    return Err(SessionError::Interrupted(signal).into());
                }
                SignalAction::Forward(signal) if self.own.is_some() => {
                    let guest = &mut self.session.sandbox.guest();
                    let reply = self.containers.kill(guest, container, signal, false)?;
                    log::debug!("signal {signal}: {reply:?}");
                }
                SignalAction::Resize if self.own.is_some() => {
                    let guest = &mut self.session.sandbox.guest();
                    let size = terminal::size();
                    size.map_or(Ok(()), |size| self.containers.resize(guest, container, size))?;
                }
                SignalAction::Forward(signal) if requests_termination(signal) => {
                    let grace = if self.stopping { Duration::ZERO } else { GRACE };
                    self.stop(grace);
                }
                other => log::debug!("signal without effect on a pod: {other:?}"),
            }
        }
        Ok(())
    }

    /// Whether the container that this process starts at once does not run yet.
    fn is_awaited(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.foreground) && self.started.is_some()
    }

    fn stop(&mut self, grace: Duration) {
        (self.stopping, self.changed) = (true, true);
        let patience = Instant::now() + grace;
        self.containers.stop(patience);
        let last = patience + LAST_OUTPUT;
        self.last_output = Some(self.last_output.map_or(last, |earlier| earlier.min(last)));
    }

    fn serve_clients(&mut self, ready: &[ClientId]) -> Result<()> {
        let now = Instant::now();
        self.clients.accept(now);
        for &client in ready {
            if !self.clients.receive(client) {
                self.forget(client)?;
                continue;
            }
            while let Some((request, fds)) = self.clients.next(client) {
                self.changed |= request.is_change();
                let waits = request.is_answered();
                match self.serve(client, request, fds)? {
                    Some(reply) => self.clients.answer(client, &reply),
                    None if waits => self.clients.accepted(client),
                    None => {}
                }
            }
        }
        self.clients.expire(now);
        Ok(())
    }

    fn state(&self) -> PodState {
        let status = match (self.stopping, self.started.is_some()) {
            (true, _) => "stopping",
            (false, true) => "starting",
            (false, false) => "running",
        };
        PodState {
            id: self.pod.id.clone(),
            status: status.to_owned(),
            pid: std::process::id(),
            created: self.created,
            labels: self.pod.labels().clone(),
            patience: self.session.patience.as_secs(),
            memory_mib: self.pod.machine.memory_mib,
            vcpus: self.pod.machine.vcpus,
            kernel: self.pod.machine.kernel,
            cgroup: self.cgroup.clone(),
            containers: self.containers.all.iter().map(|container| self.state_of(container)).collect(),
            joined: String::new(),
            oci: self.own.as_ref().map(|own| own.oci.clone()),
            transient: self.own.as_ref().is_some_and(|own| own.foreground),
        }
    }

    fn write_state(&mut self) -> Result<()> {
        self.changed = false;
        match &self.directory {
            Some(directory) => Ok(directory.write(&self.state())?),
            None => Ok(()),
        }
    }
}
