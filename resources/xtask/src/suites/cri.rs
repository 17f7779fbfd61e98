//! `cargo xtask test --cri DIR`: the validation suite of Kubernetes' container runtime interface, with containerd and runc and
//! with containerd and vmm.
//!
//! The caller provides a checkout of kubernetes-sigs/cri-tools. `tests/cri/suite.sh` runs the suite in the emulated KVM host.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::results::{Row, Verdict};
use super::{build, explained, images, table};
use crate::checkout::{target_dir, top};
use crate::host::Host;
use crate::kvm_tests::KvmTests;
use crate::steps::{output, run, say};
use crate::{apt, program};

/// Where the suite's table is.
const TABLE: table::SuiteTable = table::SuiteTable { folder: "tests/cri", command: "cargo xtask test --cri" };
/// Timeout of both runs in seconds.
const SECONDS: u64 = 5700;

/// A report of the suite: one run.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    #[serde(default)]
    spec_reports: Option<Vec<Spec>>,
}

/// A test of a report.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_text: String,
    /// `It` for a test.
    leaf_node_type: String,
    /// `passed`, `skipped`, `failed` and others.
    state: String,
}

/// Runs the suite in `checkout`, or its tests whose names contain `words`, and writes the table. The table keeps the results of
/// other tests.
pub fn run_cri(checkout: &Path, words: Option<&str>) -> anyhow::Result<()> {
    apt::install(&[
        "busybox-static",
        "containerd",
        "containernetworking-plugins",
        "gcc",
        "iptables",
        "runc",
    ])?;
    let vmm = program::program()?;
    let programs = build::folder("critest")?;
    let version = critest(checkout, &programs)?;
    for entry in fs::read_dir(&programs).context("list the suite's programs")? {
        let path = entry.context("list the suite's programs")?.path();
        if path.extension().is_some_and(|kind| kind == "tar") {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    images::write(&programs)?;
    fs::copy(top().join("tests/cri/images.yaml"), programs.join("images.yaml"))
        .context("copy images.yaml")?;
    let out = target_dir().join("oci/critest-output");
    fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    let script = top().join("tests/cri/suite.sh");
    let mut command = vec!["bash".into(), script.into(), programs.into(), out.clone().into()];
    command.extend(words.map(Into::into));
    let tests = KvmTests { name: "critest", program: &vmm, words: command, environment: Vec::new() };
    // The script mounts, and configures the host's network.
    tests.check(tests.run_emulated(Host::new().memory(6144).deadline(SECONDS).out(&out), &[])?)?;
    let ran = rows(&read(&out.join("runc.json"))?, &read(&out.join("vmm.json"))?);
    ensure!(!ran.is_empty(), "no test has {:?} in its name", words.unwrap_or_default());
    let mut all: BTreeMap<String, Row> =
        table::read(&TABLE)?.into_iter().map(|row| (row.name.clone(), row)).collect();
    all.extend(ran.into_iter().map(|row| (row.name.clone(), row)));
    let rows: Vec<Row> = all.into_values().collect();
    let reasons = table::reasons(&TABLE)?;
    table::write(&TABLE, &rows, &[], &reasons, vec![format!("critest {version}")])?;
    print!("{}", table::rows(rows.iter(), &reasons));
    explained(&rows, &reasons)
}

/// Builds the suite's program into `programs` and returns the version of its checkout.
fn critest(checkout: &Path, programs: &Path) -> anyhow::Result<String> {
    let describe = ["describe", "--tags", "--always"];
    let version = output(Command::new("git").args(describe).current_dir(checkout)).unwrap_or_default();
    say("building critest");
    let mut command = Command::new(build::go()?);
    command.args(["test", "-c", "-mod=vendor", "-o"]).arg(programs.join("critest")).arg("./cmd/critest");
    run(command.env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local").current_dir(checkout))?;
    Ok(version.trim().to_owned())
}

/// Reads the verdicts of a run from its report.
fn read(path: &Path) -> anyhow::Result<BTreeMap<String, Verdict>> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    verdicts(&text).with_context(|| format!("parse {}", path.display()))
}

fn verdicts(text: &[u8]) -> anyhow::Result<BTreeMap<String, Verdict>> {
    let reports: Vec<Report> = serde_json::from_slice(text)?;
    let specs = reports.into_iter().flat_map(|report| report.spec_reports.unwrap_or_default());
    let tests = specs.filter(|spec| spec.leaf_node_type == "It");
    Ok(tests.map(|spec| (spec.name(), spec.verdict())).collect())
}

impl Spec {
    /// The test's name, without the prefix of all tests. A `|` would end a cell of the table.
    fn name(&self) -> String {
        let above = self.container_hierarchy_texts.iter().flatten();
        let words: Vec<&str> = above.chain([&self.leaf_node_text]).map(String::as_str).collect();
        words.join(" ").trim_start_matches("[k8s.io] ").replace('|', "/")
    }

    fn verdict(&self) -> Verdict {
        match self.state.as_str() {
            "passed" => Verdict::Ok,
            "skipped" | "pending" => Verdict::Skipped,
            _ => Verdict::Failed { failed: 1, all: 1 },
        }
    }
}

/// Returns the tests that ran with a runtime.
fn rows(runc: &BTreeMap<String, Verdict>, vmm: &BTreeMap<String, Verdict>) -> Vec<Row> {
    let of =
        |all: &BTreeMap<String, Verdict>, name: &String| all.get(name).cloned().unwrap_or(Verdict::Skipped);
    let row = |name: &String| Row { name: name.clone(), runc: of(runc, name), vmm: of(vmm, name) };
    let skipped = |row: &Row| row.runc == Verdict::Skipped && row.vmm == Verdict::Skipped;
    runc.keys().map(row).filter(|row| !skipped(row)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_a_row_for_each_test_that_ran() {
        let report = |state: &str| {
            let spec = |name: &str, kind: &str, state: &str| {
                serde_json::json!({"ContainerHierarchyTexts": ["[k8s.io] Container", "runtime"],
                                   "LeafNodeText": name, "LeafNodeType": kind, "State": state})
            };
            let specs =
                [spec("a|b", "It", state), spec("c", "It", "skipped"), spec("", "BeforeSuite", "passed")];
            verdicts(serde_json::json!([{"SpecReports": specs}]).to_string().as_bytes()).unwrap()
        };
        let rows = rows(&report("passed"), &report("timedout"));
        let shown: Vec<_> = rows.iter().map(|row| (row.name.as_str(), &row.runc, &row.vmm)).collect();
        assert_eq!(shown, [("Container runtime a/b", &Verdict::Ok, &Verdict::Failed { failed: 1, all: 1 })]);
    }
}
