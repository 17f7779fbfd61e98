//! `cargo xtask test --engines`: end-to-end tests of container engines, with runc and with `vmm` (`tests/engines`).

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::checkout::top;
use crate::executable::test_program;
use crate::host::{self, Host};
use crate::steps::{output, run, say};
use crate::{apt, bundle, cache, program};

/// Debian packages of the engines and their networks.
pub const PACKAGES: [&str; 13] = [
    "aardvark-dns",
    "busybox-static",
    "conmon",
    "containerd",
    "docker.io",
    "e2fsprogs",
    "iproute2",
    "iptables",
    "netavark",
    "podman",
    "procps",
    "runc",
    "tini",
];
/// Timeout of all cases with both runtimes in seconds: several times their duration.
const SECONDS: u64 = 5400;
/// Timeout of one command of an engine in seconds.
const COMMAND_SECONDS: &str = "150";
/// Path of the table in the repository.
const RESULTS: &str = "tests/engines/RESULTS.md";

/// Group of the cases for a host with cgroups of version 1.
const CGROUP1: &str = "cgroup1";

/// Selection of cases.
pub struct Cases<'a> {
    /// Only the core cases that every run includes, with `vmm` only.
    pub core: bool,
    /// Only cases whose names contain one of these texts.
    pub filters: &'a [String],
    /// Update the table in the repository.
    pub record: bool,
}

impl Cases<'_> {
    /// Whether a group is asked for by its name.
    fn want(&self, group: &str) -> bool {
        self.filters.iter().any(|filter| filter.starts_with(group))
    }
}

/// Runs the cases where KVM is, natively or in the emulated host.
pub fn engines(cases: &Cases<'_>) -> anyhow::Result<()> {
    apt::install(&PACKAGES)?;
    let program = program::program()?;
    say("building the tests of engines");
    let mut words = vec![test_program("engines")?.display().to_string()];
    if cases.core {
        words.extend(["--core", "--runtime", "vmm"].map(str::to_owned));
    }
    words.extend_from_slice(cases.filters);
    let out = cache::dir("engines");
    let mut environment = vec![("VMM_TEST_DEADLINE", COMMAND_SECONDS.into())];
    if !cases.core && (cases.filters.is_empty() || cases.want("programs")) {
        environment.push(("VMM_TEST_PROGRAMS", bundle::programs()?.into_os_string()));
    }
    let mut codes = Vec::new();
    for place in if host::kvm_usable() { &[Place::Native][..] } else { &Place::EMULATED } {
        if !place.is_wanted(cases) {
            continue;
        }
        let table = out.join("table.md");
        let mut environment = environment.clone();
        environment.push(("VMM_ENGINES_TABLE", table.clone().into_os_string()));
        codes.push(match place.words(&program) {
            None => native(&program, &words, environment)?,
            Some(mut command) => {
                say(&format!("tests of engines, {}", place.name()));
                command.extend_from_slice(&words);
                let host = Host::new().memory(6144).deadline(SECONDS).out(&out);
                environment.into_iter().fold(host, |host, (key, value)| host.env(key, value)).run(&command)?
            }
        });
        if cases.record {
            record(&table)?;
        }
    }
    match codes.into_iter().find(|code| *code != 0) {
        None => Ok(()),
        Some(code) => bail!("tests of engines: exit code {code}"),
    }
}

/// The host on which the engines run.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// This machine.
    Native,
    /// The emulated host.
    Emulated,
    /// The emulated host with cgroups of version 1.
    Cgroup1,
}

impl Place {
    /// Both kinds of the emulated host.
    const EMULATED: [Place; 2] = [Place::Emulated, Place::Cgroup1];

    /// Whether any of the cases may be there.
    fn is_wanted(self, cases: &Cases<'_>) -> bool {
        let others = cases.filters.iter().any(|filter| !filter.starts_with(CGROUP1));
        self != Place::Emulated || cases.filters.is_empty() || others
    }

