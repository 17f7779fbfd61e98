//! `vmm update`: updates the resource limits of a running container, in the guest and on the host.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result};
use host::cgroup::room;
use oci::error::unsupported;
use oci::spec::resources::{BlockIo, Resources};
use plan::limits::{self, Sets};

use super::request::{connect, done, running_container};
use crate::cli::update::UpdateArgs;
use crate::control::Request;
use crate::state::StateRoot;

/// Maximum size of a file of limits, in bytes.
const RESOURCES_MAX: u64 = 1 << 20;

/// Updates the limits. The guest goes first, since it can refuse them.
pub fn update(root: &StateRoot, args: &UpdateArgs) -> Result<()> {
    let mut resources = match &args.resources {
        Some(path) => read(path)?,
        None => of_flags(args)?,
    };
    let (directory, state, container) = running_container(root, &args.id)?;
    let sets = if state.cgroup.is_none() { Sets::Guest } else { Sets::Host };
    refuse(&resources, sets)?;
    if resources.cpu.period != 0 && resources.cpu.quota == 0 && sets == Sets::Host {
        // The kernel accepts both values together only. A value that is not given keeps its present setting.
        resources.cpu.quota = state.cgroup.cpu_quota();
    }
    limits::check_quota(&resources.cpu, state.cgroup.cpu_quota(), state.vcpus)?;
    // As with runc, a limit may be above what the host has.
    let whole = room::memory_mib().is_some_and(|host| u64::from(state.memory_mib) >= host);
    let memory_mib = if whole { u32::MAX } else { state.memory_mib };
    let files = limits::changes(&resources, memory_mib, sets)?;
    if !files.is_empty() {
        done(connect(&directory)?.ask(&Request::Update { container, files }, &[])?)?;
    }
    if sets == Sets::Host {
        state.cgroup.change(&resources, state.memory_mib)?;
    }
    Ok(())
}

/// Refuses limits that are refused in a bundle as well.
fn refuse(resources: &Resources, sets: Sets) -> Result<()> {
    let host = resources.block_io != BlockIo::default()
        || !resources.hugepage_limits.is_empty()
        || !resources.rdma.is_empty();
    let table = [
        ("blockIO", host && sets == Sets::Guest, "the container has no cgroup on the host"),
        ("blockIO.leafWeight", resources.block_io.leaf_weight.0, "current kernels have no leaf weights"),
        ("cpu.realtimeRuntime", resources.cpu.realtime_runtime.0, "real-time CPU limits"),
        ("cpu.realtimePeriod", resources.cpu.realtime_period.0, "real-time CPU limits"),
        (
            "memory.disableOOMKiller",
            resources.memory.disable_oom_killer.0,
            "the guest's OOM killer cannot be disabled",
        ),
        ("network", resources.network.0, "packets of a machine carry no class or priority of a process"),
    ];
    match table.into_iter().find(|(_, asked, _)| *asked) {
        Some((path, _, why)) => Err(unsupported(format!("linux.resources.{path}"), why).into()),
        None => Ok(()),
    }
}

fn read(path: &Path) -> Result<Resources> {
    let from: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).with_context(|| format!("open {}", path.display()))?)
    };
    let mut text = String::new();
    from.take(RESOURCES_MAX)
        .read_to_string(&mut text)
        .with_context(|| format!("read limits {}", path.display()))?;
    oci::json::from_slice(text.as_bytes()).with_context(|| format!("parse limits {}", path.display()))
}

fn of_flags(args: &UpdateArgs) -> Result<Resources> {
    let size = |name: &str, text: &Option<String>| {
        text.as_ref()
            .map_or(Ok(0), |text| bytes(text).with_context(|| format!("{name} {text:?}: not a size")))
    };
    let mut resources = Resources::default();
    resources.memory.limit = size("--memory", &args.memory)?;
    resources.memory.swap = size("--memory-swap", &args.memory_swap)?;
    resources.memory.reservation = size("--memory-reservation", &args.memory_reservation)?;
    resources.cpu.quota = args.cpu_quota.unwrap_or(0);
    resources.cpu.period = args.cpu_period.unwrap_or(0);
    resources.cpu.burst = args.cpu_burst;
    resources.cpu.shares = args.cpu_share.unwrap_or(0);
    resources.cpu.idle = args.cpu_idle;
    resources.cpu.cpus = args.cpuset_cpus.clone().unwrap_or_default();
    resources.cpu.mems = args.cpuset_mems.clone().unwrap_or_default();
    resources.pids.limit = args.pids_limit.unwrap_or(0);
    resources.block_io.weight = args.blkio_weight.unwrap_or(0);
    Ok(resources)
}

