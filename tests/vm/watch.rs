//! What the host and the guest see of each other's changes: names and attributes that the guest's kernel remembers for
//! long, writes that it collects, and the events of inotify(7).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use tests::{Bundle, busybox_rootfs, check_output};

/// Time limit for events that should take milliseconds.
const DEADLINE: Duration = Duration::from_secs(120);

/// Waits until `done` returns true.
#[track_caller]
fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < DEADLINE, "{what}");
        std::thread::yield_now();
    }
}

/// Waits until the process of a machine watches `dir`, which it does not do in its first half second.
#[track_caller]
fn wait_for_watch(process: u32, dir: &Path) {
    // proc(5), /proc/pid/fdinfo: the inode number is in hexadecimal.
    let watch = format!(" ino:{:x} ", fs::metadata(dir).unwrap().ino());
    wait("the watch of a directory", || {
        let all = fs::read_dir(format!("/proc/{process}/fdinfo")).unwrap();
        let mut texts = all.filter_map(|info| fs::read_to_string(info.unwrap().path()).ok());
        texts.any(|text| text.contains(&watch))
    });
}

/// A bundle whose container looks at files, waits for `ready`, and then looks at them until the host has changed them.
fn observer(dir: &str) -> Bundle {
    Bundle::sh(&format!(
        "cd {dir}; cat file; ls; ls sub; cat old; test -e missing || echo ready; \
         until test \"$(cat file)\" = changed -a -e missing -a ! -e old -a \"$(ls sub)\" = inner \
         -a \"$(stat -c %a mode)\" = 600; do :; done; echo seen"
    ))
}

fn prepare(dir: &Path) {
    fs::create_dir_all(dir.join("sub")).unwrap();
    for name in ["file", "old", "mode"] {
        fs::write(dir.join(name), "before\n").unwrap();
    }
}

fn change(dir: &Path) {
    fs::write(dir.join("file"), "changed\n").unwrap();
    fs::write(dir.join("missing"), "").unwrap();
    fs::remove_file(dir.join("old")).unwrap();
    fs::write(dir.join("sub/inner"), "").unwrap();
    check_output(Command::new("chmod").arg("600").arg(dir.join("mode")));
}

#[test]
fn what_the_host_changes_in_the_root_is_seen() {
    let bundle = observer("/w");
    let dir = bundle.rootfs().join("w");
    prepare(&dir);
    let mut run = bundle.start();
    run.wait_for("ready\n");
    change(&dir);
    run.wait_for("seen\n");
    run.finish().code(0);
}

#[test]
fn what_the_host_changes_in_a_volume_is_seen() {
    let dir = TempDir::new().unwrap();
    prepare(dir.path());
    let volume = json!({"destination": "/v", "type": "bind", "source": dir.path(), "options": ["rbind"]});
    let mut run = observer("/v").mount(volume).start();
    run.wait_for("ready\n");
    change(dir.path());
    run.wait_for("seen\n");
    run.finish().code(0);
}

#[test]
fn what_the_host_changes_in_a_directory_that_was_fetched_is_seen() {
    let bundle = Bundle::sh(
        "cd /w; test -e 1; echo ready; read go; \
         for n in 2 3 4 5 6 7 8 none other; do test -e $n; done; test ! -e missing -a -e 9 && echo looked; \
         until test -e missing -a ! -e 9 -a \"$(cat 1)\" = changed; do :; done; ls; echo seen",
    );
    let dir = bundle.rootfs().join("w");
    fs::create_dir(&dir).unwrap();
    (1..=9).for_each(|n| fs::write(dir.join(n.to_string()), "before\n").unwrap());
    let mut run = bundle.start();
    run.wait_for("ready\n");
    wait_for_watch(run.pid(), &dir);
    run.write(b"go\n");
    run.wait_for("looked\n");
    fs::write(dir.join("missing"), "").unwrap();
    fs::remove_file(dir.join("9")).unwrap();
    fs::write(dir.join("1"), "changed\n").unwrap();
    assert_eq!(run.wait_for("seen\n"), "1\n2\n3\n4\n5\n6\n7\n8\nmissing\nseen\n");
    run.finish().code(0);
}

