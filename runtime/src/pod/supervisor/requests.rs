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
        fds: &[OwnedFd],
    ) -> Result<Option<Reply>> {
        let (containers, mut guest) = (&mut self.containers, self.session.sandbox.guest());
        let reply = match request {
            Request::Wait { container } => containers.wait(&container, client),
            Request::Exec(_) | Request::Add { .. } | Request::Start { .. } if self.stopping => {
                Some(refused("the pod is ending".to_owned()))
            }
            Request::Start { container } => containers.start(&container, client),
            Request::Exec(exec) => containers.exec(&mut guest, client, &exec, fds)?,
            Request::Signal(signal) => {
                // A process that has ended meanwhile needs no signal.
                containers
                    .exec_of(client)
                    .map_or(Ok(()), |exec| exec.process.signal(&mut guest, signal, false))?;
                None
            }
            Request::Resize(rows, columns) => {
                containers.exec_of(client).map_or(Ok(()), |exec| {
                    exec.process.resize(&mut guest, ConsoleSize { height: rows, width: columns })
                })?;
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
            Request::Remove { container, force } => containers.remove(&container, force, client),
            Request::Stats => containers.stats(&mut guest, client)?,
            Request::Processes => containers.processes(&mut guest, client)?,
            Request::Pause { container, paused } => {
                containers.pause(&mut guest, client, container, paused)?
            }
            Request::Update { container, files } => {
                containers.update(&mut guest, client, container, files)?
            }
        };
        Ok(reply)
    }
}
