//! The guest's initramfs: the agent as `/init`, and its mount points.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};

use crate::checkout::target_dir;
use crate::newc;
use crate::steps::{cargo, run, say};

/// Maximum size of the agent in bytes. Each byte takes guest memory twice: in the archive and unpacked.
const AGENT_BYTES_MAX: usize = 336 << 10;
/// Mount points of the agent, parents first.
const FOLDERS: [&str; 7] = ["dev", "proc", "sys", "run", "run/share", "run/root", "run/cgroup"];

/// Builds the agent and returns the path of the archive. An unchanged archive is not written, so that `vmm` is not
/// built again.
pub fn initramfs() -> anyhow::Result<PathBuf> {
    say("building the agent");
    // A build of the whole workspace would enable features of the agent's dependencies that only the host needs.
    let words = ["build", "--package", "agent", "--bin", "init", "--features", "init", "--profile", "agent"];
    run(cargo().args(words))?;
    let path = target_dir().join("agent/init");
    let agent = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    ensure!(
        agent.len() <= AGENT_BYTES_MAX,
        "{} has {} bytes: limit of {AGENT_BYTES_MAX}",
        path.display(),
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

/// Returns an archive with `agent`. The kernel opens `/dev/console` for init's standard streams, and warns if it is
/// missing.
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
