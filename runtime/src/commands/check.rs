//! `vmm check`: tests whether KVM on this host can run a guest, and names what is missing.

use std::fs::File;
use std::io::{self, Write};

use anyhow::Result;

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
