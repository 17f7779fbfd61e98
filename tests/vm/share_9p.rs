//! The share over virtio-9p behaves as over virtio-fs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::json;
use tests::Bundle;

fn sh(script: &str) -> Bundle {
    Bundle::sh(script).flag("--share=9p")
}

/// Runs checks of the program in `tests/guest` in a folder of the share, one after the other.
#[track_caller]
fn check(names: &[&str]) {
    let bundle =
        sh(&format!("cd /mnt; for c in {}; do /bin/guest $c || echo failed: $c; done", names.join(" ")));
    let guest = std::env::var_os("VMM_TEST_GUEST").expect("VMM_TEST_GUEST names the program for the guest");
    fs::copy(guest, bundle.rootfs().join("bin/guest")).unwrap();
    bundle.run().code(0).stdout(&"ok\n".repeat(names.len()));
}

#[test]
fn a_container_runs_from_9p() {
    sh("echo hello; awk '$2 == \"/\" { print $3 }' /proc/mounts").run().code(0).stdout("hello\n9p\n");
}

#[test]
fn writes_over_9p_are_on_the_host_with_owner_and_mode() {
    crate::mounts::check_writes_on_the_host("--share=9p");
}

#[test]
fn files_over_9p_are_made_by_the_user_who_makes_them() {
    let bundle = sh("echo hi > /mnt/f; mkdir /mnt/d; ln -s f /mnt/l")
        .with(|c| c["process"]["user"] = json!({"uid": 1000, "gid": 1000}));
    let mnt = bundle.rootfs().join("mnt");
    fs::set_permissions(&mnt, fs::Permissions::from_mode(0o777)).unwrap();
    bundle.run().code(0).stderr("");
    for name in ["f", "d", "l"] {
        let found = fs::symlink_metadata(mnt.join(name)).unwrap();
        assert_eq!((found.uid(), found.gid()), (1000, 1000), "{name}");
    }
}

/// Linux's 9p reads past dirty pages of a mapping, so that it has to be synced first.
#[test]
fn files_over_9p_behave_as_local_ones() {
    check(&["unlinked", "renamed-over", "mapped-synced", "linked", "xattrs", "many"]);
}

#[test]
fn a_read_only_root_over_9p_cannot_be_written() {
    let bundle = sh("echo x > /etc/new; touch /tmp/new; true").with(|c| c["root"]["readonly"] = json!(true));
    let run = bundle.run().code(0);
    let errors = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(errors.matches("Read-only file system").count(), 2, "{run}");
    assert!(!bundle.rootfs().join("tmp/new").exists());
}

#[test]
fn binds_over_9p_go_both_ways() {
    let dir = tempfile::TempDir::new().unwrap();
    fs::write(dir.path().join("from-host"), "host\n").unwrap();
    let file = dir.path().join("hosts");
    fs::write(&file, "one\n").unwrap();
    let bundle = sh("cat /srv/from-host /etc/hosts; echo guest > /srv/from-guest; echo two >> /etc/hosts")
        .mount(
            json!({"destination": "/srv", "type": "bind", "source": dir.path(), "options": ["rbind", "rw"]}),
        )
        .mount(json!({"destination": "/etc/hosts", "type": "bind", "source": file, "options": ["bind"]}));
    bundle.run().code(0).stdout("host\none\n").stderr("");
    assert_eq!(fs::read_to_string(dir.path().join("from-guest")).unwrap(), "guest\n");
    assert_eq!(fs::read_to_string(&file).unwrap(), "one\ntwo\n");
}

/// What a package manager does: unpack under another name, write, rename over, remove.
#[test]
fn three_hundred_files_over_9p() {
    let bundle = sh("set -e; mkdir /mnt/t; cd /mnt/t; i=0; while [ $i -lt 300 ]; do echo $i > f$i.new; \
                     mv f$i.new f$i; i=$((i+1)); done; ls | wc -l; cat f* | sort -n | tail -n 1; rm f1*; ls | wc -l");
    bundle.run().code(0).stdout("300\n299\n189\n").stderr("");
    assert_eq!(fs::read_dir(bundle.rootfs().join("mnt/t")).unwrap().count(), 189);
}

#[test]
fn what_the_host_changes_is_seen_at_once_over_9p() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "before\n").unwrap();
    let bundle = sh("cat /srv/f; echo ready; read a; cat /srv/f; ls /srv")
        .mount(json!({"destination": "/srv", "type": "bind", "source": dir.path(), "options": ["bind"]}));
    let mut run = bundle.start();
    run.wait_for("ready\n");
    fs::write(&file, "after, and longer\n").unwrap();
    fs::write(dir.path().join("g"), "").unwrap();
    run.write(b"\n");
    let run = run.finish().code(0);
    assert_eq!(run.text(), "after, and longer\nf\ng", "{run}");
}
