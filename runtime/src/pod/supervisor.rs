//! The pod's process: the machine, the containers, and whoever asks on the pod's socket, in one loop on the main thread.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent_proto::command::Code;
use anyhow::{Context, Result};
use host::cgroup::Cgroup;
use host::signals::{Asked, Signals, asks_for_an_end};
use host::{sys, terminal};
use link::CommandId;
use vmm::Timeline;

use super::clients::Clients;
use super::containers::{Containers, Event, refused};
use super::log::Limits;
use super::output::Outputs;
use super::plan::{ContainerSpec, PodPlan};
use super::{ClientId, Guest};
use crate::deadlines;
use crate::exit::{self, CodedError};
use crate::network::LiveNetwork;
use crate::session::{Session, SessionError};
use crate::state::{OciState, PodState, StateDir};

mod share;

/// How long containers have between their stop signal and SIGKILL when a signal ends the pod.
pub const GRACE: Duration = Duration::from_secs(10);
/// Commands without a reply above which clients wait.
const BUSY: usize = 256;
/// How long whoever reads our output may take for the rest of it after the pod's end.
const LAST_OUTPUT: Duration = Duration::from_secs(10);

/// What a pod's process supervises.
pub struct Supervised {
    /// The machine, which has just been started.
    pub session: Session,
    /// The signals of this process.
    pub signals: Signals,
    /// What the pod is.
    pub pod: PodPlan,
    /// Its containers.
    pub containers: Vec<ContainerSpec>,
    /// Where other processes find it; nowhere if nothing can be written there.
    pub registration: Option<Registration>,
    /// Where output goes beside the logs.
    pub outputs: Outputs,
    /// The OCI container that this process stands for, if it is one.
    pub own: Option<OwnContainer>,
    /// The machine's cgroup on the host.
    pub cgroup: Cgroup,
    /// What its NICs lead to.
    pub network: LiveNetwork,
    /// The marks of the boot, if they are wanted.
    pub timeline: Option<Arc<Timeline>>,
}

/// Where other processes find a pod.
pub struct Registration {
    /// Its directory.
    pub directory: StateDir,
    /// Its socket.
    pub listener: UnixListener,
}

/// An OCI container that this process stands for.
pub struct OwnContainer {
    /// What is told of it.
    pub oci: OciState,
    /// It is started at once, and a signal that asks for an end before that ends the wait; otherwise a client starts it.
    pub at_once: bool,
    /// Its process removes its directory when it has ended.
    pub transient: bool,
}

/// Tells whoever waits for a pod that it runs.
pub type Started = Box<dyn FnOnce() -> Result<()>>;

/// A pod's process.
pub struct Supervisor {
    session: Session,
    /// It lasts longer than the machine.
    network: LiveNetwork,
    signals: Signals,
    pod: PodPlan,
    containers: Containers,
    clients: Clients,
    outputs: Outputs,
    /// A container's name stands before its lines.
    named: bool,
    limits: Option<Limits>,
    directory: Option<StateDir>,
    created: u64,
    /// Containers so far: each has a name in the share that none had before.
    shared: u64,
    own: Option<OwnContainer>,
    cgroup: Cgroup,
    timeline: Option<Arc<Timeline>>,
    /// STARTPOD, until it is answered.
    starting: Option<CommandId>,
    /// READY has come.
    ready: bool,
    /// Called once when every container was started.
    started: Option<Started>,
    /// A second signal is not patient.
    stopping: bool,
    /// When whoever reads our output has had time enough: an end does not wait for it for ever.
    last_output: Option<Instant>,
    /// What is told of the pod has changed since it was written.
    changed: bool,
}

impl Supervisor {
    /// Asks the guest for the pod and its containers. `started` is called once all of them run; if it fails, they end.
    pub fn start(supervised: Supervised, started: Started) -> Result<Supervisor> {
        let Supervised {
            mut session,
            signals,
            pod,
            registration,
            outputs,
            own,
            cgroup,
            network,
            timeline,
            ..
        } = supervised;
        let command = session.sandbox.link.send(Code::StartPod, "start the pod", &pod.machine.pod)?;
        let limits = Limits::of(&pod.log)?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut containers = Containers::new().context("open /dev/null")?;
        containers.kill_patience = deadlines::kill(session.patience());
        let (directory, listener) = registration.map(|it| (it.directory, it.listener)).unzip();
        let mut supervisor = Supervisor {
            named: supervised.containers.len() != 1,
            containers,
            clients: Clients::new(listener),
            starting: Some(command),
            ready: false,
            started: Some(started),
            shared: 0,
            stopping: false,
            last_output: None,
            changed: true,
            session,
            signals,
            pod,
            outputs,
            limits,
            directory,
            created,
            own,
            cgroup,
            timeline,
            network,
        };
        for container in supervised.containers {
            supervisor.add(container, None)?;
        }
        Ok(supervisor)
    }

