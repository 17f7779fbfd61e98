//! `cargo xtask host --check`: checks on this machine that the emulated KVM host works as documented. Prints a line for
//! each check.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};

use super::{Clock, Host, Output, TIMED_OUT, kvm_usable};

/// A program that creates a VM and times each step.
const FLOOR_SOURCE: &str = include_str!("../../../../tests/host/floor.c");

/// Maximum relative difference between two runs on the instruction clock, for steps that do not wait.
const REPEAT_WITHIN: f64 = 0.01;

/// Size of the staged file in bytes: more than the other files in the machine's memory.
const STAGED: usize = 32 << 20;

type Check = fn(&Path) -> anyhow::Result<String>;

/// Runs all checks up to the first that fails.
pub fn run() -> anyhow::Result<()> {
    let usable = if kvm_usable() { "usable" } else { "not usable" };
    println!("KVM of this machine: {usable} for tests");
    Host::new().prepare()?;
    Host::new().clock(Clock::Instructions).prepare()?;
    let folder = tempfile::tempdir().context("create a temporary folder")?;
    build(FLOOR_SOURCE, &folder.path().join("floor"))?;
    let checks: [(&str, Check); 10] = [
        ("start", start),
        ("exit codes", exit_codes),
        ("streams", streams),
        ("files", files),
        ("stage", stage),
        ("stage opened files", stage_opened),
        ("deadline", deadline),
        ("end of the machine", machine_end),
        ("kvm on the wall clock", kvm_wall),
        ("kvm on the instruction clock", kvm_instructions),
    ];
    for (name, check) in checks {
        let begin = Instant::now();
        let figures = check(folder.path()).with_context(|| format!("check {name}"))?;
        println!("ok  {name} ({:.1} s){figures}", begin.elapsed().as_secs_f64());
    }
    println!("{} checks passed", checks.len());
    Ok(())
}

fn build(source: &str, program: &Path) -> anyhow::Result<()> {
    let mut cc = Command::new("cc");
    cc.args(["-x", "c", "-static", "-O2", "-o"]).arg(program).arg("-").stdin(Stdio::piped());
    let mut child = cc.spawn().context("start cc")?;
    child
        .stdin
        .take()
        .context("open the input of cc")?
        .write_all(source.as_bytes())
        .context("write to cc")?;
    ensure!(child.wait().context("wait for cc")?.success(), "cc failed to build {}", program.display());
    Ok(())
}

fn shell(host: &Host, script: &str) -> anyhow::Result<Output> {
    host.output(&["sh", "-c", script])
}

/// Returns the length and the beginning of `text` for an error.
fn brief(text: &[u8]) -> String {
    format!("{} bytes {:?}", text.len(), String::from_utf8_lossy(&text[..text.len().min(80)]))
}