/// Parses a size as runc does: `512`, `512m`, `512MB`, `1g`; -1 means no limit.
fn bytes(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let text = text.to_ascii_lowercase();
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    digits.parse::<i64>().ok().filter(|number| *number >= 0)?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn parsed(line: &str) -> Resources {
        of_flags(&UpdateArgs::try_parse_from(line.split(' ')).unwrap()).unwrap()
    }

    #[test]
    fn flags_are_runc_s() {
        let resources = parsed(
            "update --memory 64m --memory-swap -1 --memory-reservation 1k --cpu-quota -1 --cpu-period 5000 \
             --cpu-share 512 --cpuset-cpus 0-1 --cpuset-mems 0 --pids-limit -1 --blkio-weight 100 c",
        );
        let memory = &resources.memory;
        assert_eq!((memory.limit, memory.swap, memory.reservation), (64 << 20, -1, 1024));
        let cpu = &resources.cpu;
        assert_eq!((cpu.quota, cpu.period, cpu.shares), (-1, 5000, 512));
        assert_eq!((cpu.cpus.as_str(), cpu.mems.as_str()), ("0-1", "0"));
        assert_eq!((resources.pids.limit, resources.block_io.weight), (-1, 100));
        assert_eq!(parsed("update c"), Resources::default());
    }

    #[test]
    fn sizes_have_suffixes() {
        for (text, size) in [
            ("0", Some(0)),
            ("7", Some(7)),
            ("2K", Some(2048)),
            ("1gb", Some(1 << 30)),
            ("-1", Some(-1)),
            ("-2", None),
            ("1x", None),
            ("", None),
            ("9999999999t", None),
        ] {
            assert_eq!(bytes(text), size, "{text}");
        }
    }

    #[test]
    fn docker_s_limits_change_only_what_they_name() {
        let text = r#"{"blockIO":{"weight":0},"cpu":{"shares":0,"quota":0,"period":0,"cpus":"","mems":""},
            "memory":{"limit":50331648,"reservation":0,"swap":100663296},"pids":null}"#;
        let resources: Resources = oci::json::from_slice(text.as_bytes()).unwrap();
        refuse(&resources, Sets::Guest).unwrap();
        let files = limits::changes(&resources, 64, Sets::Host).unwrap();
        assert_eq!(files.into_iter().collect::<Vec<_>>(), [("memory.max".into(), "50331648".into())]);
    }

    #[test]
    fn limits_are_lifted_and_never_above_the_machine() {
        let resources = parsed("update --memory -1 --pids-limit -1 --cpu-quota -1 c");
        let files = limits::changes(&resources, 64, Sets::Guest).unwrap();
        let lifted = [("cpu.max", "max 100000"), ("memory.max", "max"), ("pids.max", "max")];
        assert_eq!(files.into_iter().collect::<Vec<_>>(), lifted.map(|(file, to)| (file.into(), to.into())));
        let error = limits::changes(&parsed("update --memory 65m c"), 64, Sets::Guest).unwrap_err();
        let expected = "config.json linux.resources.memory.limit: not supported: 68157440 bytes are more than the 64 MiB of the \
                        container's virtual machine";
        assert_eq!(error.to_string(), expected);
        assert!(limits::changes(&parsed("update --cpu-period 9 c"), 64, Sets::Guest).is_err());
        let error = refuse(&parsed("update --blkio-weight 10 c"), Sets::Guest).unwrap_err();
        assert!(error.to_string().contains("linux.resources.blockIO: not supported"));
    }
}
