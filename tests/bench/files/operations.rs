//! The work of the bench of files. Prints `operation TAB count TAB nanoseconds TAB interrupts` for each kind of operation,
//! the last two for one operation. Interrupts are those of the machine's devices. Before and after each kind it prints a
//! line and waits for one, so that the host can look at its counters.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write, stdin};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Number of small files.
const FILES: usize = 200;
/// Number of programs that are started.
const PROGRAMS: usize = 50;
/// Size of each file that is read first in the container.
const BIG: usize = 8 << 20;
/// Number of small writes.
const WRITES: usize = 2000;

/// Creates what the work finds in its directory `work`.
pub fn prepare(work: &Path) {
    for dir in ["cold", "cold-read", "tree"] {
        fs::create_dir_all(work.join(dir)).expect("create a directory");
    }
    for number in 0..FILES {
        fs::write(work.join(format!("cold/{number}")), "cold").expect("write");
        fs::write(work.join(format!("cold-read/{number}")), [7; 3000]).expect("write");
        let dir = work.join(format!("tree/{}/{}", number % 5, number % 20));
        fs::create_dir_all(&dir).expect("create a directory");
        fs::write(dir.join(format!("{number}.c")), vec![b'x'; 500 + 37 * number]).expect("write");
    }
    for name in ["cold-big", "cold-scattered"] {
        fs::write(work.join(name), vec![7; BIG]).expect("write");
    }
    let packed = Command::new("/bin/busybox")
        .args(["tar", "-C"])
        .arg(work)
        .arg("-cf")
        .arg(work.join("tree.tar"))
        .arg("tree")
        .status();
    assert!(packed.expect("start busybox").success(), "pack the tree");
}

/// Name of the operation that does nothing, whose counts are those of the two lines.
pub const NOTHING: &str = "nothing";
/// What is printed before an operation.
pub const BEGIN: &str = "begin";

