//! Container engines and an init system in a privileged container.

use crate::case::{Case, case};
use crate::engine::Engine;
use crate::images;

pub const CASES: &[Case] =
    &[case!(docker_runs_and_builds), case!(podman_runs_a_container), case!(systemd_is_process_1)];

/// Runs `script` in a privileged container that has its own file system at `folder`, where overlays can be. Returns its
/// output.
#[track_caller]
fn privileged(engine: &Engine, folder: &str, script: &str) -> String {
    images::import_nested(engine);
    let mount = format!("type=tmpfs,destination={folder}");
    let flags = ["run", "--rm", "--privileged", "-m", "1g", "--mount", &mount];
    engine.ok(&[&flags[..], &["nested", "sh", "-ec", script]].concat())
}

fn docker_runs_and_builds(engine: &Engine) {
    let script = "exec 3>&1 >/tmp/log 2>&1; trap 'test $? = 0 || cat /tmp/log >&3' EXIT
        containerd & until ctr version; do kill -0 $!; done
        dockerd --storage-driver overlay2 --containerd /run/containerd/containerd.sock & until docker info; do kill -0 $!; done
        docker info -f '{{.Driver}} {{.CgroupVersion}}' >&3
        tar -C / -c bin/busybox | docker import - box
        docker run --rm box /bin/busybox echo ran >&3
        docker run -d --name web -p 80:80 box /bin/busybox nc -l -p 80 -e /bin/busybox echo through the bridge
        until busybox nc 172.17.0.2 80 >/tmp/got; do :; done; cat /tmp/got >&3
        printf 'FROM box\\nRUN [\"/bin/busybox\", \"touch\", \"/made\"]\\n' | DOCKER_BUILDKIT=0 docker build -t made -
        docker run --rm made /bin/busybox ls /made >&3";
    let text = privileged(engine, "/var/lib/docker", script);
    assert_eq!(text, "overlay2 2\nran\nthrough the bridge\n/made");
}

fn podman_runs_a_container(engine: &Engine) {
    let script = "tar -C / -c bin/busybox | podman import -q - box >/dev/null 2>/tmp/log || cat /tmp/log
        podman --cgroup-manager cgroupfs run --rm --net none box /bin/busybox echo ran
        podman info -f '{{.Store.GraphDriverName}}'";
    assert_eq!(privileged(engine, "/var/lib/containers", script), "ran\noverlay");
}

fn systemd_is_process_1(engine: &Engine) {
    images::import_nested(engine);
    let flags = ["run", "-d", "--name", "init", "--privileged", "--stop-signal", "SIGRTMIN+3", "-m", "512m"];
    engine.ok(&[&flags[..], &["nested", "/sbin/init"]].concat());
    let wait = "until systemctl is-system-running --wait >/tmp/state 2>/dev/null || test -s /tmp/state; do :; done; cat /tmp/state";
    let state = engine.ok(&["exec", "init", "sh", "-c", wait]);
    let failed = engine.ok(&["exec", "init", "systemctl", "--failed", "--plain", "--no-legend"]);
    assert!(state == "running" || state == "degraded", "{state}");
    assert!(!failed.contains("journald"), "{failed}");
    engine.ok(&["exec", "init", "systemd-run", "--wait", "sh", "-c", "echo unit >/tmp/unit"]);
    assert_eq!(engine.ok(&["exec", "init", "cat", "/tmp/unit"]), "unit");
    engine.ok(&["stop", "-t", "60", "init"]);
    assert_ne!(engine.inspect("init", ".State.ExitCode"), "137");
}