#[test]
fn attributes_that_are_set_again_are_those_of_the_host() {
    let bundle = Bundle::new(&["/bin/guest", "attributes-again"]).with(|c| c["process"]["cwd"] = json!("/w"));
    bundle.copy_guest_program();
    let dir = bundle.rootfs().join("w");
    fs::create_dir(&dir).unwrap();
    let mut run = bundle.start();
    run.wait_for("ready\n");
    wait_for_watch(run.pid(), &dir);
    run.write(b"go\n");
    run.wait_for("ok\n");
    let found = fs::metadata(dir.join("a3")).unwrap();
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (7, 8, 0o700));
    run.finish().code(0);
}

#[test]
fn inotify_in_the_guest_hears_what_the_host_does() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("known"), "").unwrap();
    let volume = json!({"destination": "/v", "type": "bind", "source": dir.path(), "options": ["rbind"]});
    let bundle = Bundle::new(&["/bin/guest", "watch", "/v"]).mount(volume);
    bundle.copy_guest_program();
    let mut run = bundle.start();
    run.wait_for("ready\n");
    wait_for_watch(run.pid(), dir.path());
    fs::write(dir.path().join("new"), "x").unwrap();
    // The file must still have the name when the guest is told that it was closed.
    assert_eq!(run.wait_for("close new\n"), "create new\nmodify new\nclose new\n");
    fs::rename(dir.path().join("new"), dir.path().join("known")).unwrap();
    fs::remove_file(dir.path().join("known")).unwrap();
    assert_eq!(run.wait_for("delete known\n"), "from new\nto known\ndelete known\n");
    run.stop();
}

#[test]
fn a_file_that_was_closed_is_on_the_host() {
    let bundle = Bundle::sh("for n in 1 2 3; do echo line $n; done > /file; echo ready; read x");
    let mut run = bundle.start();
    run.wait_for("ready\n");
    assert_eq!(fs::read_to_string(bundle.rootfs().join("file")).unwrap(), "line 1\nline 2\nline 3\n");
    run.write(b"\n");
    run.finish().code(0);
}

#[test]
fn what_was_written_to_an_open_file_reaches_the_host_soon() {
    let bundle = Bundle::sh("exec 3> /file; printf one >&3; printf two >&3; echo ready; read x");
    let mut run = bundle.start();
    run.wait_for("ready\n");
    let file = bundle.rootfs().join("file");
    wait("the data of an open file", || fs::read(&file).is_ok_and(|data| data == b"onetwo"));
    run.write(b"\n");
    run.finish().code(0);
}

#[test]
fn a_file_that_the_host_removes_is_not_kept() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("gone"), "x").unwrap();
    let volume = json!({"destination": "/v", "type": "bind", "source": dir.path(), "options": ["rbind"]});
    let mut run = Bundle::sh("cat /v/gone; echo ready; read x").mount(volume).start();
    run.wait_for("ready\n");
    let process = run.pid();
    let held = || {
        let links = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
        let mut names = links.filter_map(|link| fs::read_link(link.unwrap().path()).ok());
        names.any(|name| name.to_string_lossy().contains("/gone"))
    };
    assert!(held());
    // What is removed before that is kept until the guest looks.
    wait_for_watch(process, dir.path());
    fs::remove_file(dir.path().join("gone")).unwrap();
    wait("the descriptor of a removed file", || !held());
    run.write(b"\n");
    run.finish().code(0);
}

#[test]
fn a_full_disk_is_an_error_of_collected_writes() {
    let dir = TempDir::new().unwrap();
    check_output(Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"]).arg(dir.path()));
    busybox_rootfs(dir.path());
    let bundle =
        Bundle::sh("dd if=/dev/zero of=/big bs=4k count=8000 conv=fsync; echo $?; rm /big; echo x > /f")
            .with(|c| c["root"]["path"] = json!(dir.path()));
    let run = bundle.run();
    check_output(Command::new("umount").args(["-l"]).arg(dir.path()));
    let run = run.code(0).stdout("1\n");
    assert!(String::from_utf8_lossy(&run.stderr).contains("No space left on device"), "{run}");
}
