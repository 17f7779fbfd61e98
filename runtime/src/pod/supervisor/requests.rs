//! Dispatches the requests of the pod's socket, with one call for each.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Result;
use oci::spec::ConsoleSize;

use super::Supervisor;
use crate::control::{Reply, Request};
use crate::pod::ClientId;
use crate::pod::containers::refused;

/// Maximum grace period for containers to end.
const GRACE_MAX: u64 = 24 * 3600;

impl Supervisor {
    /// Serves a request. Returns its answer unless that comes later.
    pub(super) fn serve(
        &mut self,
        client: ClientId,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<Option<Reply>> {
        let request = self.inward(request);
        let (containers, mut guest) = (&mut self.containers, self.session.sandbox.guest());
        let reply = match request {
            Request::Wait { container } => containers.wait(&container, client),
            Request::Exec(_)
            | Request::Add { .. }
            | Request::Join(_)
            | Request::Start { .. }
            | Request::Checkpoint { .. }
                if self.stopping =>
            {
                Some(refused("the pod is ending".to_owned()))
            }
            Request::Start { container } => containers.start(&container, client),
            Request::Exec(exec) => containers.exec(&mut guest, client, &exec, &fds)?,
            Request::Signal(signal) => {
                containers.signal_of(&mut guest, client, signal)?;
                None
            }
            Request::Resize(height, width) => {
                containers.resize_of(&mut guest, client, ConsoleSize { height, width })?;
                None
            }
            Request::Kill { container, signal, all } => {
                Some(containers.kill(&mut guest, &container, signal, all)?)
            }
            Request::Stop { grace } => {
                self.stop(Duration::from_secs(grace.min(GRACE_MAX)));
                Some(Reply::Done)
            }
            Request::Add { base, container } => self.add_sent(client, &base, container),
            Request::Join(request) => Some(self.join(client, *request, fds)),
            Request::Remove { container, force } => containers.remove(&container, force, client),
            Request::Stats => containers.stats(&mut guest, client)?,
            Request::Processes => containers.processes(&mut guest, client)?,
            Request::Pause { container, paused } => {
                containers.pause(&mut guest, client, container, paused)?
            }
            Request::Confirm => None,
            request @ Request::Checkpoint { .. } => self.begin_checkpoint(client, request, fds),
            Request::Update { container, files } => {
                containers.update(&mut guest, client, container, files)?
            }
        };
        Ok(reply)
    }
}
