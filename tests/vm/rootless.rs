//! Ordinary users: `vmm` without root, with and without subordinate IDs.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;

use serde_json::json;
use tempfile::TempDir;
use tests::{Bundle, Finished, Running, check_output, program};

/// A user with subordinate IDs from [`FIRST`] on, and one without.
const WITH_IDS: u32 = 4711;
const WITHOUT_IDS: u32 = 4712;
const FIRST: u32 = 300_000;

/// Gives the host the two users, which can open /dev/kvm.
fn users() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let append = |path: &str, lines: &str| {
            let file = OpenOptions::new().append(true).create(true).open(path);
            file.and_then(|mut file| file.write_all(lines.as_bytes())).expect("append to a host's table");
        };
        append("/etc/passwd", "vmm-with:x:4711:4711::/:/bin/sh\nvmm-without:x:4712:4712::/:/bin/sh\n");
        append("/etc/subuid", "vmm-with:300000:65536\n");
        append("/etc/subgid", "vmm-with:300000:65536\n");
        fs::set_permissions("/dev/kvm", fs::Permissions::from_mode(0o666)).expect("open /dev/kvm to users");
    });
}

/// A user's bundle: its files belong to the user.
struct Owned(Bundle, u32);

impl Owned {
    fn new(bundle: Bundle, user: u32) -> Owned {
        users();
        bundle.write();
        check_output(Command::new("chown").args(["-R", &format!("{user}:{user}")]).arg(bundle.path()));
        Owned(bundle, user)
    }

    /// `vmm` of the user.
    fn vmm(&self, words: &[&str]) -> Command {
        vmm_of(self.1, words)
    }

    /// Runs the bundle.
    fn run(&self) -> Finished {
        let mut command = self.vmm(&["run"]);
        command.arg(self.0.path());
        Running::start(command).finish()
    }

    fn owner(&self, file: &str) -> (u32, u32) {
        let status = fs::symlink_metadata(self.0.rootfs().join(file)).expect("a file of the container");
        (status.uid(), status.gid())
    }
}

fn vmm_of(user: u32, words: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(words).uid(user).gid(user).current_dir("/").env_remove("XDG_RUNTIME_DIR");
    command
}

/// A folder that belongs to the user.
fn folder(user: u32) -> TempDir {
    let folder = TempDir::new().expect("create a folder");
    check_output(Command::new("chown").arg(user.to_string()).arg(folder.path()));
    folder
}

/// A folder with a program `name` that is this shell script.
fn program_folder(name: &str, script: &str) -> TempDir {
    let folder = TempDir::new().expect("create a folder");
    let path = folder.path().join(name);
    fs::write(&path, script).expect("write a program");
    for path in [folder.path(), &path] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("let users run it");
    }
    folder
}

#[test]
fn a_user_s_container_has_files_of_several_users() {
    let script = "id -u; touch /root-s /other; chown 33:34 /other && stat -c %u:%g /root-s /other /bin; \
        mkdir -m 777 /shared; su ann -c 'touch /shared/ann && ! touch /root/x 2>/dev/null && stat -c %u /shared/ann'";
    let bundle = Owned::new(Bundle::sh(script), WITH_IDS);
    bundle.run().code(0).stdout("0\n0:0\n33:34\n0:0\n1000\n");
    assert_eq!(bundle.owner("root-s"), (WITH_IDS, WITH_IDS));
    assert_eq!(bundle.owner("other"), (FIRST + 32, FIRST + 33));
    assert_eq!(bundle.owner("shared/ann"), (FIRST + 999, FIRST + 999));
}

#[test]
fn without_subordinate_ids_all_files_are_the_user_s() {
    let script = "touch /a; mkdir -m 777 /shared; su ann -c 'touch /shared/ann'; ls /shared";
    let bundle = Owned::new(Bundle::sh(script), WITHOUT_IDS);
    bundle.run().code(0).stdout("ann\n");
    assert_eq!([bundle.owner("a"), bundle.owner("shared/ann")], [(WITHOUT_IDS, WITHOUT_IDS); 2]);
}

#[test]
fn if_the_ids_cannot_be_mapped_all_files_are_the_user_s() {
    let fake = program_folder("newgidmap", "#!/bin/sh\necho no luck >&2\nexit 1\n");
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", fake.path().display());
    let bundle = Owned::new(Bundle::sh("touch /a; id -u"), WITH_IDS);
    let mut command = bundle.vmm(&["--debug", "run"]);
    command.arg(bundle.0.path()).env("PATH", path);
    Running::start(command).finish().code(0).stdout("0\n").says(&["newgidmap", "no luck"]);
    assert_eq!(bundle.owner("a"), (WITH_IDS, WITH_IDS));
}

