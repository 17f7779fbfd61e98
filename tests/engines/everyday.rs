//! What programs of ordinary images find without a flag, and what their users add first.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;
use tests::check_output;

use crate::case::{Case, case};
use crate::engine::Engine;
use crate::languages::assert_cpus;
use crate::parameter::HostParameter;

pub const CASES: &[Case] = &[
    case!(memory_and_cpus_without_a_limit_are_the_hosts).core(),
    case!(a_user_opens_its_standard_streams_by_path).core(),
    case!(a_null_device_masks_a_file),
    case!(devices_of_the_host_are_listed),
    case!(files_of_the_hosts_proc_have_contents).core(),
    case!(files_of_the_hosts_sys_have_contents),
    case!(files_of_the_hosts_cgroups_have_contents),
    case!(a_tmpfs_has_the_mode_of_its_folder),
    case!(limits_without_a_flag_are_the_engines),
    case!(a_limit_of_open_files_above_the_default_maximum),
    case!(kernel_parameters_are_the_hosts),
    case!(a_core_dump_is_a_file),
    case!(the_time_is_the_hosts),
    case!(an_idle_container_uses_little_memory),
    case!(files_that_were_read_once_count_little),
    case!(packet_filter_of_a_network_administrator),
];

fn memory_and_cpus_without_a_limit_are_the_hosts(engine: &Engine) {
    let script = "cat /proc/meminfo; echo Cpus: $(nproc); echo Threads: $(ulimit -u)";
    let text = engine.sh(engine.all_cpus(), script);
    let host = fs::read_to_string("/proc/meminfo").expect("read /proc/meminfo");
    let kilobytes = |text: &str| {
        let number =
            value(text, "MemTotal").strip_suffix(" kB").and_then(|number| number.parse::<f64>().ok());
        number.expect("a number of kB")
    };
    // A guest's kernel and its monitor need a part.
    assert!(kilobytes(&text) / kilobytes(&host) > 0.95, "{text}");
    assert_cpus(value(&text, "Cpus"));
    let limits = fs::read_to_string("/proc/self/limits").expect("read the limits of this process");
    assert_eq!(value(&text, "Threads"), limit(&limits, "Max processes"));
    // dd(1) allocates a block, and reads into all of it.
    let words = ["run", "--rm", "box", "dd", "if=/dev/zero", "of=/dev/null", "bs=400M", "count=1"];
    assert!(engine.run(&words).code(0).to_string().contains("1+0 records out"));
}

fn a_user_opens_its_standard_streams_by_path(engine: &Engine) {
    let script = "echo out >/dev/stdout; echo error >/dev/stderr; echo number >/proc/self/fd/1";
    let words = ["run", "--rm", "-u", "1000", "box", "sh", "-c", script];
    engine.run(&words).code(0).stdout("out\nnumber\n").stderr("error\n");
    let words = ["run", "--rm", "-i", "-u", "1000", "box", "cat", "/dev/stdin"];
    engine.feed(&words, b"in\n").code(0).stdout("in\n");
}

fn a_null_device_masks_a_file(engine: &Engine) {
    let script = "wc -c </etc/group; stat -c '%F %t:%T' /etc/group";
    assert_eq!(engine.sh(&["-v", "/dev/null:/etc/group"], script), "0\ncharacter special file 1:3");
}

fn devices_of_the_host_are_listed(engine: &Engine) {
    let script = "ls /host/dev/null /host/dev/zero; head -c 3 /host/dev/zero | wc -c";
    assert_eq!(engine.sh(&["-v", "/dev:/host/dev:ro"], script), "/host/dev/null\n/host/dev/zero\n3");
}

/// The value of `key` in a file of lines `key: value`.
fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {key} in {text}")).trim()
}

