//! Files in the states in which the guest's kernel asks the file server late, by another name, or not at all.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use tests::{Bundle, Running, check_output, until};

/// Time limit for events that should take milliseconds.
const DEADLINE: Duration = Duration::from_secs(120);

/// Whether a process has a file open for reading or writing, and not only a name for it (O_PATH).
fn has_open(process: u32, file: (u64, u64)) -> bool {
    let all = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    all.flatten().any(|link| {
        let same = fs::metadata(link.path()).is_ok_and(|stat| (stat.dev(), stat.ino()) == file);
        same && !is_path(process, &link.file_name().to_string_lossy())
    })
}

/// Whether a descriptor is only a name. proc(5): the flags in fdinfo are octal.
fn is_path(process: u32, descriptor: &str) -> bool {
    let text = fs::read_to_string(format!("/proc/{process}/fdinfo/{descriptor}")).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_PATH != 0)
}

fn key(path: &Path) -> (u64, u64) {
    let stat = fs::metadata(path).unwrap();
    (stat.dev(), stat.ino())
}

fn volume(dir: &TempDir) -> serde_json::Value {
    json!({"destination": "/v", "type": "bind", "source": dir.path(), "options": ["rbind"]})
}

#[test]
fn a_file_that_the_server_does_not_know_to_be_open_can_be_read_after_the_host_removed_it() {
    let bundle = Bundle::sh(
        "while read x; do exec 3< /w/file; echo open; read x; [ -z \"$x\" ] || break; exec 3<&-; done; \
         cat <&3; exec 3<&-; echo closed; read x",
    );
    let dir = bundle.rootfs().join("w");
    fs::create_dir(&dir).unwrap();
    let file = dir.join("file");
    fs::write(&file, "contents\n").unwrap();
    let key = key(&file);
    let mut run = bundle.start();
    let begun = Instant::now();
    // The guest tells the server of each open, until changes of the directory are watched.
    loop {
        run.write(b"\n");
        run.wait_for("open\n");
        if !has_open(run.pid(), key) {
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "the guest tells of an open for reading");
        run.write(b"\n");
    }
    fs::remove_file(&file).unwrap();
    run.write(b"last\n");
    assert_eq!(run.wait_for("closed\n"), "contents\nclosed\n");
    // The guest has forgotten the file, so the host gets its space back.
    let begun = Instant::now();
    while has_open(run.pid(), key) {
        assert!(begun.elapsed() < DEADLINE, "a removed file is open");
        std::thread::yield_now();
    }
    run.write(b"\n");
    run.finish().code(0);
}

#[test]
fn a_program_that_was_written_to_a_volume_runs_on_the_host_at_once() {
    let dir = TempDir::new().unwrap();
    let mut run = Bundle::sh("cp /bin/busybox /v/busybox; echo ready; read x").mount(volume(&dir)).start();
    run.wait_for("ready\n");
    // ETXTBSY while it is open for writing.
    assert_eq!(check_output(Command::new(dir.path().join("busybox")).args(["echo", "runs"])), "runs\n");
    run.write(b"\n");
    run.finish().code(0);
}

#[test]
fn a_name_of_which_the_guest_knows_nothing_is_created_or_opened() {
    let bundle = Bundle::sh(
        "cd /w; echo 2 >> file; cat file; echo 1 > new; cat new; echo 1 > link; cat target; \
         echo 1 > dangling; cat made; echo x > dir; echo x >> ro/file; cat ro/file < ro/other; \
         set -C; echo x > other; cat other",
    );
    let dir = bundle.rootfs().join("w");
    fs::create_dir_all(dir.join("dir")).unwrap();
    let read_only = TempDir::new().unwrap();
    for name in ["file", "target", "other"] {
        fs::write(dir.join(name), "1\n").unwrap();
        fs::write(read_only.path().join(name), "ro\n").unwrap();
    }
    symlink("target", dir.join("link")).unwrap();
    symlink("made", dir.join("dangling")).unwrap();
    let source = read_only.path();
    let options = ["rbind", "ro"];
    let run = bundle
        .mount(json!({"destination": "/w/ro", "type": "bind", "source": source, "options": options}))
        .run();
    let run = run.code(0).stdout("1\n2\n1\n1\n1\nro\n1\n");
    let errors = String::from_utf8_lossy(&run.stderr).into_owned();
    for error in [
        "can't create dir: Is a directory",
        "can't create ro/file: Read-only",
        "can't create other: File exists",
    ] {
        assert!(errors.contains(error), "{run}");
    }
}

