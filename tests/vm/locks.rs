//! Files that two machines and the host use at the same time: locks, and what is appended.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;
use tests::{Bundle, Running, guest_program};

/// A directory that containers and the host share, with the file `file`.
struct Volume(TempDir);

impl Volume {
    fn new(content: &str) -> Volume {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("file"), content).unwrap();
        Volume(dir)
    }

    fn content(&self) -> String {
        fs::read_to_string(self.0.path().join("file")).unwrap()
    }

    /// Starts a machine with a process that takes commands (tests/guest/locks.rs).
    fn machine(&self) -> Party {
        let volume =
            json!({"destination": "/v", "type": "bind", "source": self.0.path(), "options": ["rbind", "rw"]});
        let bundle = Bundle::new(&["/bin/guest", "locks", "/v/file"]).mount(volume);
        bundle.copy_guest_program();
        Party(bundle.start())
    }

    /// Starts such a process on the host.
    fn host(&self) -> Party {
        let mut command = Command::new(guest_program());
        command.arg("locks").arg(self.0.path().join("file"));
        Party(Running::start(command))
    }
}

/// A process that takes commands.
struct Party(Running);

impl Party {
    fn tell(&mut self, command: &str) {
        self.0.write(format!("{command}\n").as_bytes());
    }

    fn answer(&mut self) -> String {
        self.0.wait_for("\n").trim_end().to_owned()
    }

    fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer()
    }

    #[track_caller]
    fn check(&mut self, steps: &[(&str, &str)]) {
        for (command, answer) in steps {
            assert_eq!(self.ask(command), *answer, "{command}");
        }
    }

    fn end(self) {
        self.0.finish().code(0);
    }
}

/// Ranges exclude each other, both may lock first.
#[track_caller]
fn check_ranges(one: &mut Party, two: &mut Party) {
    for party in [&mut *one, &mut *two] {
        party.check(&[("open 10 rw", "ok"), ("open 11 r", "ok")]);
    }
    one.check(&[("lock 10 posix try w 0 10", "ok"), ("lock 10 ofd try r 100 10", "ok")]);
    two.check(&[
        ("lock 10 posix try r 9 1", "EAGAIN"),
        ("lock 11 ofd try r 0 0", "EAGAIN"),
        ("lock 10 posix try w 10 90", "ok"),
        ("lock 10 ofd try w 105 1", "EAGAIN"),
        ("lock 10 ofd try r 105 1", "ok"),
        ("lock 11 posix try w 500 1", "EBADF"),
        ("test 10 posix w 0 10", "w 0 10"),
        ("test 10 ofd r 0 10", "w 0 10"),
        ("test 10 posix r 200 0", "free"),
    ]);
    one.check(&[
        ("test 10 posix r 0 100", "w 10 90"),
        // A range in the middle is unlocked, which leaves two.
        ("lock 10 posix try u 4 2", "ok"),
        // A conversion that is refused leaves the lock as it was.
        ("lock 10 ofd try w 100 10", "EAGAIN"),
    ]);
    two.check(&[
        ("lock 10 posix try w 4 2", "ok"),
        ("lock 10 posix try w 3 1", "EAGAIN"),
        ("lock 10 posix try w 6 1", "EAGAIN"),
        ("lock 10 ofd try w 105 1", "EAGAIN"),
        ("lock 10 ofd try u 0 0", "ok"),
    ]);
    // Closing any of the file's descriptors ends the process's own locks, and closing the last one those of the file.
    one.check(&[("lock 10 ofd try w 100 10", "ok"), ("close 11", "ok")]);
    two.check(&[("lock 10 posix try w 0 10", "ok"), ("lock 10 posix try r 100 1", "EAGAIN")]);
    one.check(&[("close 10", "ok")]);
    two.check(&[("lock 10 posix try w 0 0", "ok"), ("close 10", "ok"), ("close 11", "ok")]);
}

