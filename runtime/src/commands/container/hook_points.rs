//! The hooks of a container's life: when each kind runs, and what it gets on stdin.

use std::fs;

use anyhow::{Context, Result};
use host::hooks::{self, Environment, HookError};
use oci::spec::{Hook, Hooks};
use serde::Deserialize;

use super::state_json;
use crate::state::PodState;

/// Reads the hooks of a container's bundle. As with runc, `startContainer` hooks without an environment get the
/// container's.
pub fn hooks_of(state: &PodState) -> Result<Hooks> {
    #[derive(Deserialize)]
    struct Whole {
        #[serde(default)]
        hooks: Hooks,
        #[serde(default)]
        process: OwnEnvironment,
    }
    #[derive(Default, Deserialize)]
    struct OwnEnvironment {
        #[serde(default)]
        env: Vec<String>,
    }
    let path = state.oci.clone().unwrap_or_default().bundle.join("config.json");
    let text = fs::read(&path).with_context(|| format!("read bundle {}", path.display()))?;
    let mut whole: Whole =
        oci::json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
    for hook in &mut whole.hooks.start_container {
        hook.env.get_or_insert_with(|| whole.process.env.clone());
    }
    Ok(whole.hooks)
}

/// Returns the state that hooks get on stdin.
pub fn bytes_of(state: &PodState) -> Vec<u8> {
    state_json(state).to_string().into_bytes()
}

/// Runs the hooks that precede a container's creation.
pub fn run_first(hooks: &Hooks, state: &PodState, environment: &Environment) -> Result<(), HookError> {
    let all: [(_, &[Hook]); 3] = [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("createContainer", &hooks.create_container),
    ];
    all.into_iter().try_for_each(|(kind, hooks)| hooks::run(kind, hooks, &bytes_of(state), environment))
}

/// Runs the hooks after a container's end. "If any poststop hook fails, the runtime MUST log a warning, but the
/// remaining hooks and lifecycle continue" (runtime.md, "Lifecycle").
pub fn run_last(hooks: &[Hook], state: &PodState, environment: &Environment) {
    for hook in hooks {
        if let Err(error) = hooks::run("poststop", std::slice::from_ref(hook), &bytes_of(state), environment)
        {
            log::warn!("{:#}", anyhow::Error::from(error));
        }
    }
}