#[test]
fn what_was_synced_or_closed_is_on_the_host_when_the_machine_is_killed() {
    let bundle = Bundle::sh(
        "echo closed > /closed; exec 3> /synced; echo synced >&3; dd if=/bin/busybox of=/large bs=8k conv=fsync; \
         sync /synced; echo ready; read x",
    );
    let mut run = bundle.start();
    run.wait_for("ready\n");
    run.signal("KILL");
    run.finish();
    let read = |name: &str| fs::read(bundle.rootfs().join(name)).unwrap();
    assert_eq!(read("closed"), b"closed\n");
    assert_eq!(read("synced"), b"synced\n");
    assert!(read("large") == read("bin/busybox"));
}

#[test]
fn what_was_just_written_is_looked_at_and_read_without_a_request_until_the_host_changes_it() {
    const FILES: usize = 20;
    let log = TempDir::new().unwrap();
    let log = log.path().join("log");
    let bundle = Bundle::sh(
        "cd /w; while read x; do for n in $(seq 20); do echo $x > f$n; done; echo written; \
         read x; stat -c '%n %s %Y' f* && cat f*; echo looked; read x; \
         while [ \"$x\" = cat ]; do cat f7; echo end; read x; done; done; true",
    )
    .flag("--log-level")
    .flag("trace")
    .flag("--log")
    .flag(log.to_str().unwrap());
    let dir = bundle.rootfs().join("w");
    fs::create_dir(&dir).unwrap();
    let mut run = bundle.start();
    // GETATTR
    let asked = || fs::read_to_string(&log).unwrap().matches("file server: request 3 of ").count();
    let mut round = 0;
    // Attributes are valid for long only when changes of the directory are watched.
    let shown = until("the guest asks for attributes of what it has written", || {
        round += 1;
        run.write(format!("{round}\n").as_bytes());
        run.wait_for("written\n");
        let before = asked();
        run.write(b"\n");
        let shown = run.wait_for("looked\n");
        (asked() - before < FILES / 2).then_some(shown).or_else(|| {
            run.write(b"\n");
            None
        })
    });
    for n in 1..=FILES {
        let stat = fs::metadata(dir.join(format!("f{n}"))).unwrap();
        let line = format!("f{n} {} {}\n", stat.size(), stat.mtime());
        assert!(shown.contains(&line), "{line}{shown}");
    }
    assert_eq!(shown.lines().filter(|line| *line == round.to_string()).count(), FILES, "{shown}");
    fs::write(dir.join("f7"), "host\n").unwrap();
    until("the guest does not see what the host has written", || {
        run.write(b"cat\n");
        (run.wait_for("end\n") == "host\nend\n").then_some(())
    });
    run.finish().code(0);
}

#[test]
fn processes_that_are_killed_while_they_wait_for_files_hold_no_other_up() {
    let bundle = Bundle::sh(
        "work() { while :; do cat /data > /copy$1; cat /copy$1 > /v/copy$1; rm /copy$1; ls -R /etc; done; }; \
         n=0; while [ $n -lt 5 ]; do for m in 1 2 3; do work $m & echo $! > /pid$m; done; \
         i=0; while [ $i -lt 5 ]; do echo $i > /own; cat /own; i=$((i+1)); done; \
         for m in 1 2 3; do kill -9 $(cat /pid$m); done; wait; n=$((n+1)); done > /dev/null 2>&1; echo end",
    );
    fs::write(bundle.rootfs().join("data"), vec![1; 200_000]).unwrap();
    let dir = TempDir::new().unwrap();
    bundle.mount(volume(&dir)).run().code(0).stdout("end\n");
}

/// A signal makes a process leave those that wait for replies, on one vCPU, while a reply's interrupt counts on it on the other.
#[test]
fn processes_that_are_stopped_while_they_wait_for_files_lose_no_reply() {
    let bundle = Bundle::sh(
        "work() { n=0; while [ $n -lt 150 ]; do : > /new$1; read x < /data; [ -e /none$1.$n ]; n=$((n+1)); done; : > /end$1; }; \
         all=; for m in 1 2 3; do work $m & all=\"$all $!\"; done; \
         while ! [ -e /end1 -a -e /end2 -a -e /end3 ]; do kill -STOP $all; kill -CONT $all; done 2> /dev/null; wait; echo end",
    );
    fs::write(bundle.rootfs().join("data"), "data\n").unwrap();
    let mut command = bundle.command();
    command.env("VMM_CPUS", "2");
    Running::start(command).finish().code(0).stdout("end\n");
}
