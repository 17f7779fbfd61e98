//! Invalid input: `vmm run` prints one line with step, operand and cause, and exits with 125.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tests::{Bundle, Initrd, Running, check_output, program};

#[test]
fn a_bundle_without_a_configuration_is_an_error() {
    let dir = tempfile::TempDir::new().unwrap();
    let mut command = Command::new(program());
    command.arg("run").arg(dir.path());
    Running::start(command).finish().code(125).says(&["config.json", "No such file or directory"]);
}

#[test]
fn invalid_json_is_reported_with_line_and_column() {
    let bundle = Bundle::sh("true");
    let mut command = bundle.command();
    fs::write(bundle.path().join("config.json"), "{\n  \"ociVersion\": \"1.0.2\",\n  oops\n}").unwrap();
    command.env("LC_ALL", "C");
    Running::start(command).finish().code(125).says(&["config.json", "line 3 column 3"]);
}

#[test]
fn a_missing_root_or_a_file_as_root_is_an_error() {
    let bundle = Bundle::sh("true").with(|c| c["root"]["path"] = json!("no-such-root"));
    bundle.run().code(125).says(&["no-such-root", "No such file or directory"]);
    let bundle = Bundle::sh("true").with(|c| c["root"]["path"] = json!("config.json"));
    bundle.run().code(125).says(&["config.json", "not a directory"]);
}

#[test]
fn an_unsupported_field_is_refused_by_its_path() {
    let refused = |path: &str, change: fn(&mut serde_json::Value)| {
        Bundle::sh("true").with(change).run().code(125).says(&[path]);
    };
    refused("linux.intelRdt", |c| c["linux"]["intelRdt"] = json!({"closID": "a"}));
    refused("linux.namespaces", |c| {
        let all = c["linux"]["namespaces"].as_array_mut().unwrap();
        all.push(json!({"type": "ipc", "path": "/proc/1/ns/ipc"}));
    });
    refused("mounts", |c| {
        let all = c["mounts"].as_array_mut().unwrap();
        all.push(json!({"destination": "/x", "type": "nosuchfs", "source": "x"}));
    });
    refused("process.args", |c| c["process"]["args"] = json!([]));
}

#[test]
fn a_missing_kernel_or_another_file_as_kernel_is_an_error() {
    let bundle = Bundle::sh("true").flag("--kernel").flag("/etc/passwd");
    bundle.run().code(125).says(&["/etc/passwd", "kernel"]);
    let bundle = Bundle::sh("true").flag("--kernel").flag("/no/such/kernel");
    bundle.run().code(125).says(&["/no/such/kernel", "No such file or directory"]);
}

#[test]
fn too_little_memory_is_refused() {
    Bundle::sh("true").flag("--memory").flag("8").run().code(125).says(&["memory"]);
}

#[test]
fn a_guest_s_panic_is_reported_with_the_kernel_s_message() {
    let bundle = Bundle::sh("echo c > /proc/sysrq-trigger").with(|c| {
        c["linux"]["readonlyPaths"] = json!([]);
        c["linux"]["maskedPaths"] = json!([]);
    });
    bundle.run().code(125).says(&["panic", "sysrq"]);
}

#[test]
fn an_agent_that_never_answers_ends_the_run_at_the_deadline() {
    // Instead of the agent, PID 1 is busybox as `sleep`.
    let initrd = Initrd::new(Path::new("/bin/busybox"), "sleep");
    let bundle = Bundle::sh("true").flag("--initrd").flag(initrd.path());
    let bundle = bundle.flag("--cmdline").flag("rdinit=/sleep -- 1000");
    let mut command = bundle.command();
    command.env("VMM_AGENT_TIMEOUT", "10");
    Running::start(command).finish().code(125).says(&["agent"]);
}

#[test]
fn a_missing_dev_kvm_or_one_without_permission_is_an_error() {
    let bundle = Bundle::sh("true");
    let missing = "mount -t tmpfs none /dev && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", missing, "sh"]).arg(program()).arg("run").arg(bundle.path());
    bundle.write();
    Running::start(command).finish().code(125).says(&["/dev/kvm", "No such file or directory"]);
    check_output(Command::new("chmod").arg("755").arg(bundle.path()));
    // A device of its own, because other tests need the host's.
    let forbidden = "mount -t tmpfs none /dev && mknod -m 600 /dev/kvm c 10 232 && mknod -m 666 /dev/null c 1 3 && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args([
        "-m",
        "sh",
        "-c",
        forbidden,
        "sh",
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
    ]);
    command.arg(program()).arg("run").arg(bundle.path());
    Running::start(command).finish().code(125).says(&["/dev/kvm", "Permission denied"]);
}

#[test]
fn check_accepts_the_kvm_of_this_host() {
    let mut command = Command::new(program());
    command.arg("check");
    let run = Running::start(command).finish().code(0);
    assert!(run.text().contains("/dev/kvm"), "{run}");
}
