//! Connections to the loopback interface of the container's network namespace.

use anyhow::Result;
use host::network::loopback::Loopback;

use super::Supervisor;

impl Supervisor {
    /// Whether connections for the guest are accepted: its containers were created, and it has time.
    pub(super) fn takes_forwards(&self, busy: bool) -> bool {
        self.started.is_none() && !self.stopping && !busy && self.containers.has_room_for_forward()
    }

    /// Lets the guest carry the connections that wait.
    pub(super) fn forward(&mut self) -> Result<()> {
        while self.takes_forwards(self.is_busy())
            && let Some(connection) = self.loopback.as_ref().and_then(Loopback::accept)
        {
            self.containers.forward(&mut self.session.sandbox.guest(), connection)?;
        }
        Ok(())
    }
}
