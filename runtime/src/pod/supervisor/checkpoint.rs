//! A checkpoint of the machine while its container runs: the container is suspended, the machine is paused and saved, and then
//! goes on or ends.
//!
//! The container is suspended so that it runs again only after the guest of the machine that continues has got time and random
//! numbers of its own. The machine is paused when every command of the agent has been answered.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use agent_proto::command::{Code, Protocol};
use agent_proto::payload::{ContainerName, Pod, Routes};
use anyhow::{Context, Result, ensure};
use link::{AgentLink, CommandId, LinkError};
use vmm::devices::StateError;

use super::Supervisor;
use crate::checkpoint::Saved;
use crate::control::{Reply, Request};
use crate::deadlines;
use crate::exit;
use crate::pod::ClientId;
use crate::pod::container::Container;
use crate::pod::containers::refused;
use crate::pod::plan::ContainerSpec;
use crate::sandbox::Sandbox;
use crate::sockets::Sockets;
use crate::state::ContainerState;
use crate::template::key;

/// Longest time between two looks at a guest that does not come to rest.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A checkpoint that was asked for.
pub struct Pending {
    client: ClientId,
    label: String,
    leave_running: bool,
    memory: File,
    state: File,
    pages: Option<File>,
    /// The command that suspends the container, until it is answered. `None` if a user had paused it.
    suspending: Option<CommandId>,
    /// A user had paused the container.
    paused: bool,
    /// When the machine must have been paused.
    until: Instant,
}

/// What came of an attempt.
enum Attempt {
    Saved,
    /// The client has not confirmed that the checkpoint is on the disk.
    Unconfirmed,
    /// The agent had sent something that is to be handled first.
    Again,
}

impl Supervisor {
    /// Gives a request the container's name in the guest, which differs if the machine continues that of another container.
    pub(super) fn inward(&self, mut request: Request) -> Request {
        if let (Some(name), Some(saved)) = (request.container_mut(), &self.pod.continued)
            && *name == self.pod.id
        {
            name.clone_from(&saved.container);
        }
        request
    }

    /// Gives a reply the container's name on the host.
    pub(super) fn outward(&self, mut reply: Reply) -> Reply {
        let Some(saved) = &self.pod.continued else { return reply };
        let names: Vec<&mut String> = match &mut reply {
            Reply::Stats(all) => all.iter_mut().map(|one| &mut one.container).collect(),
            Reply::Processes(all) => all.iter_mut().map(|one| &mut one.container).collect(),
            _ => Vec::new(),
        };
        names
            .into_iter()
            .filter(|name| **name == saved.container)
            .for_each(|name| name.clone_from(&self.pod.id));
        reply
    }

    /// The name in the guest of the container that this process represents.
    pub(super) fn own_name(&self) -> &str {
        self.pod.continued.as_ref().map_or(&self.pod.id, |saved| &saved.container)
    }

    /// Returns the state of a container, with its name on the host.
    pub(super) fn state_of(&self, container: &Container) -> ContainerState {
        let clients = self.containers.clients(container.spec.name());
        let stubs = clients.filter_map(|client| self.clients.process(client)).collect();
        let state = container.state();
        let name = if state.name == self.own_name() { self.pod.id.clone() } else { state.name.clone() };
        ContainerState { stubs, name, ..state }
    }

    /// Adds the container of a checkpoint, whose files are shared already.
    pub(super) fn continue_own(&mut self, spec: ContainerSpec) -> Result<()> {
        let Some(saved) = &self.pod.continued else { return Ok(()) };
        let mut guest = self.session.sandbox.guest();
        Ok(self.containers.continue_own(&mut guest, spec, saved)?)
    }

