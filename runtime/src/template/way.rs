//! How a machine starts: from a template, or by booting.

use anyhow::{Context, Result, bail};
use plan::VmPlan;

use super::Use;
use super::store::Found;
use super::wanted::{Wanted, is_enabled};
use crate::config::RunConfig;

/// How a machine starts.
pub enum Way {
    Continue(Box<Found>),
    /// It boots, and a template may be made for the next one.
    Boot(Option<Wanted>),
}

/// Returns the template for a machine with `nics` places for NICs, if it is to continue from one and there is one. If there is none,
/// claims the making of one unless `alone`.
///
/// # Errors
///
/// Only if a template is required.
pub fn find(config: &RunConfig, plan: &VmPlan, nics: usize, alone: bool) -> Result<Way> {
    let required = config.template == Use::Require;
    let makes = !alone && is_enabled(config);
    let there = || config.templates.exists() || makes && config.templates.create().is_ok();
    if config.template == Use::Off || !required && !there() {
        return Ok(Way::Boot(None));
    }
    let wanted = |key, anew| if makes { Wanted::claim(config, plan, key, anew) } else { None };
    let key = match config.template_key(plan) {
        Ok(_) if nics > super::NICS => Err("the machine has too many network interfaces"),
        key => key,
    };
    let key = match key {
        Err(why) if required => bail!("--template require: no template for such a machine: {why}"),
        Err(why) => {
            log::debug!("the machine boots without a template: {why}");
            return Ok(Way::Boot(None));
        }
        Ok(key) => key,
    };
    match config.templates.find(&key) {
        Ok(None) if required => bail!(
            "--template require: there is no template for this machine in {}; `vmm template create` makes one",
            config.templates.path().display()
        ),
        Err(error) if required => Err(error).context("--template require"),
        Err(error) => {
            refuse(&error.into());
            Ok(Way::Boot(wanted(&key, true)))
        }
        Ok(None) => Ok(Way::Boot(wanted(&key, false))),
        Ok(Some(found)) => Ok(Way::Continue(Box::new(found))),
    }
}

/// Logs why a template is not used.
pub fn refuse(error: &anyhow::Error) {
    log::warn!("template refused, the machine boots: {error:#}");
}
