//! What a container cannot reach, whatever it may: the agent, its ports, its tree.

use serde_json::json;
use tests::Bundle;

/// Every right that a container engine's privileged container has.
fn privileged(script: &str) -> Bundle {
    Bundle::sh(script).with(|c| {
        let more = [
            "CAP_DAC_READ_SEARCH",
            "CAP_NET_ADMIN",
            "CAP_SYSLOG",
            "CAP_SYS_ADMIN",
            "CAP_SYS_BOOT",
            "CAP_SYS_PTRACE",
            "CAP_SYS_RAWIO",
        ];
        for set in ["bounding", "effective", "permitted"] {
            c["process"]["capabilities"][set].as_array_mut().unwrap().extend(more.map(|name| json!(name)));
        }
        c["linux"]["maskedPaths"] = json!([]);
        c["linux"]["readonlyPaths"] = json!([]);
    })
}

/// The kernel has port 0 for its console, the agent the two others.
#[test]
fn the_agent_s_ports_cannot_be_opened() {
    let script = "mkdir /tmp/dev; mount -t devtmpfs none /tmp/dev; ls /tmp/dev | grep vport
        major=$(awk '/virtio-ports/ {print $1}' /proc/devices)
        for minor in 0 1 2; do mknod /tmp/p c $major $minor; (: <> /tmp/p) 2>&1 && echo opened; rm /tmp/p; done";
    let expected = "vport0p0\nvport0p1\nvport0p2\n\
        sh: can't create /tmp/p: No such device or address\n\
        sh: can't create /tmp/p: Device or resource busy\n\
        sh: can't create /tmp/p: Device or resource busy\n";
    let bundle = privileged(script).mount(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}));
    bundle.run().stdout(expected);
}

#[test]
fn the_machine_s_memory_and_ports_have_no_device() {
    let script =
        "for minor in 1 2 4; do mknod /dev/x c 1 $minor; (: < /dev/x) 2>&1 && echo opened; rm /dev/x; done";
    let expected = "sh: can't open /dev/x: No such device or address\n".repeat(3);
    privileged(script).run().stdout(&expected);
}

#[test]
fn the_machine_s_ports_are_not_a_container_s() {
    Bundle::guest("ports").run().code(0).stdout("ok\n");
}

#[test]
fn process_1_s_root_is_the_container_s_own_or_nobody_s() {
    let script = "ls /proc/1/root/run 2>&1; cat /proc/1/comm; ls -A /proc/1/root/ | wc -l; \
                  for p in /proc/[0-9]*; do readlink $p/exe; done | sort -u; ls -d /proc/[0-9]*/root/init 2>/dev/null";
    // The shell has its own process ids: it is process 1 itself.
    let run = privileged(script).run();
    assert!(run.text().starts_with("ls: /proc/1/root/run: No such file or directory\nsh\n"), "{run}");
    assert!(run.text().ends_with("\n/bin/busybox"), "{run}");
    // It shares the pod's: process 1 holds them, with an empty root.
    let run = privileged(script).share("pid").run();
    let expected = "ls: /proc/1/root/run: No such file or directory\npod\n0\n/bin/busybox";
    assert!(run.text().starts_with(expected), "{run}");
    assert!(!run.text().contains("/init\n/"), "{run}");
}

#[test]
fn the_share_mounted_again_is_still_read_only() {
    // The kernel gives what it has mounted of the share already: the container's own root.
    let bundle = privileged("mount -t virtiofs share /mnt; ls /mnt/bin/busybox; touch /mnt/x; mkdir /mnt/d; echo x > /mnt/etc/passwd")
        .with(|c| c["root"]["readonly"] = json!(true));
    let run = bundle.run().stdout("/mnt/bin/busybox\n");
    let errors = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(errors.matches("Read-only file system").count(), 3, "{run}");
    assert!(!bundle.rootfs().join("x").exists() && !bundle.rootfs().join("d").exists());
}