    /// Stops the machine, if it still runs. Its network lasts until the supervisor is dropped.
    pub fn stop_machine(self) {
        let Supervisor { session, .. } = self;
        session.sandbox.stop();
    }

    /// Returns what kept the output of the container that this process stands for from its reader, with the stream's name.
    pub fn output_error(&mut self) -> Option<(&'static str, io::Error)> {
        self.containers.all.first_mut()?.output_error.take()
    }

    /// Notes a milestone of the boot, if somebody wants them.
    fn mark(&self, name: &'static str) {
        if let Some(timeline) = &self.timeline {
            timeline.mark(name);
        }
    }

    /// Runs the pod to its end; returns its exit code.
    pub fn run(&mut self) -> Result<u8> {
        let result = self.live();
        // A guest that cannot be talked to any more is not asked for its end.
        let answers = result.as_ref().map_or_else(|error| error.is::<CodedError>(), |_| true);
        if let Err(error) = result.as_ref().map_err(exit::of_error) {
            // What they asked of the guest has come to nothing.
            self.clients.fail(&refused(error.1));
        }
        let ended = self.end(answers);
        // What went wrong first says more.
        let code = result?;
        ended.map(|()| code)
    }

    /// Lives until every container has ended, or the pod was asked to.
    fn live(&mut self) -> Result<u8> {
        loop {
            self.step()?;
            if self.containers.is_over() {
                return Ok(self.containers.exit_code());
            }
            let output = self.last_output.filter(|_| self.outputs.is_full());
            let clients = self.clients.deadline().filter(|_| !self.is_busy());
            let until =
                [self.containers.deadline(Instant::now()), output, clients].into_iter().flatten().min();
            self.wait("run the pod", until)?;
        }
    }

