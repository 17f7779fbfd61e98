//! `vmm check`: tests whether KVM on this host can run a guest, and names what is missing.

use std::fs::File;
use std::io::{self, Write};

use anyhow::Result;
use host::confine::cores::Cores;
use host::confine::{has_filters, has_landlock};

/// Forwards packets faster than this program. Optional for a guest's network.
const VHOST_NET: &str = "/dev/vhost-net";

/// Prints the findings. Returns whether guests can run.
pub fn check(mut out: impl Write) -> Result<bool> {
    let findings = vmm::check::probe();
    for finding in &findings {
        let mark = if finding.ok { "ok  " } else { "FAIL" };
        writeln!(out, "{mark}  {}: {}", finding.what, finding.detail)?;
    }
    let (mark, detail) = vhost_net(File::options().read(true).write(true).open(VHOST_NET).map(drop));
    writeln!(out, "{mark}  {VHOST_NET}: {detail}")?;
    for (what, (mark, detail)) in confinement() {
        writeln!(out, "{mark}  {what}: {detail}")?;
    }
    let ok = findings.iter().all(|finding| finding.ok);
    writeln!(out, "{}", if ok { "this machine can run guests" } else { "this machine cannot run guests" })?;
    Ok(ok)
}

/// Returns a mark and a description for the result of opening vhost-net.
fn vhost_net(opened: io::Result<()>) -> (&'static str, String) {
    const INSTEAD: &str = "vmm forwards packets itself, which is slower";
    match opened {
        Ok(()) => ("ok  ", "available".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            ("--  ", format!("not available (modprobe vhost_net): {INSTEAD}"))
        }
        Err(error) => ("--  ", format!("{error}: {INSTEAD}")),
    }
}

/// Returns the layers of the confinement, with a mark and a description. A machine runs without those that the host does
/// not have.
fn confinement() -> [(&'static str, (&'static str, &'static str)); 3] {
    let layer = |present, missing| if present { ("ok  ", "available") } else { ("--  ", missing) };
    let cores = match Cores::of_host() {
        Cores::Scheduled => ("ok  ", "available"),
        Cores::Single => ("ok  ", "not needed: this host has no SMT"),
        Cores::Unscheduled => {
            ("--  ", "not available (CONFIG_SCHED_CORE, Linux 5.14): other tasks can share a machine's cores")
        }
    };
    [
        ("seccomp filters", layer(has_filters(), "not available: threads can make any system call")),
        ("Landlock", layer(has_landlock(), "not available: the main thread can reach all files of its user")),
        ("core scheduling", cores),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_vhost_net_gets_advice() {
        assert_eq!(vhost_net(Ok(())).0, "ok  ");
        let (mark, detail) = vhost_net(Err(io::ErrorKind::NotFound.into()));
        assert_eq!(mark, "--  ");
        assert!(detail.starts_with("not available (modprobe vhost_net)"), "{detail}");
        assert!(!vhost_net(Err(io::ErrorKind::PermissionDenied.into())).1.contains("modprobe"));
    }
}
