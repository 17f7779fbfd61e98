//! Over virtio-9p the share behaves like over virtio-fs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::json;
use tests::Bundle;

fn sh(script: &str) -> Bundle {
    Bundle::sh(script).flag("--share=9p")
}

/// Runs checks of the program of tests/guest in a directory of the share, one after the other.
#[track_caller]
fn check(names: &[&str]) {
    let bundle =
        sh(&format!("cd /mnt; for c in {}; do /bin/guest $c || echo failed: $c; done", names.join(" ")));
    bundle.copy_guest_program();
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
fn files_over_9p_belong_to_the_user_who_creates_them() {
    let bundle = sh("echo hi > /mnt/f; mkdir /mnt/d; ln -s f /mnt/l")
        .with(|c| c["process"]["user"] = json!({"uid": 1000, "gid": 1000}));
    let mnt = bundle.rootfs().join("mnt");
    fs::set_permissions(&mnt, fs::Permissions::from_mode(0o777)).unwrap();
    bundle.run().code(0).stderr("");
    for name in ["f", "d", "l"] {
        let metadata = fs::symlink_metadata(mnt.join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1000, 1000), "{name}");
    }
}

/// Linux's 9p ignores dirty pages of a mapping when it reads, so the check syncs the mapping first.
#[test]
fn files_over_9p_behave_like_local_files() {
    check(&["unlinked", "renamed-over", "mapped-synced", "linked", "xattrs", "many", "nanoseconds"]);
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
fn binds_over_9p_work_both_ways() {
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

/// Like a package manager: creates files under temporary names, renames and removes them.
#[test]
fn three_hundred_files_are_created_renamed_and_removed_over_9p() {
    let bundle = sh("set -e; mkdir /mnt/t; cd /mnt/t; i=0; while [ $i -lt 300 ]; do echo $i > f$i.new; \
                     mv f$i.new f$i; i=$((i+1)); done; ls | wc -l; cat f* | sort -n | tail -n 1; rm f1*; ls | wc -l");
    bundle.run().code(0).stdout("300\n299\n189\n").stderr("");
    assert_eq!(fs::read_dir(bundle.rootfs().join("mnt/t")).unwrap().count(), 189);
}

#[test]
fn changes_on_the_host_are_visible_at_once_over_9p() {
    crate::mounts::check_changes_on_the_host("--share=9p", "");
}

#[test]
fn locks_on_a_volume_over_9p_are_refused_and_those_on_the_root_are_granted() {
    let dir = tempfile::TempDir::new().unwrap();
    fs::write(dir.path().join("f"), "").unwrap();
    let script = "for f in /mnt/f /srv/f; do /usr/bin/flock -n $f echo locked; echo $?; done";
    let bundle = sh(script).mount(
        json!({"destination": "/srv", "type": "bind", "source": dir.path(), "options": ["rbind", "rw"]}),
    );
    crate::volumes::copy_program(&bundle, "/usr/bin/flock");
    fs::write(bundle.rootfs().join("mnt/f"), "").unwrap();
    // flock(1) exits with EX_OSERR of sysexits.h.
    let run = bundle.run().code(0).stdout("locked\n0\n71\n");
    assert!(String::from_utf8_lossy(&run.stderr).contains("No locks available"), "{run}");
}
