//! What a guest can reach and create on the host through its share.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tests::{Bundle, check_output};

/// Creates device nodes in the share and prints those that are allowed.
const MAKE_NODES: &str = "cd /mnt; mkfifo p; \
    for n in 'disk b 8 0' 'mem c 1 1' 'null c 1 3' 'whiteout c 0 0' 'loop b 7 3'; do mknod $n 2>&1 && echo $n; done";

#[track_caller]
fn check_nodes(bundle: &Bundle, allowed: &[&str]) {
    let run = bundle.run();
    let text = run.text();
    let (refused, printed): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.contains(": "));
    assert_eq!(printed, allowed, "{run}");
    assert_eq!(refused.len(), 5 - allowed.len(), "{run}");
    assert!(refused.iter().all(|line| line.ends_with("Operation not permitted")), "{run}");
    let names = allowed.iter().map(|node| node.split(' ').next().unwrap_or_default());
    let mut expected: Vec<&str> = names.chain(["p"]).collect();
    expected.sort_unstable();
    let left = fs::read_dir(bundle.rootfs().join("mnt")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut left: Vec<_> = left.collect();
    left.sort();
    assert_eq!(left, expected);
}

#[test]
fn a_guest_can_create_null_and_whiteout_device_nodes_only() {
    for protocol in ["--share=virtiofs", "--share=9p"] {
        check_nodes(&Bundle::sh(MAKE_NODES).flag(protocol), &["null c 1 3", "whiteout c 0 0"]);
    }
}

#[test]
fn a_guest_can_create_the_device_nodes_that_the_bundle_allows() {
    let bundle = Bundle::sh(MAKE_NODES).with(|c| {
        c["linux"]["resources"]["devices"] =
            json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "b", "major": 7, "access": "rwm"}]);
    });
    check_nodes(&bundle, &["null c 1 3", "whiteout c 0 0", "loop b 7 3"]);
}

/// The paths below descriptors of the process at which `path` exists.
fn through_descriptors(process: u32, path: &str) -> Vec<PathBuf> {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let paths = descriptors.map(|entry| entry.unwrap().path().join(path));
    paths.filter(|path| path.symlink_metadata().is_ok()).collect()
}

#[test]
fn the_share_is_on_a_mount_without_devices() {
    let bundle = Bundle::sh("echo ready; read a");
    let null = bundle.rootfs().join("mnt/node-of-the-host");
    check_output(Command::new("mknod").arg(&null).args(["c", "1", "3"]));
    fs::File::open(&null).unwrap();
    let mut run = bundle.start();
    run.wait_for("ready\n");
    let found = through_descriptors(run.pid(), "mnt/node-of-the-host");
    assert!(!found.is_empty());
    for path in found {
        let error = fs::File::open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", path.display());
    }
    run.write(b"\n");
    run.finish().code(0);
}

/// A tmpfs with one file. It is unmounted on drop.
struct Mounted(PathBuf);

impl Mounted {
    fn at(path: &Path) -> Mounted {
        fs::create_dir_all(path).unwrap();
        check_output(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(path));
        fs::write(path.join("f"), "").unwrap();
        Mounted(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn later_mounts_on_the_host_are_visible_in_slave_binds_only() {
    let dir = tempfile::TempDir::new().unwrap();
    let _early = Mounted::at(&dir.path().join("early"));
    fs::create_dir(dir.path().join("late")).unwrap();
    let bind = |destination: &str, words: &[&str]| json!({"destination": destination, "type": "bind", "source": dir.path(), "options": words});
    let bundle = Bundle::sh("echo ready; read a; ls -d /a/*/* /b/*/* /c/*/*")
        .mount(bind("/a", &["rbind", "rslave"]))
        .mount(bind("/b", &["rbind"]))
        .mount(bind("/c", &["rbind", "rprivate"]));
    let mut run = bundle.start();
    run.wait_for("ready\n");
    let _late = Mounted::at(&dir.path().join("late"));
    run.write(b"\n");
    let run = run.finish();
    assert_eq!(run.text(), "/a/early/f\n/a/late/f\n/b/early/f\n/c/early/f", "{run}");
}
