//! Pods: several containers in one machine. A pod has one process on the host.
//!
//! [`podfile`] parses a podfile, [`refuse`] checks it, and [`plan`] makes a plan of it. [`containers`] has every
//! [`container`] with its exec processes ([`exec`]). Both kinds of [`process`] live in the guest, and the agent starts
//! them and reports their exits. The [`supervisor`] owns the machine and the clients of the pod's socket, and waits for
//! events of both.

use link::AgentLink;
use link::streams::StreamHandle;

pub mod clients;
pub mod container;
pub mod containers;
pub mod exec;
pub mod log;
pub mod output;
pub mod output_pipe;
pub mod plan;
pub mod podfile;
pub mod process;
pub mod refuse;
pub mod restart;
pub mod supervisor;

/// Number of a connection to the pod's socket.
pub type ClientId = u64;

/// The host's handles of the channels into the guest.
pub struct Guest<'a> {
    pub link: &'a mut AgentLink,
    pub streams: &'a mut StreamHandle,
}

impl Guest<'_> {
    /// Maximum number of input bytes that a process gets at a time.
    pub fn window(&self) -> u32 {
        self.link.ready().map_or(0, |ready| ready.window)
    }
}
