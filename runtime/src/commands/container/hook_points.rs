//! The hooks of a container's life: when each kind runs, and what it gets on stdin.

use std::fs;

use anyhow::{Context, Result};
use host::hooks::{self, HookError, Variables};
use oci::spec::{Hook, Hooks};
use serde::Deserialize;

use super::status::state_json;
use crate::state::PodState;

/// Reads the hooks of a container's bundle.
pub fn hooks_of(state: &PodState) -> Result<Hooks> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Bundle {
        hooks: Hooks,
        process: Process,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Process {
        env: Vec<String>,
    }
    let path = state.oci.clone().unwrap_or_default().bundle.join("config.json");
    let text = fs::read(&path).with_context(|| format!("read bundle {}", path.display()))?;
    let bundle: Bundle = oci::json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
    Ok(with_environment(bundle.hooks, &bundle.process.env))
}

/// Gives `startContainer` hooks without an environment the container's, as runc does.
pub fn with_environment(mut hooks: Hooks, env: &[String]) -> Hooks {
    for hook in &mut hooks.start_container {
        hook.env.get_or_insert_with(|| env.to_owned());
    }
    hooks
}

/// Returns the state that hooks get on stdin.
pub fn bytes_of(state: &PodState) -> Vec<u8> {
    state_json(state).to_string().into_bytes()
}

/// Runs the hooks that precede a container's creation.
pub fn run_first(hooks: &Hooks, state: &PodState, environment: &Variables) -> Result<(), HookError> {
    let all: [(_, &[Hook]); 3] = [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("createContainer", &hooks.create_container),
    ];
    all.into_iter().try_for_each(|(kind, hooks)| hooks::run(kind, hooks, &bytes_of(state), environment))
}

/// Runs the hooks after a container's end. "If any poststop hook fails, the runtime MUST log a warning, but the
/// remaining hooks and lifecycle continue" (runtime.md, "Lifecycle").
pub fn run_last(hooks: &[Hook], state: &PodState, environment: &Variables) {
    for hook in hooks {
        if let Err(error) = hooks::run("poststop", std::slice::from_ref(hook), &bytes_of(state), environment)
        {
            log::warn!("{:#}", anyhow::Error::from(error));
        }
    }
}