fn files_of_the_hosts_proc_have_contents(engine: &Engine) {
    let script = "cd /host/proc; cat meminfo; echo; cat 1/comm; head -c 4 stat; echo; read a b <uptime; \
                  while read c d <uptime && [ $a = $c ]; do :; done; echo fresh";
    let text = engine.sh(&["-v", "/proc:/host/proc:ro"], script);
    let host = fs::read_to_string("/proc/meminfo").expect("read /proc/meminfo");
    assert_eq!(value(&text, "MemTotal"), value(&host, "MemTotal"));
    let name = fs::read_to_string("/proc/1/comm").expect("read /proc/1/comm");
    assert!(text.ends_with(&format!("\n\n{name}cpu \nfresh")), "{text}");
}

fn files_of_the_hosts_sys_have_contents(engine: &Engine) {
    let script = "cd /host/sys; cat class/net/lo/mtu devices/system/cpu/online";
    let online = fs::read_to_string("/sys/devices/system/cpu/online").expect("read the list of CPUs");
    let text = engine.sh(&["-v", "/sys:/host/sys:ro"], script);
    assert_eq!(text, format!("65536\n{}", online.trim()));
}

fn files_of_the_hosts_cgroups_have_contents(engine: &Engine) {
    let script = "cd /host/cgroup; cat cgroup.controllers; grep -c usage_usec cpu.stat";
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").expect("read the controllers");
    let text = engine.sh(&["-v", "/sys/fs/cgroup:/host/cgroup:ro"], script);
    assert_eq!(text, format!("{}\n1", controllers.trim()));
}

fn a_tmpfs_has_the_mode_of_its_folder(engine: &Engine) {
    let read = "stat -c %a /mnt /etc";
    let flags = ["--mount", "type=tmpfs,destination=/mnt", "--mount", "type=tmpfs,destination=/etc"];
    assert_eq!(engine.sh(&flags, read), engine.sh(&[], read));
}

/// The hard value of a limit in the text of `/proc/PID/limits`. The soft one may be what a program in Go has raised it to.
fn limit<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the limit");
    line.split_whitespace().nth(1).expect("a hard limit")
}

fn limits_without_a_flag_are_the_engines(engine: &Engine) {
    let own = fs::read_to_string("/proc/self/limits").expect("read the limits of this process");
    let text = engine.ok(&["run", "--rm", "box", "cat", "/proc/self/limits"]);
    for name in ["Max open files", "Max core file size", "Max stack size", "Max locked memory"] {
        assert_eq!(limit(&text, name), limit(&own, name), "{name}");
    }
}

fn a_limit_of_open_files_above_the_default_maximum(engine: &Engine) {
    // systemd sets the host's maximum.
    let _set = HostParameter::set("fs/nr_open", "1073741816");
    let script = "ulimit -n; ulimit -Hn; cat /proc/sys/fs/nr_open";
    let text = engine.sh(&["--ulimit", "nofile=1500000:1600000"], script);
    assert_eq!(text, "1500000\n1600000\n1073741816");
}

fn a_core_dump_is_a_file(engine: &Engine) {
    let dump = "cd /tmp; sh -c 'kill -SEGV $$'; echo $?; ls";
    let of = |pattern: &str| {
        let _set = HostParameter::set("kernel/core_pattern", pattern);
        engine.sh(&["--ulimit", "core=-1"], dump)
    };
    assert_eq!(of("dump.%e"), "139\ndump.sh");
    // The program is the host's. With runc it gets the dump; a guest, which has no such program, writes a file.
    let expected = if engine.is_vm() { "139\ncore" } else { "139" };
    assert_eq!(of("|/bin/false"), expected);
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("a time after 1970").as_secs()
}

/// The host's clock, which is set back on drop.
struct HostClock {
    ahead: i64,
}

impl HostClock {
    fn step(seconds: i64) -> HostClock {
        check_output(Command::new("/bin/busybox").args([
            "date",
            "-s",
            &format!("@{}", now().strict_add_signed(seconds)),
        ]));
        HostClock { ahead: seconds }
    }
}

impl Drop for HostClock {
    fn drop(&mut self) {
        let time = format!("@{}", now().strict_add_signed(-self.ahead));
        check_output(Command::new("/bin/busybox").args(["date", "-s", &time]));
    }
}

