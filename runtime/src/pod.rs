//! Pods: several containers in one machine, whose process is the pod.
//!
//! [`podfile`] reads what is wanted, [`refuse`] says what is wrong with it, [`plan`] decides what it comes to. The [`containers`]
//! are each a [`container`] with its exec processes ([`exec`]), both of which have a [`process`] in the guest: what the agent is
//! asked and what it answers. The [`supervisor`] owns the machine, the clients of the pod's socket and the wait for all of it.

use link::AgentLink;
use link::streams::StreamHandle;

pub mod base64;
pub mod clients;
pub mod container;
pub mod containers;
pub mod exec;
pub mod log;
pub mod output;
pub mod plan;
pub mod podfile;
pub mod process;
pub mod refuse;
mod requests;
pub mod restart;
pub mod supervisor;
pub mod tap;

/// A connection of the pod's socket.
pub type ClientId = u64;

/// What leads into the guest.
pub struct Guest<'a> {
    /// The control channel.
    pub link: &'a mut AgentLink,
    /// The streams.
    pub streams: &'a mut StreamHandle,
}

impl Guest<'_> {
    /// How much input a process takes at a time.
    pub fn window(&self) -> u32 {
        self.link.ready().map_or(0, |ready| ready.window)
    }
}
