//! Samples of a contender's milestone, and their statistics.

use std::fmt::Write;

use anyhow::Context;
use serde_json::{Value, json};

/// The samples of a milestone.
pub struct Series {
    /// Name: `contender: milestone`.
    pub name: String,
    /// Samples in ascending order.
    samples: Vec<f64>,
}

impl Series {
    /// Returns a series of at least one sample.
    fn new(name: &str, mut samples: Vec<f64>) -> Series {
        samples.sort_by(f64::total_cmp);
        Series { name: name.to_owned(), samples }
    }

    pub fn median(&self) -> f64 {
        let half = self.samples.len() / 2;
        if self.samples.len() % 2 == 1 {
            self.samples[half]
        } else {
            (self.samples[half - 1] + self.samples[half]) / 2.0
        }
    }

    /// Returns the smallest and the largest sample.
    pub fn spread(&self) -> (f64, f64) {
        (self.samples[0], self.samples[self.samples.len() - 1])
    }
}

/// Parses a bench's report: `{"series": [{"name", "samples": [..]}]}`.
pub fn read(report: &Value) -> anyhow::Result<Vec<Series>> {
    let rows = report["series"].as_array().context("no series in the bench's report")?;
    rows.iter()
        .map(|row| {
            let name = row["name"].as_str().context("a series of the bench's report has no name")?;
            let samples: Option<Vec<f64>> =
                row["samples"].as_array().map(|all| all.iter().filter_map(Value::as_f64).collect());
            let samples = samples
                .filter(|s| !s.is_empty())
                .with_context(|| format!("no samples of {name} in the bench's report"))?;
            Ok(Series::new(name, samples))
        })
        .collect()
}

/// Returns a table for people: median, spread, and the ratio to the first row.
pub fn table(series: &[Series], unit: &str) -> String {
    let mut text =
        format!("{:<34} {:>9} {:>9} {:>9} {:>7}   ({unit})\n", "", "median", "min", "max", "ratio");
    let base = series.first().map_or(1.0, Series::median);
    for row in series {
        let (min, max) = row.spread();
        let ratio = row.median() / base;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<34} {:>9.1} {min:>9.1} {max:>9.1} {ratio:>7.2}", row.name, row.median());
    }
    text
}

/// Returns a table for programs, with all samples.
pub fn json(series: &[Series], unit: &str) -> Value {
    let rows = series.iter().map(|s| {
        let (min, max) = s.spread();
        json!({"name": s.name, "median": s.median(), "min": min, "max": max, "samples": s.samples})
    });
    json!({"unit": unit, "series": rows.collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spread() {
        let odd = Series::new("odd", vec![3.0, 1.0, 2.0]);
        assert_eq!((odd.median(), odd.spread()), (2.0, (1.0, 3.0)));
        assert_eq!(Series::new("even", vec![4.0, 1.0, 2.0, 3.0]).median(), 2.5);
    }

    #[test]
    fn a_report_without_samples_is_refused() {
        assert!(read(&json!({"series": [{"name": "a", "samples": []}]})).is_err());
        assert!(read(&json!({})).is_err());
        assert_eq!(read(&json!({"series": [{"name": "a", "samples": [1.5]}]})).unwrap()[0].median(), 1.5);
    }
}
