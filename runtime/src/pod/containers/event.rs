//! Events of the containers that concern the supervisor, which owns the machine and the clients.

use crate::control::Reply;
use crate::pod::ClientId;
use crate::pod::plan::ContainerSpec;

#[derive(Debug)]
pub enum Event {
    Answer(ClientId, Reply),
    /// A client's process has ended. The connection ends with this answer.
    Last(ClientId, Reply),
    /// The first start of a container failed. `code` is the pod's exit code.
    StartFailed {
        code: u8,
        message: String,
    },
    /// The guest has not reported the end of a killed container in time: the machine is to end.
    Unkilled(String),
    Exited,
    /// The guest's kernel has killed a process of a container for its memory limit.
    OomKill,
    /// A container runs, so its read-only mounts in the share can be made final.
    Runs(String),
    /// A container was removed from the pod, so its files can be removed from the share.
    Left(Box<ContainerSpec>),
    Changed,
}
