//! What a container cannot reach even with all privileges: the agent, its ports, its file tree.

mod attempts;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use tests::Bundle;

use crate::lifecycle::{Container, reap};
use crate::pods::Pod;

/// Exec processes that are started while a container inspects them.
const EXECS: usize = 25;

/// A bundle with the privileges of a container engine's privileged container.
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
        c["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    })
}

/// Mounts a tmpfs at /tmp, in which device nodes can be created and opened.
fn with_tmp(bundle: Bundle) -> Bundle {
    bundle.mount(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}))
}

/// Sets device rules, after one that denies all devices.
fn with_rules(bundle: Bundle, rules: &[Value]) -> Bundle {
    bundle.with(|c| {
        let all = json!({"allow": false, "access": "rwm"});
        c["linux"]["resources"]["devices"] = [&[all], rules].concat().into();
    })
}

/// Makes /sys/fs/cgroup writable.
fn with_cgroup(bundle: Bundle) -> Bundle {
    bundle.with(|c| {
        let mounts = c["mounts"].as_array_mut().expect("the bundle has mounts");
        let cgroup = mounts.iter_mut().find(|mount| mount["destination"] == "/sys/fs/cgroup");
        cgroup.expect("the bundle mounts its cgroup")["options"] = json!(["rw"]);
    })
}

/// Port 0 is the kernel's console; the agent uses the other two.
#[test]
fn the_agent_s_ports_cannot_be_opened() {
    let script = "mkdir /tmp/dev; mount -t devtmpfs none /tmp/dev; ls /tmp/dev | grep vport
        major=$(awk '/virtio-ports/ {print $1}' /proc/devices)
        for minor in 0 1 2; do mknod /tmp/p c $major $minor; (: <> /tmp/p) 2>&1 && echo opened; rm /tmp/p; done";
    let expected = "vport0p0\nvport0p1\nvport0p2\n\
        sh: can't create /tmp/p: No such device or address\n\
        sh: can't create /tmp/p: Device or resource busy\n\
        sh: can't create /tmp/p: Device or resource busy\n";
    with_tmp(privileged(script)).run().stdout(expected);
}

#[test]
fn guest_memory_and_io_ports_have_no_device() {
    let script =
        "for minor in 1 2 4; do mknod /dev/x c 1 $minor; (: < /dev/x) 2>&1 && echo opened; rm /dev/x; done";
    let expected = "sh: can't open /dev/x: No such device or address\n".repeat(3);
    privileged(script).run().stdout(&expected);
}

#[test]
fn a_container_cannot_use_io_ports() {
    Bundle::guest("ports").run().code(0).stdout("ok\n");
}

#[test]
fn the_root_of_pid_1_is_the_container_s_or_unreadable() {
    let script = "ls /proc/1/root/run 2>&1; cat /proc/1/comm; ls -A /proc/1/root/ | wc -l; \
                  for p in /proc/[0-9]*; do readlink $p/exe; done | sort -u; ls -d /proc/[0-9]*/root/init 2>/dev/null";
    // With a PID namespace, the shell is PID 1.
    let run = privileged(script).run();
    assert!(run.text().starts_with("ls: /proc/1/root/run: No such file or directory\nsh\n"), "{run}");
    assert!(run.text().ends_with("\n/bin/busybox"), "{run}");
    // With the pod's PID namespace, PID 1 is the pod's process, which no capability can inspect.
    let run = privileged(script).share("pid").run();
    let expected = "ls: /proc/1/root/run: Permission denied\npod\n0\n/bin/busybox";
    assert!(run.text().starts_with(expected), "{run}");
    assert!(!run.text().contains("/init\n/"), "{run}");
}

/// Inspects all other processes in a loop until /stop exists, and reports in /seen what belongs to the agent.
const SPY: &str = r#": > /seen
while [ ! -e /stop ]; do
    for p in /proc/[0-9]*; do
        [ $p = /proc/$$ ] && continue
        for link in root cwd; do [ -e $p/$link/run/share ] && echo $p $link >> /seen; done
        for fd in $p/fd/[3-9] $p/fd/[1-9][0-9]; do [ -e $fd ] && echo $fd >> /seen; done
        read -r text < $p/environ && case "$text" in HOME=/TERM=linux*) echo $p environ >> /seen;; esac
        while read -r text; do
            case "$text" in *" /run/share "*) echo $p mounts >> /seen;; esac
        done < $p/mounts
    done
done 2>/dev/null"#;

#[test]
fn a_starting_exec_process_exposes_nothing_of_the_agent() {
    let container = Container::new(privileged(SPY));
    container.create();
    container.out(&["start", "c"]);
    for exec in 0..EXECS {
        let user = if exec % 2 == 0 { "0" } else { "1000" };
        container.out(&["exec", "--user", user, "c", "true"]);
    }
    assert_eq!(container.out(&["exec", "c", "cat", "/seen"]), "");
}

#[test]
fn an_exec_process_exposes_nothing_of_the_agent_to_other_containers_of_its_pod() {
    let (spy, pod) = (privileged(SPY).share("pid"), Pod::new());
    spy.command();
    let other = pod.container("other", "exec sleep 100000", json!({}));
    pod.detach(json!({"containers": [{"name": "spy", "image": spy.path()}, other]}));
    for _ in 0..EXECS {
        pod.exec_out("other", "true");
    }
    assert_eq!(pod.exec_out("spy", "cat /seen"), "");
}

#[test]
fn the_share_cannot_be_mounted_again() {
    let script = "mount -t virtiofs share /mnt; mount -t 9p -o trans=virtio,version=9p2000.L share /mnt; ls /mnt; ls /bin/busybox";
    let run = privileged(script).run().code(0).stdout("/bin/busybox\n");
    let errors = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(errors.matches("Device or resource busy").count(), 1, "{run}");
    let run = privileged(script).flag("--share").flag("9p").run().code(0).stdout("/bin/busybox\n");
    let errors = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(errors.matches("Device or resource busy").count(), 1, "{run}");
}

