//! `cargo xtask test --engines`: end-to-end tests of container engines, with runc and with `vmm` (`tests/engines`).

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::checkout::top;
use crate::executable::{static_program, test_program};
use crate::host::{self, Host};
use crate::kvm_tests::KvmTests;
use crate::steps::{output, run, say};
use crate::{apt, bundle, cache, program};

/// Debian packages of the engines and their networks.
pub const PACKAGES: [&str; 17] = [
    "aardvark-dns",
    "busybox-static",
    "catatonit",
    "conmon",
    "containerd",
    "docker.io",
    "e2fsprogs",
    "iproute2",
    "iptables",
    "netavark",
    "podman",
    "procps",
    "rootlesskit",
    "runc",
    "slirp4netns",
    "tini",
    "uidmap",
];
/// Timeout of all cases with both runtimes in seconds: several times their duration.
const SECONDS: u64 = 5400;
/// Timeout of one command of an engine in seconds.
const COMMAND_SECONDS: &str = "150";
/// Path of the table in the repository.
const RESULTS: &str = "tests/engines/RESULTS.md";

/// Group of the cases for a host with cgroup version 1.
const CGROUP1: &str = "cgroup1";
/// Path of the script that gives the emulated KVM host cgroup version 1.
const CGROUP1_SCRIPT: &str = "tests/engines/cgroup1.sh";

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
    /// Whether cases of `group`, which has no core cases, are selected.
    fn need(&self, group: &str) -> bool {
        let named = self.filters.iter().any(|filter| filter.starts_with(group));
        !self.core && (named || self.filters.is_empty())
    }
}

/// Runs the cases with a usable KVM: natively, or in the emulated KVM host.
pub fn engines(cases: &Cases<'_>) -> anyhow::Result<()> {
    apt::install(&PACKAGES)?;
    if cases.need("shared") {
        apt::install(&["docker-compose"])?;
    }
    let program = program::program()?;
    say("building the tests of engines");
    let mut words: Vec<OsString> = vec![test_program("engines")?.into()];
    if cases.core {
        words.extend(["--core", "--runtime", "vmm"].map(OsString::from));
    }
    words.extend(cases.filters.iter().map(OsString::from));
    let out = cache::dir("engines");
    let table = out.join("table.md");
    // Whether a host is idle for a moment must not decide how a container of these tests starts.
    let mut environment = vec![
        ("VMM_TEST_DEADLINE", COMMAND_SECONDS.into()),
        ("VMM_ENGINES_TABLE", table.clone().into()),
        ("VMM_TEMPLATE_MAKE", "never".into()),
    ];
    if ["bundles", "volumes"].iter().any(|group| cases.need(group)) {
        environment.push(("VMM_TEST_GUEST", static_program("tests", "guest")?.into()));
    }
    if cases.need("programs") {
        environment.push(("VMM_TEST_PROGRAMS", bundle::programs()?.into()));
    }
    if cases.need("languages") {
        environment.push(("VMM_TEST_LANGUAGES", bundle::languages()?.into()));
    }
    if cases.need("nested") {
        environment.push(("VMM_TEST_NESTED", bundle::nested()?.into()));
    }
    let tests = KvmTests { name: "tests of engines", program: &program, words, environment };
    let emulated = || Host::new().memory(6144).deadline(SECONDS).out(&out);
    let mut codes = Vec::new();
    for host in EngineHost::of_this_machine() {
        if !host.has_cases(cases) {
            continue;
        }
        codes.push(match host {
            EngineHost::Native => run_natively(&tests)?,
            EngineHost::Emulated => tests.run_emulated(emulated(), &[])?,
            EngineHost::Cgroup1 => {
                say("tests of engines: cgroup version 1");
                tests.run_emulated(emulated(), &["bash".into(), top().join(CGROUP1_SCRIPT).into()])?
            }
        });
        if cases.record {
            record(&table)?;
        }
    }
    codes.into_iter().try_for_each(|code| tests.check(code))
}

/// The host on which the engines run.
#[derive(Clone, Copy, PartialEq)]
enum EngineHost {
    /// This machine.
    Native,
    /// The emulated KVM host.
    Emulated,
    /// The emulated KVM host with cgroup version 1.
    Cgroup1,
}

