//! Seccomp profiles.

use serde_json::{Value, json};
use tests::Bundle;

/// A bundle whose profile allows all system calls except for the rules `syscalls`.
fn filtered(bundle: Bundle, no_new_privileges: bool, syscalls: Value) -> Bundle {
    bundle.with(|c| {
        c["process"]["noNewPrivileges"] = json!(no_new_privileges);
        c["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": syscalls,
        });
    })
}

#[test]
fn a_denied_call_fails_with_the_profile_s_errno() {
    for no_new_privileges in [true, false] {
        let script = "mkdir /tmp/a; grep Seccomp: /proc/self/status; kill -USR1 $$ || echo denied; kill -0 $$ && echo allowed";
        let rules = json!([
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]},
        ]);
        let bundle = filtered(Bundle::sh(script), no_new_privileges, rules);
        let run = bundle.run().code(0);
        assert_eq!(run.text(), "Seccomp:\t2\ndenied\nallowed", "{run}");
        let errors = String::from_utf8_lossy(&run.stderr);
        assert!(errors.contains("No space left on device"), "{run}");
    }
}

#[test]
fn a_call_that_kills_ends_the_process_with_sigsys() {
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let rules = json!([{"names": ["mkdir", "mkdirat"], "action": action}]);
        filtered(Bundle::new(&["mkdir", "/tmp/a"]), true, rules).run().code(128 + 31).stdout("").stderr("");
    }
}

#[test]
fn the_filter_covers_the_set_up_only_without_no_new_privileges() {
    let rules = json!([{"names": ["setgroups", "capset"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]);
    let bundle = |no_new_privileges| filtered(Bundle::sh("echo runs"), no_new_privileges, rules.clone());
    bundle(true).run().code(0).stdout("runs\n");
    let run = bundle(false).run().code(125);
    assert!(String::from_utf8_lossy(&run.stderr).contains("set groups: operation not permitted"), "{run}");
}

#[test]
fn a_profile_that_denies_by_default_applies_to_the_program() {
    let bundle = Bundle::sh("cat /proc/self/mountinfo | wc -l").with(|c| {
        c["process"]["noNewPrivileges"] = json!(true);
        c["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": ["execve", "exit_group", "write"], "action": "SCMP_ACT_ALLOW"}],
        });
    });
    // The program is executed, and fails when it first allocates memory.
    let run = bundle.run();
    assert_ne!(run.status.code(), Some(0), "{run}");
    assert_ne!(run.status.code(), Some(125), "{run}");
}
