//! Databases and dpkg on a volume, which several machines and the host use at the same time, and some of them are killed.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;
use tempfile::TempDir;
use tests::{Bundle, Running, check_output};

use crate::volumes::{copy_program, volume};

/// Seconds for which the users of a volume work, a minute for a thorough test.
const SECONDS: &str = "VMM_TEST_LOAD_SECONDS";
/// Their number without this variable.
const DEFAULT_SECONDS: u64 = 6;

fn load() -> Duration {
    let given = std::env::var(SECONDS).map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(given.unwrap_or(DEFAULT_SECONDS))
}

/// A database on a volume.
struct Database(TempDir);

impl Database {
    /// A database with a counter for each user, and one for all.
    fn of_users(mode: &str) -> Database {
        let database = Database(TempDir::new().unwrap());
        database.on_host(&format!(
            "pragma journal_mode={mode}; create table t (who text primary key, n integer); \
             insert into t values ('a', 0), ('b', 0), ('c', 0), ('all', 0);"
        ));
        database
    }

    fn new(mode: &str) -> Database {
        let dir = TempDir::new().unwrap();
        let database = Database(dir);
        let script =
            format!("pragma journal_mode={mode}; create table t (n integer); insert into t values (0);");
        database.on_host(&script);
        database
    }

    fn on_host(&self, script: &str) -> String {
        let mut command = Command::new("sqlite3");
        check_output(command.args(["-cmd", ".timeout 60000"]).arg(self.0.path().join("db")).arg(script))
    }

    /// A machine whose shell runs `script` with the function `sql`.
    fn machine(&self, script: &str) -> Bundle {
        let bundle =
            Bundle::sh(&format!("sql() {{ sqlite3 -cmd '.timeout 60000' /v/db \"$@\"; }}; {script}"));
        copy_program(&bundle, "/usr/bin/sqlite3");
        bundle.with(|c| c["process"]["env"] = json!(["PATH=/usr/bin:/bin"])).mount(volume(self.0.path()))
    }
}

/// Adds 1 so often, with a transaction for each.
fn add(times: u32) -> String {
    format!(
        "for i in $(seq {times}); do sql 'begin immediate; update t set n = n + 1; commit;' || exit; done; echo added"
    )
}

#[test]
fn two_machines_lose_nothing_of_a_database_without_wal() {
    let database = Database::new("delete");
    let mut machines = [(), ()].map(|()| database.machine(&format!("read go; {}", add(60))).start());
    machines.iter_mut().for_each(|machine| machine.write(b"\n"));
    for machine in machines {
        machine.finish().code(0).stdout("added\n");
    }
    assert_eq!(database.on_host("select n from t; pragma integrity_check;"), "120\nok\n");
}

#[test]
fn a_database_without_wal_survives_a_killed_machine() {
    let database = Database::new("delete");
    let mut victim = database.machine(&format!("echo begun; {}", add(1_000_000))).start();
    victim.wait_for("begun\n");
    let other = database.machine(&add(20)).start();
    // While it writes.
    database.machine("sql 'select n from t'").run().code(0);
    victim.signal("KILL");
    other.finish().code(0).stdout("added\n");
    let last = database.on_host("select n from t; pragma integrity_check;");
    let (count, check) = last.split_once('\n').unwrap();
    assert!(count.parse::<u32>().unwrap() >= 20, "{last}");
    assert_eq!(check, "ok\n");
}

#[test]
fn a_database_with_wal_is_refused_to_a_second_machine_and_never_damaged() {
    let database = Database::new("wal");
    // The first machine keeps the database open.
    let hold = "mkfifo /p; sqlite3 /v/db < /p & exec 3> /p; \
        echo 'update t set n = n + 1; select n from t;' >&3; read a; echo 'select n from t;' >&3; read a; exec 3>&-; wait";
    let mut first = database.machine(hold).start();
    first.wait_for("1\n");
    let refused = database.machine("sql 'update t set n = 100'").run();
    assert_ne!(refused.text(), "100\n");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("error"), "{refused}");
    first.write(b"\n");
    first.wait_for("1\n");
    // Killed: the next machine recovers what was committed.
    first.signal("KILL");
    drop(first.finish());
    let next = database.machine("sql 'update t set n = n + 1; select n from t; pragma integrity_check'");
    next.run().code(0).stdout("2\nok\n");
    assert_eq!(database.on_host("select n from t; pragma integrity_check;"), "2\nok\n");
}

/// Adds 1 to a user's counter and that of all, until there is the file `stop`. Prints its own sum after each transaction.
/// `or` says what follows an error.
fn work(who: char, or: &str) -> String {
    format!(
        "n=0; echo begun; until [ -e /v/stop ]; do sql \"begin immediate; update t set n = n + 1 where who in ('{who}', 'all'); \
         commit;\" && n=$((n+1)) && echo $n || {or}; done; echo end"
    )
}

