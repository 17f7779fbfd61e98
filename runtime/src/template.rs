//! Templates: a machine is booted once until its agent is ready, and saved. Others continue from it instead of booting.
//!
//! The saved point is before the agent has been told anything. The guest has mounted nothing but its own kernel file systems,
//! and has no network interface. So a template contains nothing of any pod, and what a pod has of its own is told the agent
//! afterwards, in this order: REVIVE (time and entropy), STARTPOD (host name, network, share), the containers.
//!
//! ```text
//! <directory>/lock              held while a template is made or removed
//!            /<name>/state      everything but the memory; its label is the key
//!                   /memory     pages that are not zero, mapped by each machine
//!            /.new-<pid>/       being made, or left from a process that was killed
//!            /.tried-<name>     when a process began to make one without being asked, and why it failed
//! ```
//!
//! Read in this order: [`key`], [`store`], [`way`], [`make`], [`trial`], [`wanted`], [`maker`].

pub mod key;
pub mod make;
pub mod maker;
pub mod store;
mod trial;
mod wanted;
pub mod way;

pub use key::Key;
pub use store::{Found, Store};
pub use wanted::Wanted;

/// Number of places for NICs in a template. A machine with more interfaces boots.
pub const NICS: usize = 8;

/// Whether machines continue from templates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Use {
    /// If there is one that fits; otherwise the machine boots.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Always. Without one that fits there is no machine.
    Require,
}

/// Whether a template is made for a machine that boots because there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Making {
    /// In the background, once the host has time and memory for it.
    #[default]
    Idle,
    /// In the background, at once.
    Always,
    /// Only by `vmm template create`.
    Never,
}

impl Making {
    pub fn parse(text: &str) -> Option<Making> {
        match text {
            "idle" => Some(Making::Idle),
            "always" => Some(Making::Always),
            "never" => Some(Making::Never),
            _ => None,
        }
    }
}

impl Use {
    pub fn parse(text: &str) -> Option<Use> {
        match text {
            "auto" => Some(Use::Auto),
            "off" => Some(Use::Off),
            "require" => Some(Use::Require),
            _ => None,
        }
    }
}