/// flock follows the open file through dup and fork.
#[track_caller]
fn check_flock(one: &mut Party, two: &mut Party) {
    one.check(&[("open 10 rw", "ok"), ("dup 10 12", "ok"), ("flock 10 try r", "ok")]);
    two.check(&[("open 10 r", "ok"), ("flock 10 try r", "ok"), ("flock 10 try w", "EAGAIN")]);
    // The refused conversion has lost the shared lock.
    one.check(&[("flock 12 try w", "ok"), ("spawn heir", "ok"), ("close 10", "ok"), ("close 12", "ok")]);
    two.check(&[("flock 10 try r", "EAGAIN"), ("lock 10 posix try r 0 0", "ok")]);
    one.check(&[("heir: close 10", "ok")]);
    two.check(&[("flock 10 try r", "EAGAIN")]);
    one.check(&[("heir: flock 12 try u", "ok")]);
    two.check(&[("flock 10 try w", "ok")]);
    one.check(&[("heir: flock 12 try r", "EAGAIN"), ("kill heir KILL", "ok")]);
    two.check(&[("close 10", "ok")]);
}

/// A process of `two` waits for a lock of a process of `one`, for each way in which the wait ends.
#[track_caller]
fn check_waiting(one: &mut Party, two: &mut Party) {
    for (open, take, wait, give) in [
        ("open 10 rw", "lock 10 posix try w 0 10", "lock 10 posix wait w 5 1", "lock 10 posix try u 0 0"),
        ("open 10 rw", "lock 10 ofd try w 0 10", "lock 10 posix wait r 5 1", "close 10"),
        ("open 10 rw", "flock 10 try w", "flock 10 wait r", "flock 10 try u"),
    ] {
        one.check(&[("spawn a", "ok"), (&format!("a: {open}"), "ok"), (&format!("a: {take}"), "ok")]);
        two.check(&[("spawn b", "ok"), (&format!("b: {open}"), "ok"), (&format!("b& {wait}"), "waits")]);
        // A signal interrupts the wait.
        two.check(&[("kill b USR1", "ok"), ("b?", "EINTR"), (&format!("b& {wait}"), "waits")]);
        one.check(&[(&format!("a: {give}"), "ok")]);
        two.check(&[("b?", "ok"), ("kill b KILL", "ok")]);
        one.check(&[("kill a KILL", "ok")]);
        // A process that is killed while it waits leaves nothing behind, and a killed holder lets the others go on.
        one.check(&[("spawn a", "ok"), (&format!("a: {open}"), "ok"), (&format!("a: {take}"), "ok")]);
        two.check(&[
            ("spawn b", "ok"),
            (&format!("b: {open}"), "ok"),
            (&format!("b& {wait}"), "waits"),
            ("kill b KILL", "ok"),
            ("spawn b", "ok"),
            (&format!("b: {open}"), "ok"),
            (&format!("b& {wait}"), "waits"),
        ]);
        one.check(&[("kill a KILL", "ok")]);
        two.check(&[("b?", "ok"), ("kill b KILL", "ok")]);
        one.check(&[("spawn a", "ok"), (&format!("a: {open}"), "ok"), (&format!("a: {take}"), "ok")]);
        one.check(&[("kill a KILL", "ok")]);
    }
}

#[test]
fn locks_of_a_machine_hold_against_the_host_and_the_other_way_round() {
    let volume = Volume::new("x");
    let (mut machine, mut host) = (volume.machine(), volume.host());
    for check in [check_ranges, check_flock, check_waiting] {
        check(&mut machine, &mut host);
        check(&mut host, &mut machine);
    }
    machine.end();
    host.end();
}

#[test]
fn locks_of_one_machine_hold_in_another() {
    let volume = Volume::new("x");
    let (mut one, mut two) = (volume.machine(), volume.machine());
    for check in [check_ranges, check_flock, check_waiting] {
        check(&mut one, &mut two);
    }
    one.end();
    two.end();
}

