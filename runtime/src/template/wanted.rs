//! A machine that boots although templates are in use, and for which one is to be made.

use plan::vm::Kernel;
use plan::{ShareType, VmPlan};
use serde::{Deserialize, Serialize};

use super::{Key, Making, Use};
use crate::config::RunConfig;

/// A machine for which a template is wanted. A container's process may report it to the process that started it: nothing in it says
/// where a file is written.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    pub(super) memory_mib: u32,
    pub(super) vcpus: u8,
    pub(super) kernel: Kernel,
    pub(super) share: ShareType,
    pub(super) cmdline: String,
    /// Whether one that is there was refused.
    pub(super) anew: bool,
}

impl Wanted {
    /// Returns `plan`'s machine, if templates are made without being asked and nobody has tried that lately. Then the caller is to
    /// have the template made. `anew`: the one that is there is to be replaced.
    pub fn claim(config: &RunConfig, plan: &VmPlan, key: &Key, anew: bool) -> Option<Wanted> {
        if !is_enabled(config) {
            return None;
        }
        let claimed = config.templates.create().and_then(|()| config.templates.claim(key));
        let claimed = claimed.unwrap_or_else(|error| {
            log::debug!("no template is made: {:#}", anyhow::Error::from(error));
            false
        });
        let VmPlan { memory_mib, vcpus, kernel, share, ref cmdline, .. } = *plan;
        claimed.then(|| Wanted { memory_mib, vcpus, kernel, share, cmdline: cmdline.clone(), anew })
    }

    /// The text with which a container's process reports it.
    pub fn report(wanted: Option<&Wanted>) -> String {
        wanted.map(|wanted| serde_json::to_string(wanted).unwrap_or_default()).unwrap_or_default()
    }

    /// Reads such a text. `None` if nothing is wanted.
    pub fn reported(text: &str) -> Option<Wanted> {
        serde_json::from_str(text).ok()
    }
}

/// Whether templates are made for machines that boot.
pub fn is_enabled(config: &RunConfig) -> bool {
    config.template == Use::Auto && config.making != Making::Never
}
