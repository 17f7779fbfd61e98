//! Parses the output of the suites: contest's format, and TAP (Test Anything Protocol) of runtime-tools.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;

use super::build::CONTEST;

/// Result of a test with one runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    Skipped,
    /// `failed` of `all` checks of the test failed.
    Failed {
        failed: usize,
        all: usize,
    },
    /// The program exited with this code, and printed no result of the test.
    NoResult(i32),
}

/// Results of a test with both runtimes.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub runc: Verdict,
    pub vmm: Verdict,
}

/// Returns the results of `test` in folder `out`, or `None` unless it was run with both runtimes.
pub fn rows(out: &Path, test: &str) -> anyhow::Result<Option<Vec<Row>>> {
    let read = |runtime: &str| {
        let path = out.join(format!("{test}.{runtime}"));
        path.exists()
            .then(|| fs::read(&path).with_context(|| format!("read {}", path.display())))
            .transpose()
            .map(|bytes| bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    };
    Ok(match (read("runc")?, read("vmm")?) {
        (Some(runc), Some(vmm)) => Some(compare(test, &runc, &vmm)),
        _ => None,
    })
}

fn compare(test: &str, runc: &str, vmm: &str) -> Vec<Row> {
    if !test.starts_with(CONTEST) {
        return vec![Row { name: test.to_owned(), runc: tap(runc), vmm: tap(vmm) }];
    }
    let (of_runc, of_vmm) = (contest(runc), contest(vmm));
    let mut names: Vec<&String> = of_runc.keys().chain(of_vmm.keys()).collect();
    names.sort();
    names.dedup();
    let verdict = |of: &BTreeMap<String, Verdict>, name: &String, output| {
        of.get(name).cloned().unwrap_or(Verdict::NoResult(exit_code(output)))
    };
    if names.is_empty() {
        let (runc, vmm) = (Verdict::NoResult(exit_code(runc)), Verdict::NoResult(exit_code(vmm)));
        return vec![Row { name: test.to_owned(), runc, vmm }];
    }
    let row = |name: &String| Row {
        name: format!("{test}::{name}"),
        runc: verdict(&of_runc, name, runc),
        vmm: verdict(&of_vmm, name, vmm),
    };
    names.into_iter().map(row).collect()
}

/// Parses lines `1 / 3 : name : ok`. A container's output may precede such a line without a newline.
fn contest(output: &str) -> BTreeMap<String, Verdict> {
    let verdict = |line: &str| {
        let (position, rest) = line.split_once(" : ")?;
        let (_, all) = position.split_once(" / ")?;
        all.parse::<usize>().ok()?;
        let (name, result) = rest.rsplit_once(" : ")?;
        let verdict = match result {
            "ok" => Verdict::Ok,
            "skipped" => Verdict::Skipped,
            "not ok" => Verdict::Failed { failed: 1, all: 1 },
            _ => return None,
        };
        Some((name.to_owned(), verdict))
    };
    output.lines().filter_map(verdict).collect()
}

/// Parses TAP. Indented lines belong to a diagnostic. Some programs print only a diagnostic, and only if they fail.
fn tap(output: &str) -> Verdict {
    let skipped = |line: &str| line.to_ascii_lowercase().contains("# skip");
    let lines: Vec<&str> =
        output.lines().filter(|line| line.starts_with("ok ") || line.starts_with("not ok ")).collect();
    let failed = lines.iter().filter(|line| line.starts_with("not ok ") && !skipped(line)).count();
    match exit_code(output) {
        _ if failed > 0 => Verdict::Failed { failed, all: lines.len() },
        0 if lines.is_empty() && output.contains("\"error\": ") => Verdict::Failed { failed: 1, all: 1 },
        0 if lines.is_empty() => Verdict::Ok,
        0 if lines.iter().all(|line| skipped(line)) => Verdict::Skipped,
        0 => Verdict::Ok,
        code => Verdict::NoResult(code),
    }
}

/// Returns the exit code from the last line `# exit N`, which `suites.sh` writes.
fn exit_code(output: &str) -> i32 {
    let last = output.lines().rev().find_map(|line| line.strip_prefix("# exit "));
    last.and_then(|code| code.parse().ok()).unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_of_contest_has_a_row_for_each_test() {
        let runc = "# Start group a\n1 / 2 : one : ok\n2 / 2 : two : not ok\n\twhy : ok\n# End group a\n\n# exit 0\n";
        let rows = compare("contest/a", runc, "1 / 2 : one : skipped\n\tno\n# exit 101\n");
        let shown: Vec<_> = rows.iter().map(|row| (row.name.as_str(), &row.runc, &row.vmm)).collect();
        assert_eq!(
            shown,
            [
                ("contest/a::one", &Verdict::Ok, &Verdict::Skipped),
                ("contest/a::two", &Verdict::Failed { failed: 1, all: 1 }, &Verdict::NoResult(101)),
            ]
        );
    }

    #[test]
    fn a_group_without_results_is_one_row() {
        let rows = compare("contest/a", "# exit 124\n", "# exit 0\n");
        assert_eq!((&rows[0].runc, &rows[0].vmm), (&Verdict::NoResult(124), &Verdict::NoResult(0)));
    }

    #[test]
    fn lines_of_tap_count_except_those_of_a_diagnostic() {
        assert_eq!(tap("TAP version 13\nok 1 - a\n  ---\n  not ok 2\n# exit 0"), Verdict::Ok);
        assert_eq!(tap("ok 1 - a\nnot ok 2 - b\n# exit 0"), Verdict::Failed { failed: 1, all: 2 });
        assert_eq!(tap("not ok 1 # SKIP no\n# exit 0"), Verdict::Skipped);
        assert_eq!(tap("ok 1 - a\n# exit 1"), Verdict::NoResult(1));
        assert_eq!(tap("TAP version 13\n1..0\n# exit 0"), Verdict::Ok);
        let silent = "TAP version 13\n  {\n    \"error\": \"no\"\n  }\n1..0\n# exit 0";
        assert_eq!(tap(silent), Verdict::Failed { failed: 1, all: 1 });
        assert_eq!(tap("no such file\n# exit 1"), Verdict::NoResult(1));
    }
}
