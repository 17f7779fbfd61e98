//! What comes of the containers' work, for the supervisor, which has the machine and the clients.

use crate::control::Reply;
use crate::pod::ClientId;
use crate::pod::plan::ContainerSpec;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Somebody has an answer.
    Answer(ClientId, Reply),
    /// A client's process has ended: its connection ends with this answer.
    Last(ClientId, Reply),
    /// A container could not be started the first time.
    StartFailed {
        /// The exit code that stands for it.
        code: u8,
        /// Which, and why.
        message: String,
    },
    /// A container was killed, and the guest has not said in time that it has ended: the machine is to end.
    Unkilled(String),
    /// A container's init process has exited.
    Exited,
    /// A container runs: what it has read-only is to be closed for good.
    Runs(String),
    /// A container has left the pod: the share need not hold it any more.
    Left(Box<ContainerSpec>),
    /// What is told of the pod has changed.
    Changed,
}
