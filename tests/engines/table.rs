//! The table of results.

use std::fmt::{Display, Formatter, Write};

use crate::case::{Case, Group};
use crate::engine::Kind;

/// The result of a case with one runtime.
#[derive(Clone, Copy, PartialEq)]
pub enum Outcome {
    /// The case passed.
    Passed,
    /// `vmm` refused by name what a virtual machine does not support.
    Refused,
    /// The case failed or left something on the host.
    Failed,
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Outcome::Passed => "passes",
            Outcome::Refused => "refused",
            Outcome::Failed => "FAILS",
        })
    }
}

struct Row {
    engine: &'static str,
    name: String,
    why: &'static str,
    outcomes: Vec<(&'static str, Outcome)>,
}

/// One row per case, one column per runtime. The cells of what was not run are empty.
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Returns a table of all cases of `groups`, none of which was run.
    pub fn new(groups: &[Group]) -> Table {
        let row = |group: &Group, case: &Case| Row {
            engine: group.engine.name(),
            name: case.full_name(group),
            why: case.refused.unwrap_or(""),
            outcomes: Vec::new(),
        };
        Table {
            rows: groups.iter().flat_map(|group| group.cases.iter().map(|case| row(group, case))).collect(),
        }
    }

    /// Adds the result of a case, which the table has, with `runtime`.
    pub fn add(&mut self, engine: Kind, name: &str, runtime: &'static str, outcome: Outcome) {
        let row = self.rows.iter_mut().find(|row| row.engine == engine.name() && row.name == name);
        row.expect("a row for each case").outcomes.push((runtime, outcome));
    }

    /// Whether any case failed with any runtime.
    pub fn failed(&self) -> bool {
        self.count(Outcome::Failed, |_| true) > 0
    }

    /// The table as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::from("| engine | case | runc | vmm | why |\n|---|---|---|---|---|\n");
        for row in &self.rows {
            let cell = |runtime| {
                let found = row.outcomes.iter().find(|(name, _)| *name == runtime);
                found.map_or_else(String::new, |(_, outcome)| outcome.to_string())
            };
            let words = row.name.replace('_', " ");
            writeln!(text, "| {} | {words} | {} | {} | {} |", row.engine, cell("runc"), cell("vmm"), row.why)
                .expect("write to a string");
        }
        text
    }

    /// Returns the number of each outcome, and the names of the failed cases.
    pub fn summary(&self) -> String {
        let mut text = String::from("engines:");
        for runtime in crate::RUNTIMES {
            let count = |outcome| self.count(outcome, |name| name == runtime);
            let (passed, refused, failed) =
                (count(Outcome::Passed), count(Outcome::Refused), count(Outcome::Failed));
            write!(text, " {runtime}: {passed} passed, {refused} refused, {failed} failed;")
                .expect("write to a string");
        }
        let failed = self.rows.iter().flat_map(|row| row.outcomes.iter().map(move |one| (row, one)));
        for (row, (runtime, _)) in failed.filter(|(_, (_, outcome))| *outcome == Outcome::Failed) {
            write!(text, "\n  {} with {runtime} fails", row.name).expect("write to a string");
        }
        text
    }

    fn count(&self, outcome: Outcome, of: impl Fn(&str) -> bool) -> usize {
        let all = self.rows.iter().flat_map(|row| &row.outcomes);
        all.filter(|(runtime, this)| of(runtime) && *this == outcome).count()
    }
}
