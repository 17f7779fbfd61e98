//! `cargo xtask test --oci DIR`: the public validation suites of OCI runtimes, with runc and with vmm.
//!
//! The caller provides a suite as a checkout; the repository contains none of it. `build` builds its programs,
//! `tests/oci/suites.sh` runs them with a usable KVM, `results` parses their output, and `table` writes the results.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::checkout::{target_dir, top};
use crate::host::Host;
use crate::kvm_tests::KvmTests;
use crate::steps::output;
use crate::{apt, program};

mod build;
pub mod cri;
mod images;
mod results;
mod table;

use results::Row;
use table::Reason;

/// Where the suites' table is.
const TABLE: table::SuiteTable = table::SuiteTable { folder: "tests/oci", command: "cargo xtask test --oci" };
/// Number of tests in a run of the emulated KVM host. Tests leak memory, which the next machine does not inherit.
const BATCH: usize = 16;
/// Timeout of such a run in seconds.
const BATCH_SECONDS: u64 = 1800;

/// A suite with its built programs.
struct Suite {
    /// Prefix of the names of its tests.
    name: &'static str,
    /// Folder of its programs.
    programs: PathBuf,
    /// Names of the tests, without the prefix.
    tests: Vec<String>,
    /// Version of the checkout.
    version: String,
}

impl Suite {
    fn names(&self) -> impl Iterator<Item = String> {
        self.tests.iter().map(|test| format!("{}/{test}", self.name))
    }
}

/// Runs the tests of the suites in `checkouts` whose names contain `filter`, and writes the table. The table keeps the
/// results of other tests.
pub fn run_suites(checkouts: &[PathBuf], filter: Option<&str>, table: bool) -> anyhow::Result<()> {
    apt::install(&["runc", "e2fsprogs"])?;
    let program = program::program()?;
    let mut suites = Vec::new();
    for checkout in checkouts {
        let checkout =
            checkout.canonicalize().with_context(|| format!("resolve checkout {}", checkout.display()))?;
        suites.push(build::suite(&checkout)?);
    }
    let out = target_dir().join("oci/output");
    fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    let chosen: Vec<String> =
        suites.iter().flat_map(Suite::names).filter(|name| filter.is_none_or(|f| name.contains(f))).collect();
    ensure!(!chosen.is_empty(), "no test has {:?} in its name", filter.unwrap_or_default());
    for batch in chosen.chunks(BATCH).filter(|_| !table) {
        run_batch(&suites, &program, &out, batch)?;
    }
    let before = table::read(&TABLE)?;
    let mut rows = Vec::new();
    let mut missing = Vec::new();
    for name in suites.iter().flat_map(Suite::names) {
        let rows_of_test = results::rows(&out, &name)?.unwrap_or_else(|| table::rows_of(&before, &name));
        if rows_of_test.is_empty() {
            missing.push(name);
        }
        rows.extend(rows_of_test);
    }
    let reasons = table::reasons(&TABLE)?;
    print!(
        "{}",
        table::rows(rows.iter().filter(|row| filter.is_none_or(|f| row.name.contains(f))), &reasons)
    );
    let versions = suites.iter().map(|suite| format!("{} {}", suite.name, suite.version)).collect();
    table::write(&TABLE, &rows, &missing, &reasons, versions)?;
    explained(&rows, &reasons)
}

/// Fails if a test passes with runc, does not pass with vmm, and has no reason.
fn explained(rows: &[Row], reasons: &[Reason]) -> anyhow::Result<()> {
    let unexplained = table::unexplained(rows, reasons);
    ensure!(
        unexplained.is_empty(),
        "tests that fail without an entry in reasons.txt: {}",
        unexplained.join(", ")
    );
    Ok(())
}

/// Runs `tests` with both runtimes. Their output goes to `out`.
fn run_batch(suites: &[Suite], program: &Path, out: &Path, tests: &[String]) -> anyhow::Result<()> {
    let programs = |name: &str| {
        let suite = suites.iter().find(|suite| suite.name == name);
        suite.map_or_else(OsString::new, |suite| suite.programs.clone().into())
    };
    let script = top().join("tests/oci/suites.sh");
    let mut words: Vec<OsString> = vec!["bash".into(), script.into(), out.into()];
    words.extend([programs(build::CONTEST), programs(build::RUNTIME_TOOLS)]);
    words.extend(tests.iter().map(OsString::from));
    let name = format!("{} tests of OCI suites", tests.len());
    let tests = KvmTests { name: &name, program, words, environment: Vec::new() };
    tests.run(Host::new().memory(3072).deadline(BATCH_SECONDS).out(out))
}

/// Returns the first line of `program --version`.
fn version(program: &Path) -> anyhow::Result<String> {
    let text = output(Command::new(program).arg("--version"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