#[test]
fn drivers_cannot_be_unbound_from_the_machine_s_devices() {
    let script = "mount -t sysfs sysfs /mnt; cd /mnt/bus
        for bus in virtio platform; do
            for file in $bus/drivers/virtio*/unbind $bus/drivers/virtio*/bind; do
                for device in $(ls $bus/devices); do (echo $device > $file) 2>&1; done
            done
        done | sed 's/.*: //' | sort -u; ls /bin/busybox";
    privileged(script).run().code(0).stdout("Operation not permitted\n/bin/busybox\n");
}

/// The kernel would run a helper of core_pattern outside of the container, with the agent's root.
#[test]
fn the_kernel_runs_no_core_dump_helper_of_a_container() {
    let here = "/../run/share/1-c/rootfs";
    let script = format!(
        "cd /proc/sys/kernel; echo 1 > core_pipe_limit; echo '|{here}/helper' > core_pattern
        cat core_pattern > /pattern; sh -c 'kill -SEGV $$'; echo $? > /code"
    );
    let bundle = Bundle::sh(&script).with(|c| c["linux"]["readonlyPaths"] = json!([]));
    let rootfs = bundle.rootfs();
    fs::write(rootfs.join("helper"), format!("#!{here}/bin/busybox sh\n: > {here}/seen\n")).unwrap();
    fs::set_permissions(rootfs.join("helper"), fs::Permissions::from_mode(0o755)).unwrap();
    let container = Container::new(bundle);
    let pid = container.create();
    container.out(&["start", "c"]);
    assert_eq!(reap(pid), Ok(0));
    assert_eq!(fs::read_to_string(rootfs.join("code")).unwrap(), "139\n");
    assert_eq!(fs::read_to_string(rootfs.join("pattern")).unwrap(), format!("|{here}/helper\n"));
    assert!(!rootfs.join("seen").exists());
}

/// Creates and opens nodes of hvc0, kmsg, hwrng, loop-control, tun and fuse.
const NODES: &str = "for node in '229 0' '1 11' '10 183' '10 237' '10 200' '10 229'; do
        mknod /tmp/x c $node && (: < /tmp/x) 2> /tmp/error && echo $node opens
        grep -q 'Operation not permitted' /tmp/error && echo $node is refused; rm /tmp/x
    done";

#[test]
fn nodes_of_the_guest_s_devices_can_be_created_but_not_opened() {
    let others =
        "; for name in null zero full random urandom pts/ptmx; do : < /dev/$name && echo $name; done";
    let expected = "229 0 is refused\n1 11 is refused\n10 183 is refused\n10 237 is refused\n10 200 is refused\n\
        10 229 is refused\nnull\nzero\nfull\nrandom\nurandom\npts/ptmx\n";
    let bundle = with_tmp(Bundle::sh(&format!("{NODES}{others}")));
    bundle.run().stdout(expected).stderr("");
}

#[test]
fn an_allow_rule_applies_to_its_devices_only() {
    let rule = json!({"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"});
    let fuse = json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229});
    let bundle = with_rules(with_tmp(Bundle::sh(&format!("{NODES}; : <> /dev/fuse && echo fuse"))), &[rule])
        .with(|c| c["linux"]["devices"] = json!([fuse]));
    let expected = "229 0 is refused\n1 11 is refused\n10 183 is refused\n10 237 is refused\n10 200 is refused\n\
        10 229 opens\nfuse\n";
    bundle.run().stdout(expected).stderr("");
    let all = with_tmp(privileged("mknod /tmp/x c 1 11; : < /tmp/x && echo opened"));
    all.run().stdout("opened\n");
}

#[test]
fn a_container_cannot_change_its_device_rules() {
    // It tries a nested cgroup, the files of the controller and a cgroup v1 mount, with all capabilities.
    let script = "cd /sys/fs/cgroup; mkdir a; echo 1 > a/cgroup.procs; echo +devices > cgroup.subtree_control
        for file in devices.allow a/devices.allow; do for rule in a 'c *:* rwm'; do echo $rule > $file; done; done
        mkdir /tmp/v1; mount -t cgroup -o devices devices /tmp/v1
        mknod /tmp/x c 1 11; (: < /tmp/x) || echo refused";
    let run = with_rules(with_cgroup(with_tmp(privileged(script))), &[]).run();
    assert_eq!(run.text(), "refused", "{run}");
    let errors = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(errors.matches("Operation not permitted").count(), 5, "{run}");
    assert_eq!(errors.matches("mount: permission denied").count(), 1, "{run}");
    // A container whose bundle asks for no cgroup namespace has one anyway, and cannot leave its cgroup.
    let script = "cat /proc/self/cgroup; ls -d /sys/fs/cgroup/*/";
    with_cgroup(Bundle::sh(script)).share("cgroup").run().stdout("0::/\n");
}

#[test]
fn device_rules_apply_to_exec_processes_and_survive_an_update() {
    let container = Container::new(with_cgroup(with_tmp(Bundle::sh("exec sleep 100000"))));
    container.create();
    container.out(&["start", "c"]);
    container.out(&["update", "--pids-limit", "50", "c"]);
    let script =
        "mknod /tmp/x c 1 11; (: < /tmp/x) 2>/dev/null || echo refused; rm /tmp/x; mkdir -p /sys/fs/cgroup/a";
    assert_eq!(container.out(&["exec", "c", "sh", "-c", script]), "refused\n");
    assert_eq!(container.out(&["exec", "--cgroup", "a", "c", "sh", "-c", script]), "refused\n");
}
