//! Members: containers that another process of the host represents, a client of the pod's socket.

use std::os::fd::OwnedFd;

use oci::spec::ConsoleSize;

use super::{Containers, Event, Result, refused};
use crate::checkpoint::Saved;
use crate::control::Reply;
use crate::exit;
use crate::pod::container::{Container, Phase, StartError};
use crate::pod::plan::ContainerSpec;
use crate::pod::{ClientId, Guest};

impl Containers {
    /// Adds a container that `client` represents with these standard streams.
    pub fn add_member(&mut self, spec: ContainerSpec, client: ClientId, fds: Vec<OwnedFd>) {
        self.all.push(Container::of_client(spec, client, fds));
    }

    /// Adds the container that this process represents and that runs already in a machine that continues.
    pub fn continue_own(
        &mut self,
        guest: &mut Guest<'_>,
        spec: ContainerSpec,
        saved: &Saved,
    ) -> Result<(), StartError> {
        let mut container = Container::own(spec, Phase::Running);
        container.continued(guest, saved)?;
        self.next_seq = saved.next_stream;
        self.all.push(container);
        Ok(())
    }

    /// Returns the only container, if this process represents it and no other process runs beside its init process, and the
    /// number of the next stream.
    pub fn only(&mut self) -> Option<(&mut Container, u64)> {
        let others = !(self.execs.is_empty() && self.forwards.is_empty() && self.awaited.is_empty());
        let alone = self.all.len() == 1 && !others;
        let next = self.next_seq;
        self.all.first_mut().filter(|only| alone && only.is_own()).map(|only| (only, next))
    }

    /// Returns the container that this process represents.
    pub(super) fn own(&self) -> Option<&Container> {
        self.all.first().filter(|first| first.is_own())
    }

    pub(super) fn member_of(&mut self, client: ClientId) -> Option<&mut Container> {
        let is_meant = |container: &&mut Container| {
            container.member().is_some_and(|member| member.client == Some(client))
        };
        self.all.iter_mut().find(is_meant)
    }

    /// Sends a signal to the exec process or the container that the client represents. One that has ended meanwhile needs
    /// no signal.
    pub fn signal_of(&mut self, guest: &mut Guest<'_>, client: ClientId, signal: i32) -> Result<()> {
        if let Some(exec) = self.exec_of(client) {
            return exec.process.signal(guest, signal, false);
        }
        let member = self.member_of(client).map(|container| container.spec.name().to_owned());
        member.map_or(Ok(()), |name| self.kill(guest, &name, signal, false).map(drop))
    }

    /// Resizes the terminal of the exec process or the container that the client represents.
    pub fn resize_of(&mut self, guest: &mut Guest<'_>, client: ClientId, size: ConsoleSize) -> Result<()> {
        if let Some(exec) = self.exec_of(client) {
            return exec.process.resize(guest, size);
        }
        self.member_of(client).map_or(Ok(()), |container| container.resize(guest, size))
    }

    /// Returns the last answers to the clients whose containers end with the machine.
    pub fn farewells(&mut self) -> Vec<Event> {
        self.all.iter_mut().filter_map(Container::farewell).collect()
    }
}

impl Container {
    /// Returns the last answer to the client that represents the container: its exit code. A container without one was
    /// killed with its machine.
    pub(super) fn farewell(&mut self) -> Option<Event> {
        let client = self.member()?.client?;
        let reply = match self.output_error.take() {
            Some((name, error)) => refused(format!("write {name}: {error}")),
            None => Reply::Exited(self.exit.unwrap_or(exit::of_signal(libc::SIGKILL))),
        };
        Some(Event::Last(client, reply))
    }
}
