//! `vmm check`: can this machine's KVM run a guest, and if not what is missing.

use std::fs::File;
use std::io::{self, Write};

use anyhow::Result;

/// What passes packets on faster than our own process; guests have their networks without it.
const VHOST_NET: &str = "/dev/vhost-net";

/// Prints what was found; returns whether all is well.
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

/// Whether it can be used, as a mark and in words.
fn vhost_net(opened: io::Result<()>) -> (&'static str, String) {
    const INSTEAD: &str = "vmm's own process passes packets on, which is slower";
    match opened {
        Ok(()) => ("ok  ", "there".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            ("--  ", format!("not there (modprobe vhost_net): {INSTEAD}"))
        }
        Err(error) => ("--  ", format!("{error}: {INSTEAD}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_vhost_net_is_told_how_to_have_it() {
        assert_eq!(vhost_net(Ok(())).0, "ok  ");
        let (mark, detail) = vhost_net(Err(io::ErrorKind::NotFound.into()));
        assert_eq!(mark, "--  ");
        assert!(detail.starts_with("not there (modprobe vhost_net)"), "{detail}");
        assert!(!vhost_net(Err(io::ErrorKind::PermissionDenied.into())).1.contains("modprobe"));
    }
}