    /// Does everything that can be done now.
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
            started()?;
        }
        if self.changed
            && let Err(error) = self.write_state()
        {
            // A pod that runs is not ended for a disk that is full, or for want of a descriptor: it is tried again.
            if self.started.is_some() {
                return Err(error);
            }
            self.changed = true;
            log::warn!("{error:#}");
        }
        if self.last_output.is_some_and(|last| last <= Instant::now()) {
            self.outputs.abandon();
        }
        self.flush_clients()
    }

    fn flush_clients(&mut self) -> Result<()> {
        for client in self.clients.flush() {
            self.forget(client)?;
        }
        Ok(())
    }

    /// A client is gone.
    fn forget(&mut self, client: ClientId) -> Result<()> {
        // It may have stood for a further process.
        self.changed = true;
        Ok(self.containers.forget(&mut self.session.sandbox.guest(), client)?)
    }

    /// Whether the guest has so much to answer that nothing more is asked.
    fn is_busy(&self) -> bool {
        self.session.sandbox.link.outstanding() >= BUSY
    }

    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Answer(client, reply) => self.clients.answer(client, &reply),
            Event::Last(client, reply) => self.clients.answer_last(client, &reply),
            Event::Changed => self.changed = true,
            Event::Unkilled(container) => {
                let after = self.containers.kill_patience;
                return Err(SessionError::Unkilled { container, after }.into());
            }
            Event::Exited => self.mark("exited"),
            Event::Runs(name) => {
                self.mark("container_started");
                let container = self.containers.all.iter().find(|container| container.spec.name() == name);
                container
                    .map_or(Ok(()), |container| self.session.sandbox.seal(&container.spec.plan.binds))?;
            }
            Event::Left(spec) => {
                self.unshare(&spec.plan);
                self.changed = true;
            }
            // A pod whose containers do not all start has not started.
            Event::StartFailed { code, message } => return Err(CodedError { code, message }.into()),
        }
        Ok(())
    }

    /// Sleeps until something happens, and takes what is not the guest's.
    fn wait(&mut self, step: &'static str, until: Option<Instant>) -> Result<()> {
        let mut guest = self.session.sandbox.guest();
        self.containers.excuse_paused(&mut guest);
        let owed = self.containers.owed(&guest);
        let busy = self.is_busy();
        let taps = !self.outputs.is_full();
        let mut others: Vec<(BorrowedFd<'_>, i16)> = vec![(self.signals.fd(), libc::POLLIN)];
        // A guest that is about to end has nothing of a change; one that is busy is told of all at once.
        let network = self.network.fd().filter(|_| !self.stopping && !busy);
        others.extend(network.map(|fd| (fd, libc::POLLIN)));
        let follows = network.is_some();
        others.extend(self.outputs.blocked().map(|fd| (fd, libc::POLLOUT)));
        if taps {
            let taps = self.containers.all.iter().flat_map(|container| container.taps());
            others.extend(taps.filter_map(|tap| Some((tap.fd()?, libc::POLLIN))));
        }
        let now = Instant::now();
        let (clients, fds): (Vec<_>, Vec<_>) = self.clients.interests(busy, now).into_iter().unzip();
        others.extend(fds);
        let mut ready = self.session.turn(step, owed, &others, until)?.into_iter();
        if ready.next() == Some(true) {
            self.take_signals()?;
        }
        if follows && ready.next() == Some(true) {
            self.network.follow(&mut self.session.sandbox)?;
        }
        let blocked = self.outputs.blocked().count();
        let mut ready = ready.skip(blocked);
        self.outputs.flush();
        if taps {
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
        while let Some(asked) = self.signals.next().context("read a signal")? {
            let container = &self.pod.id;
            match asked {
                // Nothing is lost yet that would have to be ended in order.
                Asked::Forward(signal) if self.is_awaited() && asks_for_an_end(signal) => {
                    return Err(SessionError::Interrupted(signal).into());
                }
                Asked::Forward(signal) if self.own.is_some() => {
                    let guest = &mut self.session.sandbox.guest();
                    let reply = self.containers.kill(guest, container, signal, false)?;
                    log::debug!("signal {signal}: {reply:?}");
                }
                Asked::Resize if self.own.is_some() => {
                    let guest = &mut self.session.sandbox.guest();
                    let size = terminal::size();
                    size.map_or(Ok(()), |size| self.containers.resize(guest, container, size))?;
                }
                Asked::Forward(signal) if asks_for_an_end(signal) => {
                    let grace = if self.stopping { Duration::ZERO } else { GRACE };
                    self.stop(grace);
                }
                other => log::debug!("a pod does nothing about {other:?}"),
            }
        }
        Ok(())
    }

    /// Whether the container that this process starts at once does not run yet.
    fn is_awaited(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.at_once) && self.started.is_some()
    }

    /// Begins the pod's end.
    pub(super) fn stop(&mut self, grace: Duration) {
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
                match self.serve(client, (request, fds))? {
                    Some(reply) => self.clients.answer(client, &reply),
                    None if waits => self.clients.accepted(client),
                    None => {}
                }
            }
        }
        self.clients.expire(now);
        Ok(())
    }

    /// The containers, with what leads into the guest.
    pub(super) fn containers(&mut self) -> (&mut Containers, Guest<'_>) {
        (&mut self.containers, self.session.sandbox.guest())
    }

    /// Whether the pod is about to end.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// What the pod is.
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
            patience: self.session.patience().as_secs(),
            memory_mib: self.pod.machine.memory_mib,
            cgroup: self.cgroup.clone(),
            containers: self.containers.all.iter().map(|container| container.state()).collect(),
            stubs: self.containers.clients().filter_map(|client| self.clients.process(client)).collect(),
            oci: self.own.as_ref().map(|own| own.oci.clone()),
            transient: self.own.as_ref().is_some_and(|own| own.transient),
        }
    }

    fn write_state(&mut self) -> Result<()> {
        self.changed = false;
        match &self.directory {
            Some(directory) => Ok(directory.write(&self.state())?),
            None => Ok(()),
        }
    }

    /// Ends the machine, and with it whatever still runs; leaves the last state.
    fn end(&mut self, answers: bool) -> Result<()> {
        self.stopping = true;
        self.session.sandbox.expect_end();
        if answers
            && let Err(error) = self.destroy()
            && !error.downcast_ref().is_some_and(SessionError::is_reset)
        {
            log::warn!("{error:#}");
        }
        self.mark("pod_ended");
        if let Some(directory) = self.directory.take() {
            // Of one that is about to be removed nothing more need be known.
            if !self.own.as_ref().is_some_and(|own| own.transient) {
                let mut state = self.state();
                "stopped".clone_into(&mut state.status);
                directory.write(&state)?;
            }
            directory.close();
        }
        let patience = Instant::now() + LAST_OUTPUT;
        while !self.outputs.is_flushed() && Instant::now() < patience {
            let blocked: Vec<_> = self.outputs.blocked().map(|fd| (fd, libc::POLLOUT)).collect();
            sys::poll_all(blocked.iter(), Some(patience - Instant::now())).context("poll")?;
            self.outputs.flush();
        }
        Ok(())
    }

    fn destroy(&mut self) -> Result<()> {
        let command = self.session.sandbox.link.send_bare(Code::DestroyPod, "end the pod")?;
        self.session.begin();
        loop {
            let events = self.containers.step(&mut self.session.sandbox.guest(), Instant::now())?;
            for event in events {
                // A container that could not be started has been told of.
                self.take(event).unwrap_or_else(|error| log::debug!("{error:#}"));
            }
            self.flush_clients()?;
            if let Some(reply) = self.session.sandbox.link.reply(command) {
                reply?;
                return Ok(());
            }
            self.wait("end the pod", None)?;
        }
    }
}
