//! User namespaces: ids that are others outside.

use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

use serde_json::json;
use tests::{Bundle, Terminal};

/// The container's root outside.
const ROOT: u32 = 100_000;

fn give(path: &Path, id: u32) {
    lchown(path, Some(id), Some(id)).unwrap();
    if fs::symlink_metadata(path).unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), id);
        }
    }
}

/// A bundle whose files are its root's, and whose root is [`ROOT`].
fn mapped(script: &str) -> Bundle {
    let bundle = Bundle::sh(script).with(|c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        for list in ["uidMappings", "gidMappings"] {
            c["linux"][list] = json!([{"containerID": 0, "hostID": ROOT, "size": 65536}]);
        }
    });
    give(&bundle.rootfs(), ROOT);
    bundle
}

#[test]
fn root_of_the_container_is_somebody_else_outside() {
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
fn a_user_of_the_container_is_another_outside() {
    let bundle = mapped("id; echo hi > /tmp/f; kill -0 1 && echo alive").with(|c| {
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [10]});
    });
    give(&bundle.rootfs().join("tmp"), ROOT + 1000);
    bundle.run().code(0).stdout("uid=1000(ann) gid=1000(ann) groups=10(wheel)\nalive\n").stderr("");
    assert_eq!(fs::metadata(bundle.rootfs().join("tmp/f")).unwrap().uid(), ROOT + 1000);
}

#[test]
fn what_is_not_mapped_is_out_of_reach() {
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
fn a_user_that_is_in_no_range_is_named() {
    let bundle = mapped("true").with(|c| c["process"]["user"]["uid"] = json!(70_000));
    let run = bundle.run().code(125);
    assert!(String::from_utf8_lossy(&run.stderr).contains("set user: invalid argument"), "{run}");
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
