//! Settings of `docker run`: names, user, environment, limits, kernel parameters, namespaces.

use crate::case::{Case, case};
use crate::engine::Engine;

pub const CASES: &[Case] = &[
    case!(names_and_hosts).core(),
    case!(user_folder_and_environment).core(),
    case!(read_only_root).core(),
    case!(tmpfs_and_shared_memory),
    case!(resource_limits_of_processes),
    case!(kernel_parameters),
    case!(entrypoint_and_labels),
    case!(namespaces_of_its_own),
    case!(host_name_of_the_host),
    case!(host_pids_are_refused).refused("a guest has its own kernel: it cannot see the host's processes"),
    case!(host_ipc_is_refused).refused("a guest has its own kernel: it cannot use the host's IPC objects"),
];

fn names_and_hosts(engine: &Engine) {
    let names = ["--hostname", "web", "--domainname", "example.org", "--add-host", "db:192.0.2.7"];
    let dns = ["--dns", "192.0.2.53", "--dns-search", "example.org", "--dns-option", "ndots:3"];
    let script =
        "hostname; cat /proc/sys/kernel/domainname /etc/resolv.conf; grep db /etc/hosts; cat /etc/hostname";
    let text = engine.sh(&[names, dns].concat(), script);
    for line in [
        "web",
        "example.org",
        "nameserver 192.0.2.53",
        "search example.org",
        "options ndots:3",
        "192.0.2.7\tdb",
    ] {
        assert!(text.lines().any(|one| one == line), "no {line:?} in {text}");
    }
}

fn user_folder_and_environment(engine: &Engine) {
    let text =
        engine.sh(&["-u", "ann", "-w", "/srv/new", "-e", "A=b c"], "id -un; pwd; echo $A; echo $HOSTNAME");
    assert!(text.starts_with("ann\n/srv/new\nb c\n"), "{text}");
    let added = ["run", "--rm", "-u", "5:6", "--group-add", "77", "box", "id"];
    let text = engine.ok(&added);
    assert!(text.starts_with("uid=5 gid=6 groups=") && text.contains("77"), "{text}");
}

fn read_only_root(engine: &Engine) {
    let script = "touch /f; echo $?; touch /run/f; echo $?; touch /dev/shm/f; echo $?";
    let done =
        engine.run(&["run", "--rm", "--read-only", "--tmpfs", "/run", "box", "sh", "-c", script]).code(0);
    assert_eq!(done.text(), "1\n0\n0");
    assert!(done.to_string().contains("Read-only file system"), "{done}");
}

fn tmpfs_and_shared_memory(engine: &Engine) {
    assert_eq!(
        engine.sh(
            &["--tmpfs", "/t:size=4m,mode=1770", "--shm-size", "8m"],
            "df -k /t /dev/shm | awk '/tmpfs|shm/ {print $2}'; stat -c %a /t"
        ),
        "4096\n8192\n1770"
    );
}

fn resource_limits_of_processes(engine: &Engine) {
    assert_eq!(
        engine.sh(
            &["--ulimit", "nofile=321:654", "--ulimit", "core=0", "--oom-score-adj", "300"],
            "ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj"
        ),
        "321\n654\n0\n300"
    );
}

fn kernel_parameters(engine: &Engine) {
    assert_eq!(
        engine.sh(
            &["--sysctl", "net.ipv4.ip_unprivileged_port_start=99", "--sysctl", "kernel.shmmax=77777"],
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmax"
        ),
        "99\n77777"
    );
}

fn entrypoint_and_labels(engine: &Engine) {
    engine.ok(&[
        "create",
        "--name",
        "tagged",
        "--entrypoint",
        "/bin/echo",
        "--label",
        "a=b",
        "box",
        "x",
        "y",
    ]);
    engine.run(&["start", "-a", "tagged"]).code(0).stdout("x y\n");
    assert_eq!(engine.inspect("tagged", ".Config.Labels.a"), "b");
}

fn namespaces_of_its_own(engine: &Engine) {
    let text = engine.sh(
        &["--cgroupns", "private", "--ipc", "private"],
        "echo $$; cat /proc/self/cgroup; ls /proc | grep -c '^[0-9]'",
    );
    assert!(text.starts_with("1\n0::/\n"), "{text}");
}

fn host_name_of_the_host(engine: &Engine) {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("read the host's name");
    assert_eq!(engine.ok(&["run", "--rm", "--uts", "host", "box", "hostname"]), host.trim());
}

fn host_pids_are_refused(engine: &Engine) {
    let done = engine.run(&["run", "--rm", "--pid", "host", "box", "true"]);
    expect_refusal(engine, &done, "pid");
}

fn host_ipc_is_refused(engine: &Engine) {
    let done = engine.run(&["run", "--rm", "--ipc", "host", "box", "true"]);
    expect_refusal(engine, &done, "ipc");
}

/// Asserts that the command succeeds with runc, and that `vmm` refuses it with a message that contains `what`.
#[track_caller]
pub fn expect_refusal(engine: &Engine, done: &tests::Finished, what: &str) {
    if engine.is_vm() {
        assert_eq!(done.status.code(), Some(125), "{done}");
        assert!(String::from_utf8_lossy(&done.stderr).to_lowercase().contains(what), "no {what:?} in {done}");
    } else {
        assert_eq!(done.status.code(), Some(0), "{done}");
    }
}
