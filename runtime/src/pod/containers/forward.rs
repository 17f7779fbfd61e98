//! Connections to the loopback interface of the network namespace, which the agent makes in the guest.

use std::os::fd::AsFd;

use agent_proto::command::Code;
use agent_proto::payload::{Connect, Exit, GUEST};
use host::network::loopback::{Connection, reset_at_end};
use link::LinkError;

use super::{Awaited, Containers, Result};
use crate::pod::Guest;
use crate::pod::process::{Process, ProcessPhase};

/// Maximum number of connections at a time; more wait to be accepted.
pub const FORWARDS_MAX: usize = 64;

/// A connection, and the process of the agent that carries it in the guest.
#[derive(Debug)]
pub struct Forward {
    connection: Connection,
    pub(super) process: Process,
}

impl Containers {
    /// Whether another connection is accepted.
    pub fn has_room_for_forward(&self) -> bool {
        self.forwards.len() < FORWARDS_MAX
    }

    /// Asks the agent to connect to the port in the guest.
    pub fn forward(&mut self, guest: &mut Guest<'_>, connection: Connection) -> Result<()> {
        let (name, port) = (format!("forward-{}", self.next_exec), connection.port);
        let stream = self.next_seq;
        let process = match Process::of_connection(guest, &name, stream, connection.socket.as_fd()) {
            Ok(process) => process,
            Err(error) => {
                log::warn!("connection to port {port}: {error}");
                reset_at_end(&connection.socket);
                return Ok(());
            }
        };
        let command =
            guest.link.send(Code::Connect, "connect in the guest", &Connect { name, port, stream })?;
        self.awaited.push((command, Awaited::Forward(process.name.clone())));
        self.forwards.push(Forward { connection, process });
        self.next_exec += 1;
        self.next_seq += 1;
        Ok(())
    }

    pub(super) fn take_forward(
        &mut self,
        guest: &mut Guest<'_>,
        name: &str,
        reply: Result<Vec<u8>>,
    ) -> Result<()> {
        let Some(index) = self.forwards.iter().position(|it| it.process.name == name) else { return Ok(()) };
        match reply {
            Ok(_) => self.forwards[index].process.started(guest, None)?,
            Err(error @ LinkError::Refused { .. }) => {
                let mut forward = self.forwards.remove(index);
                log::debug!("{error}");
                forward.end(guest, false);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Ends the connections whose processes have exited. The client of one that was refused or reset sees a reset.
    pub(super) fn advance_forwards(&mut self, guest: &mut Guest<'_>) {
        let over = |forward: &mut Forward| forward.process.is_drained(guest);
        for mut forward in self.forwards.extract_if(.., over).collect::<Vec<_>>() {
            let ended = matches!(&forward.process.phase, ProcessPhase::Draining(Exit { code: Some(0), .. }));
            forward.end(guest, ended);
        }
    }
}

impl Forward {
    fn end(&mut self, guest: &mut Guest<'_>, orderly: bool) {
        if !orderly {
            reset_at_end(&self.connection.socket);
        }
        self.process.close(guest);
    }

    /// Whether it is the one of an event of the guest.
    pub(super) fn is_meant(&self, container: &str, process: &str) -> bool {
        container == GUEST && self.process.name == process && self.process.phase == ProcessPhase::Running
    }
}