fn the_time_is_the_hosts(engine: &Engine) {
    let words = ["box", "sh", "-c", "echo ready; exec sleep 1000"];
    engine.start_container("clock", &words, "ready");
    let agrees = || {
        let (before, text) = (now(), engine.ok(&["exec", "clock", "date", "+%s"]));
        let (time, after) = (text.parse::<u64>().expect("seconds"), now());
        assert!((before..=after).contains(&time), "{time} is not from {before} to {after}");
    };
    agrees();
    // As tests/host/tests.sh says.
    if std::env::var_os("VMM_TEST_SET_CLOCK").is_none() {
        return;
    }
    for seconds in [-600, 86_400] {
        let stepped = HostClock::step(seconds);
        agrees();
        // What is paused has the host's time when it continues.
        engine.ok(&["pause", "clock"]);
        drop(stepped);
        engine.ok(&["unpause", "clock"]);
        agrees();
    }
}

fn kernel_parameters_are_the_hosts(engine: &Engine) {
    const FILES: [&str; 11] = [
        "vm/max_map_count",
        "vm/overcommit_memory",
        "vm/swappiness",
        "fs/inotify/max_user_watches",
        "fs/aio-max-nr",
        "fs/nr_open",
        "kernel/pid_max",
        "fs/pipe-max-size",
        "fs/protected_regular",
        "kernel/core_pattern",
        "kernel/core_uses_pid",
    ];
    // Distributions set these.
    let _set = [
        ("fs/protected_regular", "2"),
        ("kernel/core_pattern", "/tmp/core.%e"),
        ("vm/max_map_count", "1048576"),
    ]
    .map(|(name, text)| HostParameter::set(name, text));
    let script = format!("cd /proc/sys; cat {}", FILES.join(" "));
    let own = FILES.map(|file| fs::read_to_string(format!("/proc/sys/{file}")).expect("read a parameter"));
    assert_eq!(engine.sh(&[], &script), own.concat().trim());
}

/// Docker prints a number with a unit, such as `12.3MiB`.
fn bytes(text: &str) -> f64 {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number: f64 = text[..text.len() - unit.len()].parse().expect("a number");
    let scale = match unit {
        "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        unit => panic!("unknown unit {unit}"),
    };
    number * scale
}

/// The memory that `docker stats` shows for a container, in MiB.
fn used(engine: &Engine, name: &str) -> f64 {
    let text = engine.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}}", name]);
    bytes(text.split(" / ").next().expect("the used memory")) / 1024.0 / 1024.0
}

/// Maximum memory of an idle container in MiB.
const IDLE_MIB: f64 = 64.0;

fn an_idle_container_uses_little_memory(engine: &Engine) {
    engine.start_container("idle", &["box", "sh", "-c", "echo ready; exec sleep 1000"], "ready");
    let used = used(engine, "idle");
    assert!(used > 0.0 && used < IDLE_MIB, "{used}");
}

/// Time for the guest's reports of free memory.
const DEADLINE: Duration = Duration::from_secs(120);

fn files_that_were_read_once_count_little(engine: &Engine) {
    const READ_MIB: u32 = 1200;
    let dir = TempDir::new().expect("create a directory for the volume");
    let file = fs::File::create(dir.path().join("file")).expect("create a file");
    file.set_len(u64::from(READ_MIB) << 20).expect("make a file without blocks");
    let volume = format!("{}:/data:ro", dir.path().display());
    let script = "cat /data/file >/dev/null; echo ready; exec sleep 1000";
    engine.start_container("reader", &["-v", &volume, "box", "sh", "-c", script], "ready");
    // Docker subtracts the host's own cache of files, of which a guest's is no part. The guest drops what was read once, and
    // its free memory goes back to the host within half a minute.
    let start = Instant::now();
    while used(engine, "reader") > f64::from(READ_MIB) / 2.0 {
        assert!(start.elapsed() < DEADLINE, "more than half of what was read is counted");
    }
}

fn packet_filter_of_a_network_administrator(engine: &Engine) {
    let script = "ip link add b0 type bridge && ip link add d0 type dummy && ip link set d0 master b0 && ip link show d0";
    let text = engine.sh(&["--cap-add", "NET_ADMIN"], script);
    assert!(text.contains("master b0"), "{text}");
}
