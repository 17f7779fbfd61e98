//! Bind mounts: what they keep of the host's mounts, and which of the host's mounts they include.

use std::fs::{self, FileTimes, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::json;
use tempfile::TempDir;
use tests::{Bundle, check_output};

/// A tmpfs with these options. It is unmounted on drop.
struct Mounted(PathBuf);

impl Mounted {
    fn at(path: &Path, options: &str) -> Mounted {
        fs::create_dir_all(path).unwrap();
        check_output(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path));
        Mounted(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn bind(destination: &str, source: &Path, options: &[&str]) -> serde_json::Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

/// Options of a mount in mountinfo, in alphabetical order.
fn options(mounts: &str, destination: &str) -> Vec<String> {
    let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some(destination)).unwrap();
    let mut words: Vec<_> = line.split(' ').nth(5).unwrap().split(',').map(str::to_owned).collect();
    words.sort();
    words
}

#[test]
fn a_bind_keeps_the_options_of_the_mount_that_it_is_from() {
    let dir = TempDir::new().unwrap();
    for given in ["nosuid,nodev", "noexec,noatime", "nosuid,nodiratime", "ro", "defaults"] {
        let mounted = Mounted::at(&dir.path().join("from"), "rw");
        fs::write(mounted.0.join("program"), "#!/bin/sh\necho runs\n").unwrap();
        fs::set_permissions(mounted.0.join("program"), Permissions::from_mode(0o755)).unwrap();
        if given != "defaults" {
            check_output(
                Command::new("mount").args(["-o", &format!("remount,bind,{given}")]).arg(&mounted.0),
            );
        }
        // What Linux makes of it.
        let native = dir.path().join("native");
        fs::create_dir_all(&native).unwrap();
        check_output(Command::new("mount").arg("--bind").arg(&mounted.0).arg(&native));
        let expected =
            options(&fs::read_to_string("/proc/self/mountinfo").unwrap(), native.to_str().unwrap());
        check_output(Command::new("umount").arg(&native));
        let script = "cat /proc/self/mountinfo; /b/program 2>&1; echo x 2>&1 > /b/new";
        let run = Bundle::sh(script).mount(bind("/b", &mounted.0, &["rbind", "rprivate"])).run();
        assert_eq!(options(&run.text(), "/b"), expected, "{given}: {run}");
        let runs = run.text().contains("\nruns");
        assert_eq!(runs, !given.contains("noexec"), "{given}: {run}");
        assert_eq!(mounted.0.join("new").exists(), given != "ro", "{given}: {run}");
    }
}

#[test]
fn access_times_are_those_of_the_bind_s_options_and_of_the_host_s_mount() {
    let dir = TempDir::new().unwrap();
    let mounted = Mounted::at(&dir.path().join("from"), "rw,strictatime");
    fs::create_dir(mounted.0.join("d")).unwrap();
    let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    // Whether reading a file, and listing a directory, changes its access time.
    for (host, given, file, directory) in [
        ("strictatime", &["rbind"][..], true, true),
        ("strictatime", &["rbind", "noatime"], false, false),
        ("strictatime", &["rbind", "rnoatime"], false, false),
        ("strictatime", &["rbind", "nodiratime"], true, false),
        ("noatime", &["rbind"], false, false),
        ("noatime", &["rbind", "strictatime"], true, true),
    ] {
        check_output(Command::new("mount").args(["-o", &format!("remount,bind,{host}")]).arg(&mounted.0));
        for name in ["f", "d"] {
            let path = mounted.0.join(name);
            if name == "f" {
                fs::write(&path, "text").unwrap();
            }
            let times = FileTimes::new().set_accessed(past).set_modified(past);
            fs::File::open(&path).unwrap().set_times(times).unwrap();
        }
        Bundle::sh("cat /b/f; ls /b/d").mount(bind("/b", &mounted.0, given)).run().code(0).stdout("text");
        let changed = ["f", "d"].map(|name| fs::metadata(mounted.0.join(name)).unwrap().atime() != 1_000_000);
        assert_eq!(changed, [file, directory], "{host} {given:?}");
    }
}

#[test]
fn a_bind_that_is_not_recursive_is_of_one_mount() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/below"), "").unwrap();
    let above = Mounted::at(&dir.path().join("sub"), "rw");
    fs::write(above.0.join("above"), "").unwrap();
    let script = "ls /one/sub /all/sub; echo > /one/sub/new; echo > /all/sub/new";
    let run = Bundle::sh(script)
        .mount(bind("/one", dir.path(), &["bind", "rprivate"]))
        .mount(bind("/all", dir.path(), &["rbind", "rprivate"]))
        .run();
    run.code(0).stdout("/all/sub:\nabove\n\n/one/sub:\nbelow\n");
    assert!(above.0.join("new").exists());
    drop(above);
    assert!(dir.path().join("sub/new").exists() && !dir.path().join("sub/above").exists());
}

#[test]
fn what_the_host_mounts_later_can_be_unmounted_while_the_container_runs() {
    let dir = TempDir::new().unwrap();
    let late = dir.path().join("late");
    fs::create_dir(&late).unwrap();
    fs::write(late.join("below"), "").unwrap();
    let script = "ls /b/late; echo ready; read a; ls /b/late; exec 3< /b/late; echo open; read a";
    let mut run = Bundle::sh(script).mount(bind("/b", dir.path(), &["rbind", "rprivate"])).start();
    run.wait_for("below\nready\n");
    check_output(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&late));
    fs::write(late.join("above"), "").unwrap();
    run.write(b"\n");
    assert_eq!(run.wait_for("open\n"), "below\nopen\n");
    // Not lazily: "target is busy" if the machine's process used it.
    check_output(Command::new("umount").arg(&late));
    run.write(b"\n");
    run.finish().code(0);
}

#[test]
fn a_read_only_bind_leaves_mounts_below_it_their_own_options_unless_it_is_recursive() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("plain")).unwrap();
    let mounts = [("with blank", "rw"), ("fixed", "ro,noexec"), ("with blank/deep", "rw")];
    let _mounted: Vec<_> =
        mounts.iter().map(|(name, options)| Mounted::at(&dir.path().join(name), options)).collect();
    let script = "for d in . plain 'with blank' fixed 'with blank/deep'; do \
                  for b in /own /all; do (echo > \"$b/$d/new\") 2> /dev/null && echo \"$b/$d\"; done; done; \
                  (chmod 700 /own/plain || ln -s x /own/link || mkdir /own/d || rm -r /own/plain) 2> /dev/null || \
                  cat /proc/self/mountinfo";
    let run = Bundle::sh(script)
        .mount(bind("/own", dir.path(), &["rbind", "rprivate", "ro"]))
        .mount(bind("/all", dir.path(), &["rbind", "rprivate", "ro", "rro"]))
        .run();
    let text = run.text();
    assert!(text.starts_with("/own/with blank\n/own/with blank/deep\n"), "{run}");
    for (path, word) in [
        ("/own", "ro"),
        ("/own/with\\040blank", "rw"),
        ("/own/fixed", "ro"),
        ("/own/fixed", "noexec"),
        ("/all", "ro"),
    ] {
        assert!(options(&text, path).contains(&word.to_owned()), "{path}: {run}");
    }
    let new: Vec<_> = ["", "plain", "with blank", "fixed", "with blank/deep"]
        .into_iter()
        .filter(|name| dir.path().join(name).join("new").exists())
        .collect();
    assert_eq!(new, ["with blank", "with blank/deep"]);
}
