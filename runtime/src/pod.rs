//! Pods: several containers in one machine, whose process is the pod.
//!
//! [`podfile`] reads what is wanted, [`refuse`] says what is wrong with it, [`plan`] decides what it comes to. A [`crew`] is
//! the containers ([`member`]) and their further processes ([`exec`]) as far as the agent is concerned; the
//! [`supervisor`] owns the machine, the clients of the pod's socket and the wait for all of it.

use link::AgentLink;
use link::streams::StreamHandle;

pub mod base64;
pub mod clients;
pub mod crew;
pub mod exec;
pub mod log;
pub mod member;
pub mod output;
pub mod plan;
pub mod podfile;
pub mod refuse;
mod requests;
pub mod restart;
pub mod supervisor;
pub mod tap;

/// Who asked: a connection of the pod's socket.
pub type Asker = u64;

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
