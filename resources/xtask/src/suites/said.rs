//! Parses the output of tests: contest's format, and TAP of runtime-tools.

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
    /// With the number of failed checks and of all checks, if there are several.
    Failed {
        failed: usize,
        all: usize,
    },
    /// The program exited with this code without a result of this test.
    Nothing(i32),
}

/// Results of a test with both runtimes.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub runc: Verdict,
    pub vmm: Verdict,
}

/// Returns the results of `test` below `out`; none unless it was run with both runtimes.
pub fn rows(out: &Path, test: &str) -> anyhow::Result<Option<Vec<Row>>> {
    let read = |runtime: &str| {
        let path = out.join(format!("{test}.{runtime}"));
        path.exists()
            .then(|| fs::read(&path).with_context(|| format!("read {}", path.display())))
            .transpose()
            .map(|bytes| bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    };
    Ok(match (read("runc")?, read("vmm")?) {
        (Some(runc), Some(vmm)) => Some(beside(test, &runc, &vmm)),
        _ => None,
    })
}

fn beside(test: &str, runc: &str, vmm: &str) -> Vec<Row> {
    if !test.starts_with(CONTEST) {
        return vec![Row { name: test.to_owned(), runc: tap(runc), vmm: tap(vmm) }];
    }
    let (of_runc, of_vmm) = (contest(runc), contest(vmm));
    let mut names: Vec<&String> = of_runc.keys().chain(of_vmm.keys()).collect();
    names.sort();
    names.dedup();
    let verdict = |of: &BTreeMap<String, Verdict>, name: &String, said| {
        of.get(name).cloned().unwrap_or(Verdict::Nothing(exit_code(said)))
    };
    if names.is_empty() {
        let (runc, vmm) = (Verdict::Nothing(exit_code(runc)), Verdict::Nothing(exit_code(vmm)));
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
fn contest(said: &str) -> BTreeMap<String, Verdict> {
    let verdict = |line: &str| {
        let (place, rest) = line.split_once(" : ")?;
        let (_, all) = place.split_once(" / ")?;
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
    said.lines().filter_map(verdict).collect()
}

/// Parses TAP. Indented lines belong to a diagnosis. Some programs print only a diagnosis, and only if they fail.
fn tap(said: &str) -> Verdict {
    let skipped = |line: &str| line.to_ascii_lowercase().contains("# skip");
    let lines: Vec<&str> =
        said.lines().filter(|line| line.starts_with("ok ") || line.starts_with("not ok ")).collect();
    let failed = lines.iter().filter(|line| line.starts_with("not ok ") && !skipped(line)).count();
    match exit_code(said) {
        _ if failed > 0 => Verdict::Failed { failed, all: lines.len() },
        0 if lines.is_empty() && said.contains("\"error\": ") => Verdict::Failed { failed: 1, all: 1 },
        0 if lines.is_empty() => Verdict::Ok,
        0 if lines.iter().all(|line| skipped(line)) => Verdict::Skipped,
        0 => Verdict::Ok,
        code => Verdict::Nothing(code),
    }
}

/// Returns the exit code, which `suites.sh` writes last.
fn exit_code(said: &str) -> i32 {
    let last = said.lines().rev().find_map(|line| line.strip_prefix("# exit "));
    last.and_then(|code| code.parse().ok()).unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_of_contest_has_a_row_for_each_test() {
        let runc = "# Start group a\n1 / 2 : one : ok\n2 / 2 : two : not ok\n\twhy : ok\n# End group a\n\n# exit 0\n";
        let rows = beside("contest/a", runc, "1 / 2 : one : skipped\n\tno\n# exit 101\n");
        let shown: Vec<_> = rows.iter().map(|row| (row.name.as_str(), &row.runc, &row.vmm)).collect();
        assert_eq!(
            shown,
            [
                ("contest/a::one", &Verdict::Ok, &Verdict::Skipped),
                ("contest/a::two", &Verdict::Failed { failed: 1, all: 1 }, &Verdict::Nothing(101)),
            ]
        );
    }

    #[test]
    fn a_group_without_results_is_one_row() {
        let rows = beside("contest/a", "# exit 124\n", "# exit 0\n");
        assert_eq!((&rows[0].runc, &rows[0].vmm), (&Verdict::Nothing(124), &Verdict::Nothing(0)));
    }

    #[test]
    fn lines_of_tap_are_counted_but_for_those_within_a_diagnosis() {
        assert_eq!(tap("TAP version 13\nok 1 - a\n  ---\n  not ok 2\n# exit 0"), Verdict::Ok);
        assert_eq!(tap("ok 1 - a\nnot ok 2 - b\n# exit 0"), Verdict::Failed { failed: 1, all: 2 });
        assert_eq!(tap("not ok 1 # SKIP no\n# exit 0"), Verdict::Skipped);
        assert_eq!(tap("ok 1 - a\n# exit 1"), Verdict::Nothing(1));
        assert_eq!(tap("TAP version 13\n1..0\n# exit 0"), Verdict::Ok);
        let silent = "TAP version 13\n  {\n    \"error\": \"no\"\n  }\n1..0\n# exit 0";
        assert_eq!(tap(silent), Verdict::Failed { failed: 1, all: 1 });
        assert_eq!(tap("no such file\n# exit 1"), Verdict::Nothing(1));
    }
}
