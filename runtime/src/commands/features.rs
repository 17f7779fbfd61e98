//! `vmm features`: the supported parts of config.json in the form of the runtime specification (features.md). The
//! values come from the tables by which bundles are checked.

use std::io::Write;

use anyhow::{Context, Result};
use host::confine::cores::Cores;
use host::confine::{has_filters, has_landlock};
use oci::OCI_VERSION;
use oci::mount_options;
use oci::refusals;
use oci::spec::Spec;
use plan::{capabilities, seccomp};
use serde_json::{Value, json};

/// The oldest supported version of the specification.
const OCI_VERSION_MIN: &str = "1.0.0";
/// The specification's hooks (config.md, "POSIX-platform Hooks").
const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Writes the features to `to` as JSON.
pub fn features(mut to: impl Write) -> Result<()> {
    let mut write = || -> Result<()> {
        serde_json::to_writer_pretty(&mut to, &document())?;
        Ok(writeln!(to)?)
    };
    write().context("write the features")
}

fn document() -> Value {
    json!({
        "ociVersionMin": OCI_VERSION_MIN,
        "ociVersionMax": OCI_VERSION,
        "hooks": HOOKS.into_iter().filter(|name| honours_hook(name)).collect::<Vec<_>>(),
        "mountOptions": sorted(mount_options::words().filter(|word| !refusals::MOUNT_OPTIONS.contains(word))),
        "linux": {
            "namespaces": sorted(refusals::NAMESPACES.into_iter()),
            "capabilities": capabilities::names().collect::<Vec<_>>(),
            "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true },
            "seccomp": {
                "enabled": true,
                "actions": seccomp::actions().collect::<Vec<_>>(),
                "operators": seccomp::operators().collect::<Vec<_>>(),
                "archs": seccomp::ARCHITECTURES,
                "knownFlags": sorted(seccomp::flag_names()),
                "supportedFlags": sorted(seccomp::flag_names()),
            },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": false } },
            "netDevices": { "enabled": true },
        },
        "annotations": {
            "vmm.version": env!("CARGO_PKG_VERSION"),
            "vmm.commit": option_env!("VMM_COMMIT").unwrap_or("unknown"),
            "vmm.checkpoint.enabled": "false",
            // Layers of the confinement that this host does not have are missing in every machine's process.
            "vmm.isolation.seccomp": has_filters().to_string(),
            "vmm.isolation.landlock": has_landlock().to_string(),
            "vmm.isolation.coreScheduling": (Cores::of_host() != Cores::Unscheduled).to_string(),
        },
        "potentiallyUnsafeConfigAnnotations": [],
    })
}

/// Whether a bundle with such a hook is accepted.
fn honours_hook(name: &str) -> bool {
    let spec = json!({ "ociVersion": OCI_VERSION, "hooks": { name: [{ "path": "/hook" }] } });
    let spec: Spec = serde_json::from_value(spec).expect("the specification's own form");
    refusals::check(&spec).is_ok()
}

fn sorted(words: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
    let mut words: Vec<_> = words.collect();
    words.sort_unstable();
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci::spec::seccomp::Seccomp;

    fn words(list: &Value) -> Vec<&str> {
        list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
    }

    #[test]
    fn named_features_are_supported() {
        let mut text = Vec::new();
        features(&mut text).unwrap();
        let document: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(document["ociVersionMax"], OCI_VERSION);
        let linux = &document["linux"];
        let (actions, operators) =
            (words(&linux["seccomp"]["actions"]), words(&linux["seccomp"]["operators"]));
        assert_eq!((actions.len(), operators.len()), (8, 7));
        for action in actions {
            let args: Vec<_> = operators.iter().map(|op| json!({"index": 0, "value": 1, "op": op})).collect();
            let profile: Seccomp = serde_json::from_value(json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": linux["seccomp"]["archs"],
                "flags": linux["seccomp"]["supportedFlags"],
                "syscalls": [{"names": ["read"], "action": action, "args": args}],
            }))
            .unwrap();
            seccomp::compile(&profile).unwrap_or_else(|error| panic!("{action}: {error}"));
        }
        let namespaces: Vec<_> =
            words(&linux["namespaces"]).into_iter().map(|kind| json!({"type": kind})).collect();
        let mount = json!({"destination": "/x", "type": "tmpfs", "options": document["mountOptions"]});
        let spec = json!({"ociVersion": "1.0.0", "linux": {"namespaces": namespaces}, "mounts": [mount]});
        refusals::check(&serde_json::from_value(spec).unwrap()).unwrap();
    }

    #[test]
    fn the_host_s_layers_of_isolation_are_named() {
        let annotations = &document()["annotations"];
        for layer in ["seccomp", "landlock", "coreScheduling"] {
            let value = annotations[format!("vmm.isolation.{layer}")].as_str().unwrap();
            assert!(["true", "false"].contains(&value), "{layer}: {value}");
        }
        assert_eq!(annotations["vmm.isolation.seccomp"], has_filters().to_string());
    }

    #[test]
    fn mount_options_are_runc_s() {
        let document = document();
        let options = words(&document["mountOptions"]);
        assert_eq!(options.len(), 62);
        for option in ["ro", "rbind", "rshared", "rro", "tmpcopyup", "nosymfollow"] {
            assert!(options.contains(&option), "{option}");
        }
        assert_eq!(document["linux"]["capabilities"][21], "CAP_SYS_ADMIN");
    }
}
