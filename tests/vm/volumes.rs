//! Volumes on which the host's file system, the user of a process, or another machine decides.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;
use tests::{Bundle, Running, check_output};

/// The user in the containers.
const USER: u32 = 1000;

/// An ext4 file system in a file, mounted on the host.
struct Disk(TempDir);

impl Disk {
    /// `options` are those of mkfs.ext4.
    fn new(size: &str, options: &[&str]) -> Disk {
        let disk = Disk(TempDir::new().unwrap());
        let image = disk.0.path().join("image");
        fs::create_dir(disk.path()).unwrap();
        check_output(Command::new("truncate").args(["-s", size]).arg(&image));
        check_output(Command::new("mkfs.ext4").args(["-q", "-b", "4096"]).args(options).arg(&image));
        check_output(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path()));
        fs::set_permissions(disk.path(), fs::Permissions::from_mode(0o777)).unwrap();
        disk
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("mounted")
    }

    fn free_blocks(&self) -> u64 {
        rustix::fs::statvfs(self.path()).unwrap().f_bfree
    }

    /// Adds the file system to a bundle.
    fn in_bundle(&self, bundle: Bundle) -> Bundle {
        bundle.mount(volume(&self.path()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

pub fn volume(path: &Path) -> serde_json::Value {
    json!({"destination": "/v", "type": "bind", "source": path, "options": ["rbind", "rw"]})
}

fn as_user(bundle: Bundle) -> Bundle {
    bundle.with(|c| c["process"]["user"] = json!({"uid": USER, "gid": USER}))
}

/// Copies a program of the host and its libraries to the same paths of a bundle.
pub fn copy_program(bundle: &Bundle, program: &str) {
    let libraries = check_output(Command::new("ldd").arg(program));
    let paths = libraries.split_whitespace().filter(|word| word.starts_with('/')).chain([program]);
    for path in paths {
        let copy = bundle.rootfs().join(&path[1..]);
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(path, copy).unwrap();
    }
}

const FILL: &str = "cd $0; dd if=/dev/zero of=big bs=64k 2>/dev/null; echo > small; \
    fallocate -l 300000 more 2>/dev/null || echo no blocks";

#[test]
fn a_user_gets_no_blocks_that_are_reserved_for_root() {
    let [native, ours] = [(), ()].map(|()| Disk::new("24M", &["-m", "25"]));
    let reserved = (24 << 20) / 4096 / 4;
    let user = USER.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "/bin/busybox", "sh", "-c", FILL]);
    assert_eq!(check_output(command.arg(native.path())), "no blocks\n");
    let bundle = as_user(Bundle::new(&["sh", "-c", FILL, "/v"]));
    ours.in_bundle(bundle).run().code(0).stdout("no blocks\n");
    let size = |disk: &Disk| disk.path().join("big").metadata().unwrap().size();
    let (wanted, got) = (size(&native), size(&ours));
    assert!(got.abs_diff(wanted) <= 256 << 10, "{got} bytes, natively {wanted}");
    assert!(ours.free_blocks() >= reserved - 64, "{} of {reserved} blocks", ours.free_blocks());
    // Root may use them.
    let root = Bundle::sh("dd if=/dev/zero of=/v/root bs=64k count=32 2>/dev/null; echo $?");
    ours.in_bundle(root).run().code(0).stdout("0\n");
}

#[test]
fn flags_of_files_are_those_of_the_file_system() {
    let disk = Disk::new("8M", &[]);
    let bundle = Bundle::sh(
        "cd /v; echo > f; mkdir d; chattr +dA f && chattr +S d && lsattr -d f d && chattr -d f && lsattr f; \
         chattr +i f 2>&1 | grep -c 'Operation not permitted'",
    );
    for program in ["/usr/bin/chattr", "/usr/bin/lsattr"] {
        copy_program(&bundle, program);
    }
    let bundle = disk.in_bundle(bundle);
    let path = "PATH=/usr/bin:/bin";
    let run = bundle.with(|c| c["process"]["env"] = json!([path])).run().code(0);
    let host = check_output(Command::new("lsattr").arg("-d").arg(disk.path().join("f")));
    let text = run.text();
    let flags: Vec<&str> = text.lines().map(|line| line.split(' ').next().unwrap_or_default()).collect();
    assert_eq!(flags.len(), 4, "{run}");
    assert!(flags[0].contains('A') && flags[0].contains('d') && flags[1].contains('S'), "{run}");
    assert!(!flags[2].contains('d') && host.starts_with(flags[2]), "{run}{host}");
    assert_eq!(flags[3], "1", "{run}");
}

#[test]
fn ranges_of_a_file_are_shifted() {
    let disk = Disk::new("8M", &[]);
    let bundle = Bundle::new(&["sh", "-c", "cd /v && exec /bin/guest shifted"]);
    bundle.copy_guest_program();
    disk.in_bundle(bundle).run().code(0).stdout("ok\n");
}

#[test]
fn what_is_in_memory_is_read_without_waiting() {
    Bundle::guest("without-waiting").run().code(0).stdout("ok\n");
}

#[test]
fn a_deep_tree_is_listed_and_removed_with_few_descriptors() {
    // The second tree is less deep, because each of its directories is found again from the root to be removed.
    let [deep, other] = [("d", 600), ("e", 300)].map(|(name, depth)| [name].repeat(depth).join("/"));
    let script = format!(
        "cd /mnt; mkdir -p {deep} {other}; echo made; find d | wc -l; echo text > {other}/file; \
         cat $(find e -name file) && rm -r e && ls"
    );
    let bundle = Bundle::sh(&script).with(|c| c["process"]["env"] = json!(["PATH=/usr/bin:/bin"]));
    for program in ["/usr/bin/find", "/usr/bin/rm"] {
        copy_program(&bundle, program);
    }
    let run = bundle.command();
    let mut command = Command::new("prlimit");
    command.arg("--nofile=300:300").arg(run.get_program()).args(run.get_args());
    Running::start(command).finish().code(0).stdout("made\n600\ntext\nd\n").stderr("");
}