/// Returns the last sum that a user has printed.
fn last_sum(text: &str) -> u64 {
    text.lines().filter_map(|line| line.parse().ok()).next_back().unwrap_or(0)
}

impl Database {
    /// Starts [`work`] on the host, in a process group of its own.
    fn work_on_host(&self, who: char) -> Running {
        let script = work(who, "exit 1").replace("/v/", "");
        let functions = "sql() { sqlite3 -cmd '.timeout 60000' db \"$@\"; }";
        let mut command = Command::new("/bin/busybox");
        command
            .args(["sh", "-c", &format!("{functions}; {script}")])
            .current_dir(self.0.path())
            .process_group(0);
        Running::start(command)
    }

    fn sum(&self, who: &str) -> u64 {
        self.on_host(&format!("select n from t where who = '{who}'")).trim().parse().unwrap()
    }

    fn stop(&self) {
        fs::write(self.0.path().join("stop"), "").unwrap();
    }

    /// Checks the sums of the user that was killed, and of others, which were not.
    #[track_caller]
    fn check(&self, killed: (&str, u64), others: &[(&str, u64)]) {
        assert_eq!(self.on_host("pragma integrity_check"), "ok\n");
        for (who, sum) in others {
            assert_eq!(self.sum(who), *sum, "{who}");
            assert!(*sum > 0, "{who}");
        }
        // It may have been killed between its last transaction and the report of it.
        let (found, reported) = (self.sum(killed.0), killed.1);
        assert!(found == reported || found == reported + 1, "{found} of the killed one, {reported} reported");
        assert_eq!(self.sum("all"), found + others.iter().map(|(_, sum)| sum).sum::<u64>());
    }
}

/// Works on the host for a part of the time, and returns the number of transactions.
fn work_here(database: &Database, time: Duration) -> u64 {
    let begun = Instant::now();
    let mut sum = 0;
    while begun.elapsed() < time {
        database.on_host("begin immediate; update t set n = n + 1 where who in ('c', 'all'); commit;");
        sum += 1;
    }
    sum
}

/// Has user `a`, which has printed `seen`, killed in the middle, while user `b` and this process work. Checks what each has done.
fn check_with_victim(
    database: &Database,
    mut victim: Running,
    mut seen: String,
    other: Running,
    kill: impl FnOnce(&mut Running),
) {
    let mut own = work_here(database, load() / 2);
    kill(&mut victim);
    seen.push_str(&victim.finish().text());
    own += work_here(database, load() / 2);
    database.stop();
    let other = other.finish().code(0);
    database.check(("a", last_sum(&seen)), &[("b", last_sum(&other.text())), ("c", own)]);
}

#[test]
fn two_machines_and_the_host_lose_nothing_of_a_database_when_a_machine_is_killed() {
    let database = Database::of_users("delete");
    // The machines first.
    let mut victim = database.machine(&work('a', "exit 1")).start();
    let mut other = database.machine(&work('b', "exit 1")).start();
    let seen = victim.wait_for("3\n");
    other.wait_for("begun\n");
    check_with_victim(&database, victim, seen, other, |victim| victim.signal("KILL"));
}

#[test]
fn a_machine_and_the_host_lose_nothing_of_a_database_when_the_host_s_process_is_killed() {
    let database = Database::of_users("delete");
    // The host first.
    let mut victim = database.work_on_host('a');
    let seen = victim.wait_for("3\n");
    let mut other = database.machine(&work('b', "exit 1")).start();
    other.wait_for("begun\n");
    check_with_victim(&database, victim, seen, other, |victim| {
        let group = Pid::from_raw(victim.pid() as i32).unwrap();
        kill_process_group(group, Signal::KILL).unwrap();
    });
}

#[test]
fn a_database_with_wal_goes_from_a_killed_machine_to_the_next_and_loses_nothing() {
    let database = Database::of_users("wal");
    // The first machine has the database open all the time.
    let connection = "mkfifo /p; sqlite3 -cmd '.timeout 60000' /v/db < /p & exec 4> /p; echo \"select 'open' from t limit 1;\" >&4";
    let mut victim = database.machine(&format!("{connection}; {}", work('a', "exit 1"))).start();
    let mut seen = victim.wait_for("3\n");
    // The second one is refused as long as the first one runs, and tries again.
    let mut other = database.machine(&format!("exec 2> /dev/null; {}", work('b', "echo refused"))).start();
    other.wait_for("refused\n");
    let begun = Instant::now();
    while begun.elapsed() < load() / 2 {
        seen.push_str(&victim.wait_for("\n"));
    }
    victim.signal("KILL");
    seen.push_str(&victim.finish().text());
    let mut taken = String::new();
    let begun = Instant::now();
    while begun.elapsed() < load() / 2 || last_sum(&taken) == 0 {
        taken.push_str(&other.wait_for("\n"));
    }
    database.stop();
    taken.push_str(&other.finish().code(0).text());
    database.check(("a", last_sum(&seen)), &[("b", last_sum(&taken))]);
}