impl EngineHost {
    /// Returns the hosts for the tests: this machine if its KVM is usable, otherwise both emulated ones.
    fn of_this_machine() -> &'static [EngineHost] {
        if host::kvm_usable() { &[EngineHost::Native] } else { &[EngineHost::Emulated, EngineHost::Cgroup1] }
    }

    /// Whether the selection may contain cases for this host.
    fn has_cases(self, cases: &Cases<'_>) -> bool {
        let others = cases.filters.iter().any(|filter| !filter.starts_with(CGROUP1));
        self != EngineHost::Emulated || cases.filters.is_empty() || others
    }
}

/// Runs the tests on this machine. Refuses if Docker runs, whose bridge and packet filter the tests would change.
fn run_natively(tests: &KvmTests<'_>) -> anyhow::Result<i32> {
    ensure!(
        !Path::new("/run/docker.sock").exists(),
        "Docker runs on this machine: stop it, or set VMM_TEST_KVM=emulated"
    );
    tests.run_natively()
}

/// Splits a row of the table, `| engine | case | runc | vmm | why |`, into its cells.
fn cells(row: &str) -> Option<[&str; 5]> {
    let cells: Vec<&str> = row.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
    cells.try_into().ok().filter(|[_, case, ..]: &[&str; 5]| case.contains("::"))
}

/// Returns the table `new`, which has a row for each case. The outcomes of cases that were not run are those of `old`.
fn merged(old: &str, new: &str) -> String {
    let row = |line: &str| {
        let Some([engine, case, runc, vmm, why]) = cells(line) else { return format!("{line}\n") };
        let before = old.lines().filter_map(cells).find(|[of, name, ..]| (*of, *name) == (engine, case));
        let outcome = |now: &str, column: usize| match (now, before) {
            ("", Some(before)) => before[column].to_owned(),
            _ => now.to_owned(),
        };
        format!("| {engine} | {case} | {} | {} | {why} |\n", outcome(runc, 2), outcome(vmm, 3))
    };
    new.lines().map(row).collect()
}

/// Writes the table to the repository, with the versions of the engines above it. Keeps the outcomes of cases that were
/// not run, and drops cases that do not exist any more.
fn record(table: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(table).with_context(|| format!("read {}", table.display()))?;
    let path = top().join(RESULTS);
    let text = merged(&fs::read_to_string(&path).unwrap_or_default(), &text);
    let versions = ["docker.io", "containerd", "runc", "podman", "conmon"].map(|package| {
        let version = output(Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]));
        version.map(|version| format!("{package} {}", version.trim()))
    });
    let versions = versions.into_iter().collect::<anyhow::Result<Vec<_>>>()?.join(", ");
    let head = format!(
        "# Engines with runc and with vmm\n\n\
         Written by `cargo xtask test --engines --record`. Each row is a test function in `tests/engines/`, run with \
         Debian's\n{versions}, unmodified.\n\
         A case that a virtual machine cannot support is *refused*: the row gives the reason, and the test checks that \
         the user gets an error with it. An empty cell: not run.\n\n"
    );
    fs::write(&path, head + &text).with_context(|| format!("write {}", path.display()))?;
    run(Command::new("git").current_dir(top()).args(["diff", "--stat", "--", RESULTS]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[&str]) -> String {
        let head = ["| engine | case | runc | vmm | why |", "|---|---|---|---|---|"];
        head.iter().chain(rows).map(|row| format!("{row}\n")).collect()
    }

    #[test]
    fn outcomes_of_cases_that_were_not_run_stay() {
        let old = [
            "| docker | a::one | old | old |  |",
            "| docker | a::gone | x | x |  |",
            "| podman | b::one | y | y |  |",
        ];
        let old = format!("text\n\n{}", table(&old));
        let new = [
            "| docker | a::first |  | z |  |",
            "| docker | a::one |  | new | why |",
            "| podman | a::one |  |  |  |",
            "| podman | b::one |  |  |  |",
        ];
        let expected = [
            "| docker | a::first |  | z |  |",
            "| docker | a::one | old | new | why |",
            "| podman | a::one |  |  |  |",
            "| podman | b::one | y | y |  |",
        ];
        assert_eq!(merged(&old, &table(&new)), table(&expected));
    }
}
