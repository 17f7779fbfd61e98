//! The guest's initramfs: the agent as `/init` and the folders that it mounts on, nothing else.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};

use crate::checkout::target_dir;
use crate::newc;
use crate::steps::{cargo, run, say};

/// The most that the agent may weigh: every byte is guest memory twice, in the archive and unpacked.
const AGENT_BYTES_MAX: usize = 300 << 10;
/// What the agent mounts on, parents first.
const FOLDERS: [&str; 7] = ["dev", "proc", "sys", "run", "run/share", "run/root", "run/cgroup"];

/// Builds the agent and packs it; returns the archive, which changes only when the agent does.
pub fn initramfs() -> anyhow::Result<PathBuf> {
    say("building the agent");
    // By itself: with the workspace, its dependencies would be built with the features that the host's side needs.
    run(cargo().args([
        "build",
        "--package",
        "agent",
        "--bin",
        "init",
        "--features",
        "init",
        "--profile",
        "agent",
    ]))?;
    let path = target_dir().join("agent/init");
    let agent = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    ensure!(
        agent.len() <= AGENT_BYTES_MAX,
        "the agent has {} bytes, more than {AGENT_BYTES_MAX}",
        agent.len()
    );
    let archive = archive(&agent);
    let path = target_dir().join("initramfs.cpio");
    if fs::read(&path).is_ok_and(|old| old == archive) {
        return Ok(path);
    }
    fs::write(&path, archive).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// The archive. The kernel opens `/dev/console` for init's standard streams and complains where it is missing.
fn archive(agent: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for folder in FOLDERS {
        newc::append(&mut archive, folder, 0o040_755, &[]);
    }
    newc::append_node(&mut archive, "dev/console", 0o020_600, (5, 1));
    newc::append(&mut archive, "init", 0o100_755, agent);
    newc::finish(&mut archive);
    archive
}
