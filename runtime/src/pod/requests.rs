//! The requests of the pod's socket: one match, one call for each.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Result;

use super::Asker;
use super::crew::{Question, refused};
use super::supervisor::Supervisor;
use crate::control::{Reply, Request};

/// The longest that containers are given to end.
const GRACE_MAX: u64 = 24 * 3600;

impl Supervisor {
    /// Serves a request; returns its answer unless that comes later.
    pub(super) fn serve(
        &mut self,
        asker: Asker,
        (request, fds): (Request, Vec<OwnedFd>),
    ) -> Result<Option<Reply>> {
        let stopping = self.is_stopping();
        let (crew, mut guest) = self.crew();
        let reply = match request {
            Request::Wait { container } => crew.wait(&container, asker),
            Request::Exec(_) | Request::Add { .. } | Request::Start { .. } if stopping => {
                Some(refused("the pod is ending".to_owned()))
            }
            Request::Start { container } => crew.start(&container, asker),
            Request::Exec(exec) => crew.exec(&mut guest, asker, &exec, &fds)?,
            Request::Signal(signal) => {
                // A process that has ended meanwhile needs none.
                crew.exec_of(asker).map_or(Ok(()), |exec| exec.signal(&mut guest, signal))?;
                None
            }
            Request::Resize(rows, columns) => {
                crew.exec_of(asker).map_or(Ok(()), |exec| exec.resize(&mut guest, rows, columns))?;
                None
            }
            Request::Kill { container, signal, all } => Some(crew.kill(&mut guest, &container, signal, all)?),
            Request::Stop { grace } => {
                self.stop(Duration::from_secs(grace.min(GRACE_MAX)));
                Some(Reply::Done)
            }
            Request::Add { base, container } => self.add_sent(asker, &base, container),
            Request::Remove { container, force } => crew.remove(&container, force, asker),
            Request::Stats => crew.ask(&mut guest, asker, &Question::Stats)?,
            Request::Processes => crew.ask(&mut guest, asker, &Question::Processes)?,
            Request::Pause { container, paused } => {
                crew.ask(&mut guest, asker, &Question::Pause { container, paused })?
            }
            Request::Update { container, files } => crew.update(&mut guest, asker, container, files)?,
        };
        Ok(reply)
    }
}
