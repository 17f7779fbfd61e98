//! A container's state as the OCI commands show it.

use host::subordinate;
use oci::OCI_VERSION;
use serde_json::{Value, json};

use crate::state::PodState;

/// A container's status as the specification names it.
pub fn status(state: &PodState) -> &str {
    match state.container().map(|container| container.status.as_str()) {
        _ if state.status == "creating" || state.status == "stopped" => &state.status,
        Some("waiting" | "starting") => "created",
        Some(status) => status,
        None => "creating",
    }
}

/// Returns a container's state as the runtime specification defines it (`runtime.md`, "State"), with runc's additions.
pub fn state_json(state: &PodState) -> Value {
    let oci = state.oci.clone().unwrap_or_default();
    let status = status(state);
    json!({
        "ociVersion": OCI_VERSION,
        "id": state.id,
        "pid": if status == "stopped" { 0 } else { state.pid },
        "status": status,
        "bundle": oci.bundle,
        "rootfs": oci.rootfs,
        "created": oci.created,
        "annotations": oci.annotations,
        "owner": owner(oci.owner),
    })
}

/// Returns a user's name, or `#` and the number if the user has none.
fn owner(uid: u32) -> String {
    subordinate::user_name(uid).unwrap_or_else(|| format!("#{uid}"))
}
