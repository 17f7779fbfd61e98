//! config.json as runc reads it: its own starting point, null for optional fields, fields without effect.

use serde_json::{Value, json};
use tests::Bundle;

const SCRIPT: &str = "echo started; grep CapAmb /proc/self/status | cut -f2";

/// A bundle with the config.json that `runc spec` of version 1.1 writes.
fn of_runc(text: &str) -> Bundle {
    let mut bundle = Bundle::sh(SCRIPT);
    let args = bundle.config["process"]["args"].take();
    bundle.config = serde_json::from_str(text).unwrap();
    bundle.config["process"]["terminal"] = json!(false);
    bundle.config["process"]["args"] = args;
    bundle
}

#[test]
fn the_config_json_of_runc_spec_runs_and_a_warning_names_what_it_does_not_get() {
    let run = of_runc(include_str!("../../runtime/plan/src/tests/engines/runc-spec.json")).run();
    let run = run.code(0).stdout("started\n0000000000000000\n");
    run.says(&["can't raise ambient capability CAP_KILL", "CAP_AUDIT_WRITE", "CAP_NET_BIND_SERVICE"]);
}

#[test]
fn the_config_json_of_runc_spec_rootless_runs() {
    let text = include_str!("../../runtime/plan/src/tests/engines/runc-spec-rootless.json");
    of_runc(text).run().code(0).stdout("started\n0000000000000000\n");
}

#[test]
fn null_is_the_same_as_a_missing_field() {
    let bundle = Bundle::sh("echo started; hostname").with(|c| {
        let process = &mut c["process"];
        for field in ["consoleSize", "user", "capabilities", "rlimits", "noNewPrivileges", "apparmorProfile"]
        {
            process[field] = Value::Null;
        }
        for field in ["resources", "devices", "seccomp", "maskedPaths", "readonlyPaths", "cgroupsPath"] {
            c["linux"][field] = Value::Null;
        }
        for mount in c["mounts"].as_array_mut().unwrap() {
            if mount["destination"] == "/proc" {
                mount["options"] = Value::Null;
            }
        }
        for field in ["hooks", "annotations", "domainname", "vm", "solaris"] {
            c[field] = Value::Null;
        }
    });
    bundle.run().code(0).stdout("started\nvmm\n").stderr("");
}

#[test]
fn a_field_without_effect_is_named_and_the_container_runs() {
    let bundle = Bundle::sh("echo started").with(|c| {
        c["linux"]["resources"]["blockIO"] = json!({"weight": 100});
        c["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
    });
    let run = bundle.run().code(0).stdout("started\n");
    run.says(&["linux.resources.blockIO: no effect: ", "linux.memoryPolicy: no effect: "]);
}
