//! `vmm events`: a container's resource usage and out-of-memory events as runc's JSON.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agent_proto::payload::usage::ContainerUsage;
use anyhow::{Context, Result};
use host::cgroup::usage::HostUsage;
use host::sys;
use serde_json::{Value, json};

use super::print;
use super::request::{checked, connect, running_container, unexpected};
use crate::cli::update::EventsArgs;
use crate::control::{Connection, ControlError, Reply, Request};
use crate::state::StateRoot;

/// Maximum interval between two reports.
const INTERVAL_MAX: Duration = Duration::from_secs(24 * 3600);

/// Prints one event a line until the container has ended. With `--stats`, prints a single report.
pub fn events(root: &StateRoot, args: &EventsArgs) -> Result<()> {
    let interval = interval(&args.interval)
        .with_context(|| format!("--interval {:?}: not a duration up to 24h", args.interval))?;
    let (directory, state, container) = running_container(root, &args.id)?;
    let mut connection = connect(&directory)?;
    let mut killed = None;
    loop {
        let Some(usage) = usage(&mut connection, &container)? else { return Ok(()) };
        let kills = usage.oom_kills.unwrap_or(0);
        if !args.stats && killed.replace(kills).is_some_and(|before| before < kills) {
            print(&line("oom", &args.id, None))?;
        }
        let host = HostUsage::of(&state.cgroup);
        print(&line("stats", &args.id, Some(data(&usage, &host))))?;
        if args.stats || !wait(&connection, interval)? {
            return Ok(());
        }
    }
}

/// Asks the pod. Returns `None` if the pod has ended.
fn usage(connection: &mut Connection, container: &str) -> Result<Option<ContainerUsage>> {
    match connection.ask(&Request::Stats, &[]) {
        Ok(reply) => match checked(reply)? {
            Reply::Stats(all) => Ok(all.into_iter().find(|usage| usage.container == container)),
            other => unexpected(&other),
        },
        Err(ControlError::Ended) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Waits for an interval. Returns false if the pod closed its socket meanwhile, that is, has ended.
fn wait(connection: &Connection, interval: Duration) -> Result<bool> {
    let until = Instant::now() + interval;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(true);
        }
        let [ended] = sys::poll([(connection.fd(), libc::POLLIN)], Some(left)).context("wait for the pod")?;
        if ended {
            return Ok(false);
        }
    }
}

fn line(kind: &str, id: &str, data: Option<Value>) -> String {
    let mut event = json!({ "type": kind, "id": id });
    if let Some(data) = data {
        event["data"] = data;
    }
    format!("{event}\n")
}

/// Returns runc's statistics of a container (`types.Stats`). The guest provides memory, processes and CPU time; the
/// host provides block I/O, huge pages and throttling.
fn data(usage: &ContainerUsage, host: &HostUsage) -> Value {
    let nanoseconds = |time: Option<u64>| time.unwrap_or(0).saturating_mul(1000);
    let block_io = |words: [(&str, &str); 2]| -> Vec<Value> {
        let found = host.block_io.iter().filter_map(|((major, minor, word), value)| {
            let (_, operation) = words.iter().find(|(wanted, _)| wanted == word)?;
            Some(json!({ "major": major, "minor": minor, "op": operation, "value": value }))
        });
        found.collect()
    };
    let hugetlb = host.hugetlb.iter();
    let hugetlb: BTreeMap<_, _> = hugetlb
        .map(|(size, (usage, max, failed))| (size, json!({ "usage": usage, "max": max, "failcnt": failed })))
        .collect();
    let (periods, throttled, lost) = host.throttling;
    json!({
        "cpu": {
            "usage": {
                "total": nanoseconds(usage.cpu),
                "user": nanoseconds(usage.cpu_user),
                "kernel": nanoseconds(usage.cpu_system),
            },
            "throttling": { "periods": periods, "throttledPeriods": throttled, "throttledTime": lost },
        },
        "memory": {
            "usage": {
                "usage": usage.memory.unwrap_or(0),
                "max": usage.memory_peak.unwrap_or(0),
                "limit": usage.memory_limit.unwrap_or(u64::MAX),
                "failcnt": usage.oom_kills.unwrap_or(0),
            },
            "swap": { "limit": 0, "failcnt": 0 },
            "kernel": { "limit": 0, "failcnt": 0 },
        },
        "pids": { "current": usage.pids.unwrap_or(0), "limit": usage.pids_limit.unwrap_or(0) },
        "blkio": {
            "ioServiceBytesRecursive": block_io([("rbytes", "Read"), ("wbytes", "Write")]),
            "ioServicedRecursive": block_io([("rios", "Read"), ("wios", "Write")]),
        },
        "hugetlb": hugetlb,
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

/// Parses a duration with one unit (ms, s, m or h), as runc does.
fn interval(text: &str) -> Option<Duration> {
    let number = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit_ms = match &text[number.len()..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let time = Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(unit_ms)?);
    Some(time).filter(|time| !time.is_zero() && *time <= INTERVAL_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_runc_s_form() {
        let usage = ContainerUsage {
            memory: Some(5),
            memory_peak: Some(9),
            cpu: Some(7),
            pids: Some(2),
            ..ContainerUsage::default()
        };
        let mut host = HostUsage { throttling: (1, 2, 3), ..HostUsage::default() };
        host.block_io.insert((8, 0, "wbytes"), 4);
        host.hugetlb.insert("2MB".to_owned(), (1, 2, 3));
        let line = line("stats", "c", Some(data(&usage, &host)));
        let event: Value = serde_json::from_str(line.trim_end()).unwrap();
        assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!("c")));
        let data = &event["data"];
        assert_eq!(data["cpu"]["usage"]["total"], 7000);
        assert_eq!(data["cpu"]["throttling"]["throttledTime"], 3);
        let memory = json!({ "usage": 5, "max": 9, "limit": u64::MAX, "failcnt": 0 });
        assert_eq!(data["memory"]["usage"], memory);
        assert_eq!(data["pids"], json!({ "current": 2, "limit": 0 }));
        let bytes = json!([{ "major": 8, "minor": 0, "op": "Write", "value": 4 }]);
        assert_eq!(data["blkio"]["ioServiceBytesRecursive"], bytes);
        assert_eq!(data["blkio"]["ioServicedRecursive"], json!([]));
        assert_eq!(data["hugetlb"]["2MB"]["failcnt"], 3);
        assert_eq!(super::line("oom", "c", None), "{\"id\":\"c\",\"type\":\"oom\"}\n");
    }

    #[test]
    fn a_duration_has_a_unit() {
        let times =
            [("5s", Some(5000)), ("250ms", Some(250)), ("2m", Some(120_000)), ("1h", Some(3_600_000))];
        for (text, ms) in
            times.into_iter().chain(["5", "0s", "s", "-1s", "48h", "1d"].map(|text| (text, None)))
        {
            assert_eq!(interval(text), ms.map(Duration::from_millis), "{text}");
        }
    }
}