    fn name(self) -> &'static str {
        match self {
            Place::Native => "on this machine's KVM",
            Place::Emulated => "in the emulated KVM host",
            Place::Cgroup1 => "in the emulated KVM host with version 1's cgroups",
        }
    }

    /// What the command line of the emulated host begins with.
    fn words(self, program: &Path) -> Option<Vec<String>> {
        let script = |path: &str| ["bash".to_owned(), top().join(path).display().to_string()];
        let mut words = match self {
            Place::Native => return None,
            Place::Emulated => Vec::new(),
            Place::Cgroup1 => script("tests/engines/cgroup1.sh").to_vec(),
        };
        words.extend(script("tests/host/tests.sh"));
        words.push(program.display().to_string());
        Some(words)
    }
}

/// On this machine itself: it must have no Docker of its own at work, whose bridge and packet filter would be shared.
fn native(
    program: &Path,
    words: &[String],
    environment: Vec<(&str, std::ffi::OsString)>,
) -> anyhow::Result<i32> {
    ensure!(
        !Path::new("/run/docker.sock").exists(),
        "Docker is at work here: stop it, or set VMM_TEST_KVM=emulated"
    );
    say(&format!("tests of engines, {}", Place::Native.name()));
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env("VMM_PROGRAM", program).envs(environment);
    let status = command.status().with_context(|| format!("start {}", words[0]))?;
    Ok(status.code().unwrap_or(1))
}

/// The table `new` with those rows of the file `old` whose cases it does not have, behind the last of their group.
fn merged(old: &str, new: &str) -> String {
    // `| engine | group::case |`: the first two cells are a case's name.
    fn name(row: &str) -> Option<(&str, &str)> {
        let mut cells = row.split('|').map(str::trim).skip(1);
        let (engine, case) = (cells.next()?, cells.next()?);
        case.contains("::").then_some((engine, case))
    }
    fn group<'a>((engine, case): (&'a str, &'a str)) -> (&'a str, &'a str) {
        (engine, case.split("::").next().unwrap_or(case))
    }
    let mut rows: Vec<&str> = new.lines().collect();
    for row in old.lines() {
        let Some(this) = name(row) else { continue };
        if rows.iter().any(|other| name(other) == Some(this)) {
            continue;
        }
        let last =
            rows.iter().rposition(|other| name(other).is_some_and(|other| group(other) == group(this)));
        rows.insert(last.map_or(rows.len(), |last| last + 1), row);
    }
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// Puts the table into the repository, with what it is above it. Rows of cases that were not run stay as they are.
fn record(table: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(table).with_context(|| format!("read {}", table.display()))?;
    let path = top().join(RESULTS);
    let text = merged(&std::fs::read_to_string(&path).unwrap_or_default(), &text);
    let versions = ["docker.io", "containerd", "runc", "podman", "conmon"].map(|package| {
        let version = output(Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]));
        version.map(|version| format!("{package} {}", version.trim()))
    });
    let versions = versions.into_iter().collect::<anyhow::Result<Vec<_>>>()?.join(", ");
    let head = format!(
        "# Engines with runc and with vmm\n\nWritten by `cargo xtask test --engines --record`. One row is one function below \
         `tests/engines/`, run with Debian's\n{versions}, unmodified.\nA case that a virtual machine cannot have \
         is *refused*: the row says why, and the test that the engine's user is told so.\n\n"
    );
    std::fs::write(&path, head + &text).with_context(|| format!("write {}", path.display()))?;
    run(Command::new("git").current_dir(top()).args(["diff", "--stat", "--", RESULTS]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_cases_that_were_not_run_stay() {
        let head = "| engine | case | runc | vmm | why |\n|---|---|---|---|---|\n";
        let old = format!(
            "text\n\n{head}| docker | a::one | x | x |  |\n| docker | a::two | old | old |  |\n| podman | b::one | y | y |  |\n"
        );
        let new = format!("{head}| docker | a::one | new | new |  |\n| docker | c::one | z | z |  |\n");
        assert_eq!(
            merged(&old, &new),
            format!(
                "{head}| docker | a::one | new | new |  |\n| docker | a::two | old | old |  |\n| docker | c::one | z | z |  |\n| podman | b::one | y | y |  |\n"
            )
        );
    }
}
