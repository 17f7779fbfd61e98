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
    images::import_nested(engine);
    let script = "exec 2>/tmp/log; containerd >&2 & until ctr version >&2; do kill -0 $!; done; echo ready
        exec dockerd --storage-driver overlay2 --containerd /run/containerd/containerd.sock >&2";
    let flags = ["--privileged", "-m", "1g", "--mount", "type=tmpfs,destination=/var/lib/docker"];
    engine.start_container("outer", &[&flags[..], &["nested", "sh", "-ec", script]].concat(), "ready");
    // Each step is a command of its own, because an emulated host is slow and a command has a deadline.
    let inner = |script: &str| engine.ok(&["exec", "outer", "sh", "-ec", script]);
    inner("until docker info >/dev/null 2>&1; do kill -0 1; done");
    assert_eq!(inner("docker info -f '{{.Driver}} {{.CgroupVersion}}'"), "overlay2 2");
    inner("tar -C / -c bin/busybox | docker import - box");
    assert_eq!(inner("docker run --rm box /bin/busybox echo ran"), "ran");
    inner("docker run -d box /bin/busybox nc -l -p 80 -e /bin/busybox echo through the bridge");
    // Not that of the outer engine's bridge.
    let address = inner("docker inspect -f '{{.NetworkSettings.IPAddress}}' $(docker ps -lq)");
    assert_eq!(inner(&format!("until busybox nc {address} 80; do :; done")), "through the bridge");
    let file = "FROM box\\nRUN [\"/bin/busybox\", \"touch\", \"/made\"]\\n";
    inner(&format!("printf '{file}' | DOCKER_BUILDKIT=0 docker build -t made -"));
    assert_eq!(inner("docker run --rm made /bin/busybox ls /made"), "/made");
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
    let inner = |words: &[&str]| engine.run(&[&["exec", "init"], words].concat());
    // Fails until systemd answers, and while it starts units.
    let mut state = inner(&["systemctl", "is-system-running", "--wait"]).text();
    while !["running", "degraded"].contains(&state.as_str()) {
        state = inner(&["systemctl", "is-system-running"]).text();
    }
    let failed = inner(&["systemctl", "--failed", "--plain", "--no-legend"]).text();
    assert!(!failed.contains("journald"), "{failed}");
    inner(&["systemd-run", "--wait", "sh", "-c", "echo unit >/tmp/unit"]).code(0);
    assert_eq!(inner(&["cat", "/tmp/unit"]).text(), "unit");
    engine.ok(&["stop", "-t", "60", "init"]);
    assert_ne!(engine.inspect("init", ".State.ExitCode"), "137");
}
