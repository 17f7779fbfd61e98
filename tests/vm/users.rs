//! User namespaces: users and groups of a container have other ids outside of it.

use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

use serde_json::json;
use tests::{Bundle, Terminal};

/// Uid and gid of the container's root outside of its namespace.
const ROOT: u32 = 100_000;

/// Changes the owner of a tree.
fn chown(path: &Path, id: u32) {
    lchown(path, Some(id), Some(id)).unwrap();
    if fs::symlink_metadata(path).unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            chown(&entry.unwrap().path(), id);
        }
    }
}

/// A bundle with a user namespace whose files belong to its root, [`ROOT`] outside.
fn mapped(script: &str) -> Bundle {
    let bundle = Bundle::sh(script).with(|c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        for list in ["uidMappings", "gidMappings"] {
            c["linux"][list] = json!([{"containerID": 0, "hostID": ROOT, "size": 65536}]);
        }
    });
    chown(&bundle.rootfs(), ROOT);
    bundle
}

#[test]
fn the_container_s_root_has_another_id_outside() {
    let script = "id -u; cat /proc/self/uid_map; touch /mnt/f; chown 5:6 /mnt/f; stat -c '%u %g' /mnt/f /mnt /dev /dev/shm; \
                  grep CapEff /proc/self/status | cut -f 2; echo x > /dev/shm/x && cat /dev/shm/x; echo x > /dev/null && echo null";
    let bundle = mapped(script);
    let run = bundle.run().code(0).stderr("");
    let expected = "0\n         0     100000      65536\n5 6\n0 0\n0 0\n0 0\n00000000a80425fb\nx\nnull";
    assert_eq!(run.text(), expected, "{run}");
    let made = fs::metadata(bundle.rootfs().join("mnt/f")).unwrap();
    assert_eq!((made.uid(), made.gid()), (ROOT + 5, ROOT + 6));
}

#[test]
fn a_container_s_user_has_another_id_outside() {
    let bundle = mapped("id; echo hi > /tmp/f; kill -0 1 && echo alive").with(|c| {
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [10]});
    });
    chown(&bundle.rootfs().join("tmp"), ROOT + 1000);
    bundle.run().code(0).stdout("uid=1000(ann) gid=1000(ann) groups=10(wheel)\nalive\n").stderr("");
    assert_eq!(fs::metadata(bundle.rootfs().join("tmp/f")).unwrap().uid(), ROOT + 1000);
}

#[test]
fn files_of_unmapped_users_cannot_be_written() {
    let bundle = mapped("stat -c %u /srv/f; echo x > /srv/f; cat /srv/f").mount(json!({
        "destination": "/srv", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "mode=755"],
    }));
    let srv = bundle.rootfs().join("srv");
    fs::create_dir(&srv).unwrap();
    fs::write(srv.join("f"), "host\n").unwrap();
    let run = bundle.run().code(0);
    assert_eq!(run.text(), "65534\nhost", "{run}");
    assert!(String::from_utf8_lossy(&run.stderr).contains("Permission denied"), "{run}");
}

#[test]
fn an_unmapped_user_is_an_error() {
    let bundle = mapped("true").with(|c| c["process"]["user"]["uid"] = json!(70_000));
    let run = bundle.run().code(125);
    assert!(
        String::from_utf8_lossy(&run.stderr).contains("user ID 70000 is not mapped in the user namespace"),
        "{run}"
    );
}

#[test]
fn the_terminal_belongs_to_the_user() {
    let script = "stat -c 'owner %u %g' $(tty); echo written > $(tty)";
    let bundle = mapped(script).with(|c| {
        c["process"]["terminal"] = json!(true);
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    });
    let mut terminal = Terminal::start(&bundle.command(), 24, 80);
    terminal.wait_for("owner 1000 5");
    terminal.wait_for("written");
    assert_eq!(terminal.finish().code(), Some(0));
}

/// Opens the three standard streams again by path, as logging programs do.
const REOPEN: &str =
    "echo out > /dev/stdout; echo error > /dev/stderr; cat /dev/stdin; echo fd > /proc/self/fd/1";

#[test]
fn a_user_opens_its_standard_streams_by_path() {
    for bundle in [Bundle::sh(REOPEN), mapped(REOPEN)] {
        let bundle = bundle.with(|c| c["process"]["user"] = json!({"uid": 1000, "gid": 1000}));
        bundle.run_with(b"in\n").code(0).stdout("out\nin\nfd\n").stderr("error\n");
    }
}