#[test]
fn a_database_with_wal_that_the_host_has_open_is_refused_to_a_machine() {
    let database = Database::of_users("wal");
    let mut command = Command::new("sqlite3");
    command.arg("db").current_dir(database.0.path());
    let mut host = Running::start(command);
    host.write(b"begin; select n from t where who = 'all'; commit; select 'open';\n");
    host.wait_for("open\n");
    let refused = database.machine("sql \"update t set n = 100\"").run();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("error"), "{refused}");
    host.write(b"update t set n = n + 1; select 'end';\n");
    host.wait_for("end\n");
    host.finish().code(0);
    let next =
        database.machine("sql \"update t set n = n + 1; select sum(n) from t; pragma integrity_check\"");
    next.run().code(0).stdout("8\nok\n");
}

/// Builds a package without dependencies that has `files` files.
fn package(dir: &Path, name: &str, files: usize) {
    let tree = dir.join(name);
    fs::create_dir_all(tree.join("DEBIAN")).unwrap();
    fs::create_dir_all(tree.join("opt").join(name)).unwrap();
    let control = format!(
        "Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@b.example>\nDescription: toy\n"
    );
    fs::write(tree.join("DEBIAN/control"), control).unwrap();
    for n in 0..files {
        fs::write(tree.join("opt").join(name).join(n.to_string()), vec![b'x'; n * 37]).unwrap();
    }
    let archive = dir.join(format!("{name}.deb"));
    check_output(
        Command::new("dpkg-deb").args(["--root-owner-group", "-Znone", "-b"]).arg(&tree).arg(archive),
    );
    fs::remove_dir_all(tree).unwrap();
}

#[test]
fn dpkg_of_two_machines_and_of_the_host_takes_turns_on_one_volume() {
    const PACKAGES: usize = 4;
    let dir = TempDir::new().unwrap();
    for party in ["a", "b", "c"] {
        (0..PACKAGES).for_each(|n| package(dir.path(), &format!("toy-{party}{n}"), 30));
    }
    let admin = dir.path().join("root/var/lib/dpkg");
    ["info", "updates", "triggers"].iter().for_each(|name| fs::create_dir_all(admin.join(name)).unwrap());
    ["status", "available"].iter().for_each(|name| fs::write(admin.join(name), "").unwrap());
    // dpkg does not wait for its lock: it fails, and says so.
    let install = |place: &str, party: &str| {
        format!(
            "cd {place}; echo begun; for n in $(seq 0 {last}); do \
             until dpkg --root={place}/root -i toy-{party}$n.deb > out-{party} 2>&1; do \
             grep -q 'lock' out-{party} || {{ cat out-{party}; exit 1; }}; done; done; echo end",
            last = PACKAGES - 1
        )
    };
    let machine = |script: &str| Bundle::debian(&["bash", "-c", script]).mount(volume(dir.path())).start();
    let mut one = machine(&install("/v", "a"));
    one.wait_for("begun\n");
    let mut command = Command::new("bash");
    command.args(["-c", &install(dir.path().to_str().unwrap(), "c")]);
    let host = Running::start(command);
    let two = machine(&install("/v", "b"));
    // Killed while it has the lock.
    let mut victim = machine("while :; do dpkg --root=/v/root -i /v/toy-a0.deb && echo once; done 2>&1");
    victim.wait_for("once\n");
    victim.signal("KILL");
    drop(victim.finish());
    for party in [one, two, host] {
        let run = party.finish().code(0);
        assert!(run.text().ends_with("end"), "{run}");
    }
    // As after a crash of any system, dpkg finishes what the killed one had begun.
    let root = format!("--root={}/root", dir.path().display());
    let again = dir.path().join("toy-a0.deb");
    check_output(Command::new("dpkg").args([&root, "--configure", "-a"]));
    check_output(Command::new("dpkg").args([&root, "-i"]).arg(again));
    assert_eq!(check_output(Command::new("dpkg").args([&root, "--audit"])), "");
    let list = check_output(Command::new("dpkg-query").args([&root, "-W", "-f", "${Status} ${Package}\n"]));
    let installed = list.lines().filter(|line| line.starts_with("install ok installed toy-")).count();
    assert_eq!(installed, 3 * PACKAGES, "{list}");
    for party in ["a", "b", "c"] {
        for n in 0..PACKAGES {
            let files = fs::read_dir(dir.path().join(format!("root/opt/toy-{party}{n}"))).unwrap().count();
            assert_eq!(files, 30, "{party}{n}");
        }
    }
}
