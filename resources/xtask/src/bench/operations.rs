//! Tables of operations: what each takes, beside runc.

use anyhow::Context;
use serde_json::Value;

/// Returns two tables for people: medians in µs with their ratios to runc, and the medians of `counts` for each operation
/// of a machine.
pub fn tables(report: &Value, counts: &[&str]) -> anyhow::Result<String> {
    let rows = report["rows"].as_array().context("no rows in the bench's report")?;
    let names = names(rows);
    let machines = &names[1..];
    let mut text = format!("{:<30} {:>10}", "µs for one operation", "runc");
    text += &machines.iter().map(|name| format!(" {name:>10} {:>7}", "ratio")).collect::<String>();
    text.push('\n');
    for row in rows {
        let of = |name: &str| median(&row["contenders"][name]["us"]).context("no samples");
        let base = of("runc")?;
        text += &format!("{:<30} {base:>10.1}", operation(row)?);
        for name in machines {
            let time = of(name)?;
            text += &format!(" {time:>10.1} {:>7.2}", time / base);
        }
        text.push('\n');
    }
    text += &format!("\n{:<30}", "counts for one operation");
    text += &machines
        .iter()
        .map(|name| format!(" {name:>10}{:>1$}", "", 11 * counts.len() - 11))
        .collect::<String>();
    text += &format!("\n{:<30}", "");
    text +=
        &machines.iter().flat_map(|_| counts.iter().map(|what| format!(" {what:>10}"))).collect::<String>();
    text.push('\n');
    for row in rows {
        text += &format!("{:<30}", operation(row)?);
        for name in machines {
            for what in counts {
                let number = median(&row["contenders"][name][what]);
                text += &number.map_or_else(|| format!(" {:>10}", "-"), |number| format!(" {number:>10.2}"));
            }
        }
        text.push('\n');
    }
    Ok(text)
}

fn operation(row: &Value) -> anyhow::Result<&str> {
    row["operation"].as_str().context("a row without an operation")
}

/// Returns the contenders, runc first.
fn names(rows: &[Value]) -> Vec<&str> {
    let known = ["runc", "vmm", "other", "QEMU"];
    known
        .into_iter()
        .filter(|name| rows.first().is_some_and(|row| !row["contenders"][name].is_null()))
        .collect()
}

/// Returns the median of samples, if there are any.
fn median(samples: &Value) -> Option<f64> {
    let mut samples: Vec<f64> = samples.as_array()?.iter().filter_map(Value::as_f64).collect();
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_have_medians_ratios_to_runc_and_counts_of_machines() {
        let vmm = json!({"us": [6.0, 4.0, 5.0], "exits": [1.5], "kicks": []});
        let contenders = json!({"runc": {"us": [2.0]}, "vmm": vmm, "QEMU": {"us": [8.0], "kicks": [0.25]}});
        let report = json!({"rows": [{"operation": "request", "contenders": contenders}]});
        let text = tables(&report, &["exits", "kicks"]).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][4..], ["runc", "vmm", "ratio", "QEMU", "ratio"]);
        assert_eq!(lines[1], ["request", "2.0", "5.0", "2.50", "8.0", "4.00"]);
        assert_eq!(lines[4], ["exits", "kicks", "exits", "kicks"]);
        assert_eq!(lines[5], ["request", "1.50", "-", "-", "0.25"]);
        assert!(tables(&json!({}), &[]).is_err());
    }
}