fn start(_: &Path) -> anyhow::Result<String> {
    let mut seconds = Vec::new();
    for _ in 0..5 {
        let begin = Instant::now();
        ensure!(Host::new().output(&["true"])?.status == 0, "`true` failed");
        seconds.push(begin.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(format!(": {:.2} s for `true`, median of 5", seconds[2]))
}

fn exit_codes(_: &Path) -> anyhow::Result<String> {
    for (script, status) in [("exit 7", 7), ("kill -9 $$", 137), ("exit 255", 255), ("exec /no/such", 127)] {
        let output = shell(&Host::new(), script)?;
        ensure!(output.status == status, "{script}: exit code {} instead of {status}", output.status);
    }
    for (command, status) in [("no-such-command", 127), ("/etc/passwd", 126)] {
        let output = Host::new().output(&[command])?;
        ensure!(output.status == status, "{command}: exit code {} instead of {status}", output.status);
    }
    Ok(String::new())
}

fn streams(_: &Path) -> anyhow::Result<String> {
    let host = Host::new().env("CHECK", "a 'b' \"c\"\n");
    let output = shell(
        &host,
        r#"printf %s "$CHECK"; pwd; id -u; nproc; echo wrong >&2; readlink -f /proc/self/fd/0"#,
    )?;
    let folder = std::env::current_dir().context("find the working folder")?;
    let expected = format!("a 'b' \"c\"\n{}\n0\n2\n/dev/null\n", folder.display());
    ensure!(output.stdout == expected.as_bytes(), "stdout is {}", brief(&output.stdout));
    ensure!(output.stderr == b"wrong\n", "stderr is {}", brief(&output.stderr));
    let output = shell(
        &Host::new(),
        "yes out | head -c 8000000; yes err | head -c 4000001 >&2; (sleep 1000; echo late) &",
    )?;
    ensure!(output.stdout == "out\n".repeat(2_000_000).as_bytes(), "stdout is {}", brief(&output.stdout));
    ensure!(
        output.stderr == "err\n".repeat(1_000_001).as_bytes()[..4_000_001],
        "stderr is {}",
        brief(&output.stderr)
    );
    Ok(String::new())
}

fn files(folder: &Path) -> anyhow::Result<String> {
    let (out, dropped) = (folder.join("out, with a comma"), folder.join("dropped"));
    let script = format!(
        "echo kept > '{}/file' && chmod 640 '{0}/file' && echo no > {}",
        out.display(),
        dropped.display()
    );
    let output = shell(&Host::new().out(&out), &script)?;
    ensure!(output.status == 0, "{}", brief(&output.stderr));
    let kept = fs::read(out.join("file")).context("read the file in the shared folder")?;
    ensure!(kept == b"kept\n", "the file in the shared folder has other content");
    ensure!(!dropped.exists(), "the file outside of the shared folder was kept");
    Ok(String::new())
}

fn stage(folder: &Path) -> anyhow::Result<String> {
    let staged = folder.join("staged");
    let file = staged.join("deep/file");
    fs::create_dir_all(staged.join("deep"))
        .and_then(|()| fs::write(&file, vec![b'x'; STAGED]))
        .with_context(|| format!("write {}", file.display()))?;
    let script = format!("wc -c < {}/deep/file; sed -n 's/Shmem: *//p' /proc/meminfo", staged.display());
    let output = shell(&Host::new().stage(&staged), &script)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let size = lines.next().and_then(|line| line.parse().ok());
    let memory_kib = lines.next().and_then(|line| line.strip_suffix(" kB")?.parse::<usize>().ok());
    ensure!(size == Some(STAGED), "the staged file has {size:?} bytes: {}", brief(&output.stderr));
    ensure!(
        memory_kib >= Some(STAGED / 1024),
        "the machine has {memory_kib:?} KiB of files in memory, less than the staged file"
    );
    Ok(String::new())
}

/// Counts the 9p requests to the outer machine when a command runs again.
fn stage_opened(_: &Path) -> anyhow::Result<String> {
    let script = r#"
        requests() { sed -n 's/^ *[0-9]*: *\([0-9]*\) .*virtio1-requests/\1/p' /proc/interrupts; }
        for round in 1 2 3; do /bin/true; begin=$(requests); /bin/true; end=$(requests); done
        echo $((end - begin))"#;
    let host = Host::new().clock(Clock::Instructions);
    let plain = shell(&host, script)?;
    let staged = shell(&host.stage_opened(true), script)?;
    ensure!(plain.stdout != b"0\n", "no requests without staging: the count is wrong");
    ensure!(
        staged.stdout == b"0\n",
        "requests with staging: stdout {}, stderr {}",
        brief(&staged.stdout),
        brief(&staged.stderr)
    );
    Ok(format!(": 0 instead of {} requests", String::from_utf8_lossy(&plain.stdout).trim()))
}

fn deadline(_: &Path) -> anyhow::Result<String> {
    let output = shell(&Host::new().deadline(4), "echo begun; exec sleep 1000")?;
    ensure!(
        output.status == TIMED_OUT && output.stdout == b"begun\n",
        "exit code {}, stdout {}",
        output.status,
        brief(&output.stdout)
    );
    Ok(String::new())
}

fn machine_end(folder: &Path) -> anyhow::Result<String> {
    let mark = folder.join("mark");
    // The machine ends in the first attempt, but not in the second.
    let script = format!(
        "cd {}; [ -e ended ] || {{ touch ended; sync; echo b > /proc/sysrq-trigger; sleep 9; }}",
        mark.display()
    );
    let output = shell(&Host::new().out(&mark), &script)?;
    ensure!(
        (output.status, output.reruns) == (0, 1),
        "exit code {} after {} reruns",
        output.status,
        output.reruns
    );
    let error = shell(&Host::new().stdin(true), "echo b > /proc/sysrq-trigger; sleep 9").err();
    ensure!(error.is_some(), "the end of the machine counts as the end of the command");
    Ok(String::new())
}

fn floor(host: &Host, folder: &Path) -> anyhow::Result<HashMap<String, u64>> {
    let output = host.output(&[folder.join("floor")])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status == 0, "run floor.c: {} {}", text, brief(&output.stderr));
    let step = |line: &str| {
        Some((line.split_whitespace().next()?.to_string(), line.split_whitespace().nth(1)?.parse().ok()?))
    };
    text.lines().map(|line| step(line).with_context(|| format!("parse line {line:?} of floor.c"))).collect()
}

fn kvm_wall(folder: &Path) -> anyhow::Result<String> {
    let steps = floor(&Host::new(), folder)?;
    let us = |name: &str| steps.get(name).copied().unwrap_or(0) / 1000;
    Ok(format!(
        ": exit to user space {} µs, to an eventfd {} µs, within the kernel {} µs",
        us("pio"),
        us("pio-event"),
        us("cpuid")
    ))
}

fn kvm_instructions(folder: &Path) -> anyhow::Result<String> {
    let host = Host::new().clock(Clock::Instructions).stage(folder.join("floor"));
    let (one, two) = (floor(&host, folder)?, floor(&host, folder)?);
    for name in ["pio", "pio-event", "cpuid", "fresh-page"] {
        let (a, b) = (one[name] as f64, two[name] as f64);
        ensure!(
            (a - b).abs() <= REPEAT_WITHIN * a,
            "{name} takes {a} instructions in the first run and {b} in the second"
        );
    }
    Ok(format!(
        ": exit to user space {}, to an eventfd {}, within the kernel {}",
        one["pio"], one["pio-event"], one["cpuid"]
    ))
}
