//! Rights that files have besides their mode: POSIX ACLs, and what a change of a file takes away.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;
use tests::{Bundle, check_output, guest_program};

/// The user in the containers.
const USER: u32 = 1000;

/// Sets an ACL: permissions of the owner, of [`USER`] if it has an entry, of the group, and of others.
fn set_acl(path: &Path, kind: &str, owner: u16, user: Option<u16>, [group, others]: [u16; 2]) {
    let mut entries = vec![(0x01, owner, u32::MAX)];
    entries.extend(user.map(|permissions| (0x02, permissions, USER)));
    entries.push((0x04, group, u32::MAX));
    entries.extend(user.map(|permissions| (0x10, group | permissions, u32::MAX)));
    entries.push((0x20, others, u32::MAX));
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(u16::to_le_bytes(tag).into_iter().chain(permissions.to_le_bytes()));
        value.extend(id.to_le_bytes());
    }
    let name = format!("system.posix_acl_{kind}");
    rustix::fs::setxattr(path, name, &value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// Creates files with ACLs.
fn volume() -> TempDir {
    let dir = TempDir::new().unwrap();
    let path = |name| dir.path().join(name);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    for name in ["denied", "granted", "plain"] {
        fs::write(path(name), "text").unwrap();
    }
    for (name, permissions) in [("heirs", 0o777), ("others", 0o777), ("closed", 0o755)] {
        fs::create_dir(path(name)).unwrap();
        fs::set_permissions(path(name), fs::Permissions::from_mode(permissions)).unwrap();
    }
    fs::write(path("closed/file"), "text").unwrap();
    set_acl(&path("denied"), "access", 6, Some(0), [4, 4]);
    set_acl(&path("granted"), "access", 6, Some(6), [0, 0]);
    set_acl(&path("closed"), "access", 7, Some(0), [5, 5]);
    set_acl(&path("heirs"), "default", 7, Some(7), [5, 5]);
    dir
}

/// What a user sees and makes. Each line depends on an ACL or the umask.
const SCRIPT: &str = "cd $0; umask 027; \
    for f in denied granted plain closed/file; do cat $f > /dev/null 2>&1 && echo reads $f; \
    echo more 2> /dev/null >> $f && echo writes $f; done; \
    for d in heirs others; do echo > $d/file; mkdir $d/dir; mkfifo $d/fifo; echo > $d/dir/file; \
    stat -c '%n %a' $d/file $d/dir $d/fifo $d/dir/file; done; chmod 604 heirs/file; stat -c %a heirs/file";

#[test]
fn acls_and_the_umask_act_as_on_the_host() {
    let native = volume();
    let mut command = Command::new("/bin/busybox");
    command.args(["sh", "-c", SCRIPT]).arg(native.path()).uid(USER).gid(USER);
    let expected = check_output(&mut command);
    assert!(expected.contains("writes granted") && !expected.contains("denied"), "{expected}");
    let shared = volume();
    let bind =
        json!({"destination": "/v", "type": "bind", "source": shared.path(), "options": ["rbind", "rw"]});
    let run = Bundle::new(&["sh", "-c", SCRIPT, "/v"])
        .mount(bind)
        .with(|c| c["process"]["user"] = json!({"uid": USER, "gid": USER}))
        .with(|c| c["process"]["capabilities"] = json!({}))
        .run();
    assert_eq!(run.text().trim(), expected.trim(), "{run}");
}

#[test]
fn an_acl_that_is_set_in_the_guest_shows_in_the_mode_at_once_and_on_the_host() {
    let bundle = Bundle::guest("acls");
    bundle.run().code(0).stdout("ok\n");
    assert_eq!(fs::metadata(bundle.rootfs().join("mnt/acl")).unwrap().mode() & 0o7777, 0o670);
}

#[test]
fn set_user_id_and_capabilities_are_cleared_as_on_the_host() {
    for (user, capabilities) in [(0, true), (USER, false)] {
        let dir = TempDir::new().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let mut command = Command::new(guest_program());
        let expected = check_output(command.arg("setid").current_dir(dir.path()).uid(user).gid(user));
        let mut bundle =
            Bundle::guest("setid").with(|c| c["process"]["user"] = json!({"uid": user, "gid": user}));
        if !capabilities {
            bundle = bundle.with(|c| c["process"]["capabilities"] = json!({}));
        }
        fs::set_permissions(bundle.rootfs().join("mnt"), fs::Permissions::from_mode(0o777)).unwrap();
        let run = bundle.run();
        assert_eq!(run.text().trim(), expected.trim(), "{run}");
    }
}