/// Two processes of one kernel.
const ONE_KERNEL: [(&str, &str); 17] = [
    ("spawn a", "ok"),
    ("spawn b", "ok"),
    ("a: open 10 rw", "ok"),
    ("b: open 10 rw", "ok"),
    ("a: lock 10 posix try w 0 1", "ok"),
    ("b: lock 10 posix try w 1 1", "ok"),
    ("a& lock 10 posix wait w 1 1", "waits"),
    ("b: lock 10 posix wait w 0 1", "EDEADLK"),
    ("b: lock 10 posix try u 1 1", "ok"),
    ("a?", "ok"),
    ("b: lock 10 posix try r 1 1", "EAGAIN"),
    // A conversion that waits has lost its shared lock, so the other process gets the exclusive one.
    ("a: flock 10 try r", "ok"),
    ("b: flock 10 try r", "ok"),
    ("a& flock 10 wait w", "waits"),
    ("b: flock 10 try w", "ok"),
    ("b: flock 10 try u", "ok"),
    ("a?", "ok"),
];

#[test]
fn processes_of_one_machine_lock_as_those_of_the_host_do() {
    let volume = Volume::new("x");
    for mut party in [volume.host(), volume.machine()] {
        party.check(&ONE_KERNEL);
        party.end();
    }
}

#[test]
fn the_locks_of_a_machine_that_is_killed_are_free() {
    let volume = Volume::new("x");
    let (mut one, mut two, mut host) = (volume.machine(), volume.machine(), volume.host());
    one.check(&[("open 10 rw", "ok"), ("lock 10 posix try w 0 10", "ok"), ("flock 10 try w", "ok")]);
    two.check(&[("spawn b", "ok"), ("b: open 10 rw", "ok"), ("b& flock 10 wait w", "waits")]);
    host.check(&[("open 10 rw", "ok"), ("spawn b", "ok"), ("b& lock 10 posix wait w 9 1", "waits")]);
    one.0.stop();
    two.check(&[("b?", "ok")]);
    host.check(&[("b?", "ok")]);
    two.end();
    host.end();
}

#[test]
fn what_is_written_under_a_lock_is_read_under_the_next_one() {
    let volume = Volume::new("00000000");
    let mut parties = [volume.machine(), volume.machine(), volume.host()];
    parties.iter_mut().for_each(|party| party.tell("increment 10 300"));
    parties.iter_mut().for_each(|party| assert_eq!(party.answer(), "ok"));
    assert_eq!(volume.content(), "00000900");
    parties.into_iter().for_each(Party::end);
}

/// Lines that each machine appends.
const LINES: usize = 2000;

fn appends(line: &str) -> String {
    // The shell opens the file for each line, and another descriptor stays open.
    format!(
        "i=0; while [ $i -lt {half} ]; do echo {line} >> /v/file; i=$((i+1)); done; exec 5>>/v/file; \
         while [ $i -lt {LINES} ]; do echo {line} >&5; i=$((i+1)); done; echo done; read a; \
         grep -c -x {line} /v/file; grep -v -x -E 'a{{60}}|b{{70}}' /v/file | head -3; stat -c %s /v/file",
        half = LINES / 2
    )
}

fn appender(volume: &Path, line: &str) -> Running {
    let volume = json!({"destination": "/v", "type": "bind", "source": volume, "options": ["rbind", "rw"]});
    Bundle::sh(&appends(line)).mount(volume).start()
}

#[test]
fn lines_that_two_machines_append_are_whole_on_the_host_and_in_both() {
    let volume = Volume::new("");
    let (a, b) = ("a".repeat(60), "b".repeat(70));
    let mut both = [&a, &b].map(|line| appender(volume.0.path(), line));
    both.iter_mut().for_each(|machine| drop(machine.wait_for("done\n")));
    let content = volume.content();
    for line in [&a, &b] {
        assert_eq!(content.lines().filter(|found| found == line).count(), LINES);
    }
    assert_eq!(content.len(), LINES * (61 + 71));
    let seen = format!("{LINES}\n{}", LINES * (61 + 71));
    for mut machine in both {
        machine.write(b"\n");
        let run = machine.finish();
        assert_eq!(run.text(), seen, "{run}");
    }
}