    /// Begins a checkpoint. Returns the answer if it is refused.
    pub(super) fn begin_checkpoint(
        &mut self,
        client: ClientId,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Option<Reply> {
        let begun = self.try_checkpoint(client, request, fds);
        begun.err().map(|error| refused(format!("checkpoint: {}", exit::of_error(&error).1)))
    }

    fn try_checkpoint(&mut self, client: ClientId, request: Request, fds: Vec<OwnedFd>) -> Result<()> {
        let Request::Checkpoint { container: name, label, leave_running } = request else { return Ok(()) };
        let sandbox = &mut self.session.sandbox;
        ensure!(self.starting.is_none() && self.started.is_none(), "the container is being started");
        ensure!(self.checkpoint.is_none(), "another checkpoint is being made");
        ensure!(self.own.is_some(), "pods of podfiles are not supported");
        ensure!(sandbox.link.protocol() == Protocol::Extended, "the agent's protocol has no such command");
        let mounted = !self.pod.machine.sockets.is_empty();
        ensure!(!mounted, "containers with sockets of the host are not supported");
        let program = key::program().is_some_and(|program| label.lines().any(|line| line == program));
        ensure!(program, "the container runs in another version of vmm");
        let only = self.containers.only();
        let (container, _) = only.context(
            "execs, connections to its loopback interface and joined containers are not supported",
        )?;
        ensure!(container.is_meant(&name) && container.first_stream().is_some(), "container not running");
        let mut files = fds.into_iter().map(File::from);
        let (Some(memory), Some(state)) = (files.next(), files.next()) else {
            anyhow::bail!("the descriptors of its files are missing");
        };
        let paused = container.paused;
        let name = ContainerName { container: name };
        let suspending = (!paused).then(|| sandbox.link.send(Code::Pause, "suspend the container", &name));
        let suspending = suspending.transpose()?;
        self.network.withdraw(&mut self.session.sandbox)?;
        let (pages, until) = (files.next(), Instant::now() + self.session.patience);
        self.checkpoint =
            Some(Pending { client, label, leave_running, memory, state, pages, suspending, paused, until });
        Ok(())
    }

    /// Makes the checkpoint that was asked for, once the guest is quiet.
    pub(super) fn advance_checkpoint(&mut self) -> Result<()> {
        let Some(mut pending) = self.checkpoint.take() else { return Ok(()) };
        let link = &mut self.session.sandbox.link;
        match pending.suspending.and_then(|command| link.reply(command)) {
            Some(Ok(_)) => pending.suspending = None,
            Some(Err(error @ LinkError::Refused { .. })) => {
                self.clients.answer(pending.client, &refused(format!("checkpoint: {error}")));
                return self.go_on(true);
            }
            Some(Err(error)) => return Err(error.into()),
            None => {}
        }
        let is_quiet = pending.suspending.is_none() && self.session.sandbox.link.is_quiet();
        let done = match is_quiet {
            true => self.attempt(&pending),
            false => Ok(Attempt::Again),
        };
        let reply = match done {
            Ok(Attempt::Again) if Instant::now() < pending.until => {
                self.checkpoint = Some(pending);
                return Ok(());
            }
            Ok(Attempt::Again) => Some(refused("checkpoint: the guest does not come to rest".to_owned())),
            Ok(Attempt::Saved) if pending.leave_running => Some(Reply::Done),
            Ok(Attempt::Saved) => {
                self.saved = true;
                self.containers.only().into_iter().for_each(|(container, _)| container.end_with_checkpoint());
                return Ok(());
            }
            Ok(Attempt::Unconfirmed) => {
                log::warn!("the checkpoint was not finished, and the container goes on");
                None
            }
            Err(error) => Some(refused(format!("checkpoint: {error:#}"))),
        };
        self.go_on(pending.paused)?;
        reply.into_iter().for_each(|reply| self.clients.answer(pending.client, &reply));
        Ok(())
    }

    /// Gives the guest its network back, and lets the container go on unless a user had paused it.
    fn go_on(&mut self, paused: bool) -> Result<()> {
        self.network.follow(&mut self.session.sandbox)?;
        if !paused {
            let name = ContainerName { container: self.own_name().to_owned() };
            self.session.sandbox.link.notify(Code::Resume, "resume the container", &name)?;
        }
        Ok(self.session.sandbox.link.flush()?)
    }

    /// When a guest that is to come to rest for a checkpoint is looked at again, at the latest.
    pub(super) fn checkpoint_until(&self) -> Option<Instant> {
        self.checkpoint.as_ref().map(|_| Instant::now() + LOOK_AGAIN)
    }

    /// Pauses the machine and saves it. On success it stays paused if it is to end.
    fn attempt(&mut self, pending: &Pending) -> Result<Attempt> {
        let patience = deadlines::ANSWER.min(self.session.patience);
        let machine = &self.pod.machine;
        let name = self.own_name().to_owned();
        let (kernel, share) = (machine.kernel, machine.share);
        let Some((container, next_stream)) = self.containers.only() else { return Ok(Attempt::Again) };
        let terminal = container.spec.plan.container.process.terminal;
        let stream = container.first_stream().context("container not running")?;
        let Sandbox { link, streams, vm, shape, sockets, .. } = &mut self.session.sandbox;
        let paused = vm.pause(patience)?;
        let connected = sockets.as_ref().is_some_and(Sockets::are_busy);
        ensure!(!connected, "connections of sockets in shared directories are not supported");
        let saved = (|| -> Result<Option<()>> {
            let frozen = streams.freeze(patience)?;
            paused.hold_devices()?;
            while link.receive()? {}
            let link = match link.save() {
                Ok(link) => link,
                // The agent has sent something just before the pause.
                Err(StateError::Busy(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let Pending { memory, state, pages, label, .. } = pending;
            let snapshot = paused.save(memory, pages.as_ref(), Vec::new(), |_| Ok(()))?;
            let saved = Saved {
                label: label.clone(),
                container: name,
                memory_mib: snapshot.memory_mib,
                vcpus: snapshot.vcpus,
                kernel,
                share,
                shape: *shape,
                terminal,
                stream,
                next_stream,
                link,
                streams: frozen,
            };
            let mut file = state;
            file.write_all(&saved.encode(&snapshot)).context("write the state")?;
            Ok(Some(()))
        })();
        let mut attempt = saved.map(|saved| if saved.is_some() { Attempt::Saved } else { Attempt::Again });
        if matches!(attempt, Ok(Attempt::Saved)) && !pending.leave_running {
            self.clients.answer(pending.client, &Reply::Done);
            if self.clients.is_confirmed(pending.client, Instant::now() + deadlines::SYNC) {
                // What is in the state must not happen here as well.
                paused.end();
                return Ok(Attempt::Saved);
            }
            attempt = Ok(Attempt::Unconfirmed);
        }
        drop(paused);
        streams.thaw();
        attempt
    }
}

/// Asks the guest of a machine that continues to set up its network and to let its container go on. REVIVE precedes both. As
/// with runc, a container that was paused goes on as well: containerd pauses each one that it saves.
pub fn resume(link: &mut AgentLink, saved: &Saved, pod: &Pod) -> Result<CommandId, LinkError> {
    for interface in &pod.interfaces {
        link.notify(Code::SetupInterface, "set up a network interface", interface)?;
    }
    if !pod.routes.is_empty() {
        link.notify(Code::SetupRoute, "set routes", &Routes { routes: pod.routes.clone() })?;
    }
    let name = ContainerName { container: saved.container.clone() };
    link.send(Code::Resume, "resume the container", &name)
}
