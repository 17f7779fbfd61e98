//! Writes the table of a folder of suites, `RESULTS.md`, with the reasons from its `reasons.txt`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::results::{Row, Verdict};
use super::version;
use crate::checkout::{target_dir, top};

/// Suites that have a table.
pub struct SuiteTable {
    /// Their folder below the checkout.
    pub folder: &'static str,
    /// The command that runs them.
    pub command: &'static str,
}

impl SuiteTable {
    fn path(&self, name: &str) -> PathBuf {
        top().join(self.folder).join(name)
    }
}

/// Why a test does not pass with vmm: the test's name, or a prefix of the name with a `*`, and a sentence.
pub struct Reason {
    name: String,
    why: String,
}

impl Reason {
    fn applies_to(&self, name: &str) -> bool {
        match self.name.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => self.name == name,
        }
    }
}

/// Parses the reasons: lines `NAME: SENTENCE`.
pub fn reasons(place: &SuiteTable) -> anyhow::Result<Vec<Reason>> {
    let path = place.path("reasons.txt");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    parse(&text).with_context(|| format!("parse {}", path.display()))
}

fn parse(text: &str) -> anyhow::Result<Vec<Reason>> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, why) = line.split_once(": ").with_context(|| format!("no ': ' in {line:?}"))?;
            Ok(Reason { name: name.to_owned(), why: why.to_owned() })
        })
        .collect()
}

/// Returns the names of tests that pass with runc, do not pass with vmm, and have no reason.
pub fn unexplained(rows: &[Row], reasons: &[Reason]) -> Vec<String> {
    let is_worse = |row: &&Row| row.runc == Verdict::Ok && row.vmm != Verdict::Ok;
    let has_reason = |row: &&Row| reasons.iter().any(|reason| reason.applies_to(&row.name));
    rows.iter().filter(is_worse).filter(|row| !has_reason(row)).map(|row| row.name.clone()).collect()
}

/// Reads the rows of the current table. A missing table has none.
pub fn read(place: &SuiteTable) -> anyhow::Result<Vec<Row>> {
    let path = place.path("RESULTS.md");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.lines().filter_map(parse_row).collect())
}

fn parse_row(line: &str) -> Option<Row> {
    let mut cells = line.strip_prefix("| ")?.split(" | ");
    let (name, runc, vmm) = (cells.next()?, cells.next()?, cells.next()?);
    Some(Row { name: name.to_owned(), runc: Verdict::parse(runc)?, vmm: Verdict::parse(vmm)? })
}

/// Returns the rows of a test or group.
pub fn rows_of(all: &[Row], test: &str) -> Vec<Row> {
    let is_of_test = |row: &&Row| row.name.split("::").next() == Some(test);
    all.iter().filter(is_of_test).cloned().collect()
}

/// Writes the table. `missing` are tests that were never run.
pub fn write(
    place: &SuiteTable,
    rows: &[Row],
    missing: &[String],
    reasons: &[Reason],
    versions: Vec<String>,
) -> anyhow::Result<()> {
    let path = place.path("RESULTS.md");
    let runc = version(Path::new("runc"))?;
    let vmm = version(&target_dir().join("vmm"))?;
    let mut text = format!(
        "# Public suites, with runc and with vmm\n\n\
         Written by `{}` (see README.md here): {}; {runc}; {vmm}.\n\n\
         | of {} tests | runc | vmm |\n|---|---|---|\n",
        place.command,
        versions.join(", "),
        rows.len(),
    );
    for (title, counted) in [
        ("ok", (|verdict| *verdict == Verdict::Ok) as fn(&Verdict) -> bool),
        ("skipped by the suite", |verdict| *verdict == Verdict::Skipped),
        ("not ok", |verdict| !matches!(verdict, Verdict::Ok | Verdict::Skipped)),
    ] {
        let count = |of: fn(&Row) -> &Verdict| rows.iter().filter(|row| counted(of(row))).count();
        text += &format!("| {title} | {} | {} |\n", count(|row| &row.runc), count(|row| &row.vmm));
    }
    if !missing.is_empty() {
        text += &format!("\nNot run: {}.\n", missing.join(", "));
    }
    text += "\n| test | runc | vmm | why |\n|---|---|---|---|\n";
    text += &self::rows(rows.iter(), reasons);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

/// Returns the lines of a table.
pub fn rows<'a>(rows: impl Iterator<Item = &'a Row>, reasons: &[Reason]) -> String {
    rows.map(|row| {
        let why = reasons.iter().find(|reason| row.vmm != Verdict::Ok && reason.applies_to(&row.name));
        let why = why.map_or("", |reason| &reason.why);
        format!("| {} | {} | {} | {why} |\n", row.name, row.runc, row.vmm)
    })
    .collect()
}

impl Verdict {
    /// Parses the text that `Display` writes.
    fn parse(text: &str) -> Option<Verdict> {
        Some(match text {
            "ok" => Verdict::Ok,
            "skipped" => Verdict::Skipped,
            "not ok" => Verdict::Failed { failed: 1, all: 1 },
            other => match (other.strip_prefix("not ok: "), other.strip_prefix("no result, exit code ")) {
                (Some(counts), _) => {
                    let (failed, all) = counts.split_once(" of ")?;
                    Verdict::Failed { failed: failed.parse().ok()?, all: all.parse().ok()? }
                }
                (None, code) => Verdict::NoResult(code?.parse().ok()?),
            },
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Ok => f.write_str("ok"),
            Verdict::Skipped => f.write_str("skipped"),
            Verdict::Failed { all: 1, .. } => f.write_str("not ok"),
            Verdict::Failed { failed, all } => write!(f, "not ok: {failed} of {all}"),
            Verdict::NoResult(code) => write!(f, "no result, exit code {code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, runc: Verdict, vmm: Verdict) -> Row {
        Row { name: name.to_owned(), runc, vmm }
    }

    #[test]
    fn a_test_that_passes_only_with_runc_needs_a_reason() {
        let failed = Verdict::Failed { failed: 1, all: 1 };
        let all = [
            row("contest/a::b", Verdict::Ok, failed.clone()),
            row("contest/c::d", Verdict::Ok, Verdict::Skipped),
            row("contest/e::f", failed.clone(), failed),
            row("contest/g::h", Verdict::Ok, Verdict::Ok),
        ];
        let reasons = parse("# a remark\n\ncontest/a::*: no such thing: here\n").unwrap();
        assert_eq!(unexplained(&all, &reasons), ["contest/c::d"]);
        let table = rows(all.iter(), &reasons);
        assert!(table.starts_with("| contest/a::b | ok | not ok | no such thing: here |\n"), "{table}");
        let read: Vec<Row> = table.lines().filter_map(parse_row).collect();
        assert_eq!(read.len(), all.len());
        assert_eq!((&read[1].name, &read[1].vmm), (&all[1].name, &Verdict::Skipped));
        assert_eq!(rows_of(&read, "contest/e").len(), 1);
        assert!(rows_of(&read, "contest").is_empty());
        for verdict in [Verdict::Failed { failed: 2, all: 7 }, Verdict::NoResult(124)] {
            assert_eq!(Verdict::parse(&verdict.to_string()), Some(verdict));
        }
        assert!(parse("a line without a reason").is_err());
    }
}