#[test]
fn a_user_creates_starts_and_deletes_a_container() {
    let bundle = Owned::new(Bundle::sh("touch /x; chown 5 /x; sleep 1000"), WITH_IDS);
    let state = folder(WITH_IDS);
    let vmm = |words: &[&str]| {
        let root = ["--root", state.path().to_str().expect("a plain path")];
        let mut command = bundle.vmm(&[&root[..], words].concat());
        // The container keeps the caller's streams.
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("start vmm");
        assert!(status.success(), "{words:?}: {status}");
    };
    let path = bundle.0.path().to_str().expect("a plain path");
    vmm(&["create", "--bundle", path, "c"]);
    vmm(&["start", "c"]);
    vmm(&["exec", "c", "sh", "-c", "until [ \"$(stat -c %u /x)\" = 5 ]; do :; done"]);
    assert_eq!(bundle.owner("x").0, FIRST + 4);
    let list =
        check_output(&mut bundle.vmm(&["--root", state.path().to_str().expect("a plain path"), "list"]));
    assert!(list.contains("vmm-with"), "{list}");
    vmm(&["delete", "--force", "c"]);
    assert_eq!(left_in(state.path()), Vec::<PathBuf>::new());
}

fn left_in(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).expect("list").map(|entry| entry.expect("an entry").path());
    paths.filter(|path| !path.ends_with(".lock")).collect()
}

#[test]
fn a_user_s_pod_has_files_of_several_users() {
    let bundle = Owned::new(Bundle::sh("touch /y; chown 7 /y"), WITH_IDS);
    let home = folder(WITH_IDS);
    let podfile = home.path().join("pod.json");
    let text = json!({"containers": [{"name": "a", "image": bundle.0.path(), "command": ["sh", "-c", "touch /y; chown 7 /y"]}]});
    fs::write(&podfile, text.to_string()).expect("write the podfile");
    let root = home.path().to_str().expect("a plain path");
    let mut command = bundle.vmm(&["--root", root, "pod", "run"]);
    command.arg(&podfile);
    Running::start(command).finish().code(0);
    assert_eq!(bundle.owner("y").0, FIRST + 6);
}

#[test]
fn a_bundle_with_a_user_namespace_uses_the_caller_s_ids() {
    let map = json!([{"containerID": 0, "hostID": WITH_IDS, "size": 1}]);
    let bundle = Bundle::sh("touch /z; stat -c %u /z").with(|c| {
        c["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "user"}));
        // As `runc spec --rootless`: group 5 is not mapped.
        for mount in c["mounts"].as_array_mut().expect("a list") {
            if let Some(options) = mount["options"].as_array_mut() {
                options.retain(|option| option != "gid=5");
            }
        }
        c["linux"]["uidMappings"] = map.clone();
        c["linux"]["gidMappings"] = map;
    });
    let bundle = Owned::new(bundle, WITH_IDS);
    bundle.run().code(0).stdout("0\n");
    assert_eq!(bundle.owner("z"), (WITH_IDS, WITH_IDS));
    // Another user may not use this user's ID.
    let mut command = vmm_of(WITHOUT_IDS, &["run"]);
    check_output(Command::new("chmod").args(["-R", "a+rX"]).arg(bundle.0.path()));
    command.arg(bundle.0.path());
    Running::start(command)
        .finish()
        .code(125)
        .says(&["linux.uidMappings[0]", "not IDs that this user may map"]);
}

#[test]
fn a_bundle_s_user_namespace_has_the_user_s_subordinate_ids() {
    let map = json!([
        {"containerID": 0, "hostID": WITH_IDS, "size": 1},
        {"containerID": 1, "hostID": FIRST + 100, "size": 1000},
    ]);
    let bundle = Bundle::sh("touch /z; chown 5:6 /z; stat -c %u:%g /z").with(|c| {
        c["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "user"}));
        c["linux"]["uidMappings"] = map.clone();
        c["linux"]["gidMappings"] = map;
    });
    let bundle = Owned::new(bundle, WITH_IDS);
    bundle.run().code(0).stdout("5:6\n");
    assert_eq!(bundle.owner("z"), (FIRST + 104, FIRST + 105));
}

#[test]
fn what_the_host_mounts_later_is_not_in_a_user_s_container() {
    let script = "mkdir /m; touch /m/own; echo ready; read line; ls /m";
    let bundle = Owned::new(Bundle::sh(script), WITH_IDS);
    let mut command = bundle.vmm(&["run"]);
    command.arg(bundle.0.path());
    let mut running = Running::start(command);
    running.wait_for("ready\n");
    let folder = bundle.0.rootfs().join("m");
    check_output(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&folder));
    fs::write(folder.join("later"), "").expect("write to the new mount");
    running.write(b"\n");
    let run = running.finish();
    check_output(Command::new("umount").arg(&folder));
    run.code(0).stdout("own\n");
}
