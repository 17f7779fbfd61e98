//! Privileges of containers: capabilities, seccomp, devices, namespaces.

use std::fs;

use crate::case::{Case, case};
use crate::engine::Engine;
use crate::settings::expect_refusal;

pub const CASES: &[Case] = &[
    case!(capabilities_dropped_and_added).core(),
    case!(seccomp_profiles).core(),
    case!(no_new_privileges),
    case!(privileged),
    case!(devices_of_every_kernel),
    case!(device_rules),
    case!(a_tunnel_of_a_network_administrator),
    case!(devices_of_the_host_are_refused).refused("a guest has none of the host's devices"),
    case!(masked_and_read_only_paths),
    case!(user_namespaces),
];

fn effective(engine: &Engine, flags: &[&str]) -> u64 {
    let mut words = vec!["run", "--rm"];
    words.extend(flags);
    words.extend(["box", "grep", "CapEff", "/proc/self/status"]);
    let line = engine.ok(&words);
    u64::from_str_radix(line.trim_start_matches("CapEff:").trim(), 16).expect("a set of capabilities")
}

fn capabilities_dropped_and_added(engine: &Engine) {
    assert_eq!(effective(engine, &[]), 0xa804_25fb);
    assert_eq!(effective(engine, &["--cap-drop", "ALL", "--cap-add", "NET_ADMIN"]), 1 << 12);
}

fn seccomp_profiles(engine: &Engine) {
    let profile = engine.dir().join("profile.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#;
    fs::write(&profile, text).expect("write the profile");
    let option = format!("seccomp={}", profile.display());
    let done = engine.run(&["run", "--rm", "--security-opt", &option, "box", "mkdir", "/d"]).code(1);
    assert!(done.to_string().contains("Operation not permitted"), "{done}");
    let mode = ["box", "grep", "Seccomp:", "/proc/self/status"];
    let of = |flags: &[&str]| engine.ok(&[&["run", "--rm"], flags, &mode].concat());
    assert_eq!(of(&[]), "Seccomp:\t2");
    assert_eq!(of(&["--security-opt", "seccomp=unconfined"]), "Seccomp:\t0");
}

fn no_new_privileges(engine: &Engine) {
    let words = [
        "run",
        "--rm",
        "--security-opt",
        "no-new-privileges",
        "box",
        "grep",
        "NoNewPrivs",
        "/proc/self/status",
    ];
    assert_eq!(engine.ok(&words), "NoNewPrivs:\t1");
}

fn privileged(engine: &Engine) {
    let script =
        "mount -t tmpfs none /mnt && echo mounted; echo 1 >/proc/sys/net/ipv4/ip_forward && echo set";
    assert_eq!(engine.sh(&["--privileged"], script), "mounted\nset");
}

fn devices_of_every_kernel(engine: &Engine) {
    let script = "head -c 4 /dev/zero | wc -c; head -c 8 /dev/urandom | wc -c; echo x >/dev/null; echo x >/dev/full || echo full; ls /dev/fuse";
    let done = engine.sh(&["--device", "/dev/fuse"], script);
    assert!(done.starts_with("4\n8\n") && done.ends_with("/dev/fuse"), "{done}");
}

fn device_rules(engine: &Engine) {
    // A redirection that fails ends a shell.
    let script = "mknod /dev/f c 10 229 && (: <>/dev/f && echo opened) 2>&1";
    assert!(engine.sh(&[], &format!("{script}; :")).ends_with("Operation not permitted"));
    assert_eq!(engine.sh(&["--device-cgroup-rule", "c 10:229 rw"], script), "opened");
    assert_eq!(engine.sh(&["--device-cgroup-rule", "a *:* rwm"], script), "opened");
}

fn a_tunnel_of_a_network_administrator(engine: &Engine) {
    let script = "tunctl -t t0 >/dev/null && cat /sys/class/net/t0/mtu";
    assert_eq!(engine.sh(&["--device", "/dev/net/tun", "--cap-add", "NET_ADMIN"], script), "1500");
}

fn devices_of_the_host_are_refused(engine: &Engine) {
    let done = engine.run(&["run", "--rm", "--device", "/dev/kvm", "box", "true"]);
    expect_refusal(engine, &done, "/dev/kvm");
}

fn masked_and_read_only_paths(engine: &Engine) {
    let script = "wc -c </proc/keys; echo 1 >/proc/sys/kernel/sysrq || echo read-only; ls /proc/acpi /sys/firmware | wc -l";
    let text = engine.sh(&[], script);
    assert!(text.starts_with("0\nread-only\n"), "{text}");
}

fn user_namespaces(engine: &Engine) {
    // Remapping is a setting of the daemon, which a container can turn off for itself.
    assert_eq!(
        engine
            .ok(&["run", "--rm", "--userns", "host", "box", "cat", "/proc/self/uid_map"])
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["0", "0", "4294967295"]
    );
}
