//! What bad input gets: one line that names step, operand and cause, exit code 125, and nothing left behind.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tests::{Bundle, Initrd, Running, check_output, program};

#[test]
fn no_configuration() {
    let dir = tempfile::TempDir::new().unwrap();
    let mut command = Command::new(program());
    command.arg("run").arg(dir.path());
    Running::start(command).finish().code(125).says(&["config.json", "No such file or directory"]);
}

#[test]
fn broken_json_is_told_by_line_and_column() {
    let bundle = Bundle::sh("true");
    let mut command = bundle.command();
    fs::write(bundle.path().join("config.json"), "{\n  \"ociVersion\": \"1.0.2\",\n  oops\n}").unwrap();
    command.env("LC_ALL", "C");
    Running::start(command).finish().code(125).says(&["config.json", "line 3 column 3"]);
}

#[test]
fn a_missing_or_wrong_root() {
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
    refused("linux.uidMappings", |c| {
        c["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    });
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
fn a_kernel_that_is_none() {
    let bundle = Bundle::sh("true").flag("--kernel").flag("/etc/passwd");
    bundle.run().code(125).says(&["/etc/passwd", "kernel"]);
    let bundle = Bundle::sh("true").flag("--kernel").flag("/no/such/kernel");
    bundle.run().code(125).says(&["/no/such/kernel", "No such file or directory"]);
}

#[test]
fn too_little_memory() {
    Bundle::sh("true").flag("--memory").flag("8").run().code(125).says(&["memory"]);
}

#[test]
fn a_guest_that_panics_shows_its_last_words() {
    let bundle = Bundle::sh("echo c > /proc/sysrq-trigger").with(|c| {
        c["linux"]["readonlyPaths"] = json!([]);
        c["linux"]["maskedPaths"] = json!([]);
    });
    bundle.run().code(125).says(&["panic", "sysrq"]);
}

#[test]
fn an_agent_that_never_answers_meets_the_deadline() {
    // An init that is no agent: busybox under the name of its applet, which sleeps.
    let initrd = Initrd::new(Path::new("/bin/busybox"), "sleep");
    let bundle = Bundle::sh("true").flag("--initrd").flag(initrd.path());
    let bundle = bundle.flag("--cmdline").flag("rdinit=/sleep -- 1000");
    let mut command = bundle.command();
    command.env("VMM_AGENT_TIMEOUT", "10");
    Running::start(command).finish().code(125).says(&["agent"]);
}

#[test]
fn no_kvm_and_no_permission() {
    let bundle = Bundle::sh("true");
    let missing = "mount -t tmpfs none /dev && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", missing, "sh"]).arg(program()).arg("run").arg(bundle.path());
    drop(bundle.command());
    Running::start(command).finish().code(125).says(&["/dev/kvm", "No such file or directory"]);
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(program()).arg("run");
    check_output(Command::new("chmod").arg("755").arg(bundle.path()));
    check_output(Command::new("chmod").args(["600", "/dev/kvm"]));
    command.arg(bundle.path());
    Running::start(command).finish().code(125).says(&["/dev/kvm", "Permission denied"]);
}

#[test]
fn check_finds_this_kvm_fit() {
    let mut command = Command::new(program());
    command.arg("check");
    let run = Running::start(command).finish().code(0);
    assert!(run.text().contains("/dev/kvm"), "{run}");
}