/// A kind of operations: its name, and what does them below a directory.
type Group = (&'static str, fn(&Path));

/// Kinds of operations, in order. None needs what another one leaves.
const GROUPS: [Group; 5] = [
    ("writes", writes),
    ("reads", reads),
    ("small-files", small_files),
    ("attributes", attributes),
    ("programs", programs),
];

/// Does the operations of the groups `only` below `dir`, or all if there are none.
pub fn run(dir: &Path, only: &[&str]) {
    fs::read_dir(dir).expect("read a directory");
    // A machine watches no directory in its first half second.
    sleep(Duration::from_millis(800));
    measure(NOTHING, 1, || {});
    for group in only {
        assert!(GROUPS.iter().any(|(name, _)| name == group), "no group {group}");
    }
    for (_, work) in GROUPS.iter().filter(|(name, _)| only.is_empty() || only.contains(name)) {
        work(dir);
    }
}

/// Time after which nothing is left to do of an operation: data is written back 40 ms after the write, files are released
/// after 20 ms, and what is read ahead arrives.
const SETTLED: Duration = Duration::from_millis(100);

/// Prints what one operation of `count` costs, after all that went before.
fn measure(name: &str, count: usize, work: impl FnOnce()) {
    sleep(SETTLED);
    measure_now(name, count, work);
}

/// Prints what one operation of `count` costs, with what is left to do of those before.
fn measure_now(name: &str, count: usize, work: impl FnOnce()) {
    say(BEGIN);
    let (interrupts, begun) = (interrupts(), Instant::now());
    work();
    let time = begun.elapsed().as_nanos() as f64 / count as f64;
    let interrupts = (self::interrupts() - interrupts) as f64 / count as f64;
    say(&format!("{name}\t{count}\t{time}\t{interrupts}"));
}

/// Prints a line and waits until the host has read it.
fn say(line: &str) {
    println!("{line}");
    let read = stdin().read_line(&mut String::new()).expect("read the host's line");
    assert!(read > 0, "the host has gone");
}

/// The number of interrupts of virtio devices since the boot.
fn interrupts() -> u64 {
    let text = fs::read_to_string("/proc/interrupts").unwrap_or_default();
    let lines = text.lines().filter(|line| line.contains("virtio"));
    let numbers = lines.flat_map(|line| line.split_whitespace().skip(1).map_while(|word| word.parse().ok()));
    numbers.collect::<Vec<u64>>().iter().sum()
}

fn writes(dir: &Path) {
    for (name, len, count) in
        [("write 100 B", 100, WRITES), ("write 4 KiB", 4096, 1000), ("write 1 MiB", 1 << 20, 8)]
    {
        let block = vec![1; len];
        let mut file = File::create(dir.join(name)).expect("create");
        measure(name, count, || (0..count).for_each(|_| file.write_all(&block).expect("write")));
        measure_now(&format!("{name}: close"), 1, || drop(file));
    }
    let file = OpenOptions::new().read(true).write(true).open(dir.join("write 4 KiB")).expect("open");
    let block = vec![2; 4096];
    measure("write 4 KiB at random", 500, || {
        (0..500).for_each(|n| file.write_all_at(&block, (n * 7919 % 1000) << 12).expect("write"));
    });
    measure_now("write 4 KiB at random: close", 1, || drop(file));
    let mut file = File::create(dir.join("synced")).expect("create");
    measure("write 100 B, fdatasync", 100, || {
        for _ in 0..100 {
            file.write_all(&[1; 100]).expect("write");
            file.sync_data().expect("fdatasync");
        }
    });
    let log = dir.join("log");
    measure("open, append 40 B, close", FILES, || {
        for _ in 0..FILES {
            let mut file = OpenOptions::new().create(true).append(true).open(&log).expect("open");
            file.write_all(&[b'l'; 40]).expect("append");
        }
    });
}

fn reads(dir: &Path) {
    let mut block = vec![0; 1 << 20];
    let mut written = File::create(dir.join("written")).expect("create");
    (0..8).for_each(|_| written.write_all(&block).expect("write"));
    drop(written);
    measure("read 1 MiB, uncached", BIG >> 20, || {
        let mut file = File::open(dir.join("cold-big")).expect("open");
        (0..BIG >> 20).for_each(|_| file.read_exact(&mut block).expect("read"));
    });
    measure("read 4 KiB at random, uncached", 200, || {
        let file = File::open(dir.join("cold-scattered")).expect("open");
        (0..200).for_each(|n| {
            file.read_exact_at(&mut block[..4096], (n * 7919 % (BIG as u64 >> 12)) << 12).expect("read");
        });
    });
    measure("read 1 MiB, cached", 8, || {
        let mut file = File::open(dir.join("written")).expect("open");
        (0..8).for_each(|_| file.read_exact(&mut block).expect("read"));
    });
}

/// The paths of the small files in `dir`.
fn paths(dir: &Path) -> Vec<PathBuf> {
    (0..FILES).map(|number| dir.join(number.to_string())).collect()
}

fn small_files(dir: &Path) {
    let small = dir.join("small");
    fs::create_dir(&small).expect("create a directory");
    let (files, moved) = (paths(&small), paths(&dir.join("moved")));
    fs::create_dir(dir.join("moved")).expect("create a directory");
    let each = |name: &str, work: &mut dyn FnMut(usize)| {
        measure(name, FILES, || (0..FILES).for_each(work));
    };
    each("create, write 40 B, close", &mut |at| fs::write(&files[at], [3; 40]).expect("write"));
    let mut bytes = Vec::new();
    let mut read = |path: &Path| {
        bytes.clear();
        File::open(path).expect("open").read_to_end(&mut bytes).expect("read");
    };
    each("open, read, close: new files", &mut |at| read(&files[at]));
    each("open, read, close: again", &mut |at| read(&files[at]));
    let cold = paths(&dir.join("cold-read"));
    each("open, read, close: uncached", &mut |at| read(&cold[at]));
    measure("readdir of 200 names", 10, || {
        (0..10).for_each(|_| assert_eq!(fs::read_dir(&small).expect("read a directory").count(), FILES));
    });
    each("rename", &mut |at| fs::rename(&files[at], &moved[at]).expect("rename"));
    each("unlink", &mut |at| fs::remove_file(&moved[at]).expect("unlink"));
    let dirs = paths(&small);
    each("mkdir", &mut |at| fs::create_dir(&dirs[at]).expect("mkdir"));
    each("rmdir", &mut |at| fs::remove_dir(&dirs[at]).expect("rmdir"));
}

fn attributes(dir: &Path) {
    let cold = paths(&dir.join("cold"));
    let stat = |path: &PathBuf| assert_eq!(fs::metadata(path).expect("stat").len(), 4);
    measure("stat, uncached", FILES, || cold.iter().for_each(stat));
    measure("stat, cached", FILES, || cold.iter().for_each(stat));
    // The validity of attributes without a watch.
    sleep(Duration::from_millis(1200));
    measure("stat, cached a second ago", FILES, || cold.iter().for_each(stat));
    let missing = dir.join("cold/missing");
    measure("stat of a missing name", FILES, || {
        (0..FILES).for_each(|_| assert!(fs::metadata(&missing).is_err()));
    });
}

/// Programs, each in one process.
fn programs(dir: &Path) {
    measure("start of a program", PROGRAMS, || {
        for _ in 0..PROGRAMS {
            assert!(Command::new("/bin/busybox").arg("true").status().expect("start busybox").success());
        }
    });
    for (name, script) in [
        ("tar -x of 200 files", "mkdir out && tar -C out -xf tree.tar"),
        ("find", "find tree out"),
        ("cp -a of 200 files", "cp -a tree copy"),
        ("grep -r", "grep -rc y tree copy"),
        ("rm -r of 400 files", "rm -r out copy"),
    ] {
        measure(name, 1, || {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]).current_dir(dir).stdout(Stdio::null());
            // grep finds nothing.
            assert!(command.status().expect("start a shell").code().is_some_and(|code| code < 2), "{script}");
        });
    }
}
