//! `vmm check`: can this machine's KVM run a guest, and if not what is missing.

use std::io::Write;

use anyhow::Result;

/// Prints what was found; returns whether all is well.
pub fn check(mut out: impl Write) -> Result<bool> {
    let findings = vmm::check::probe();
    for finding in &findings {
        let mark = if finding.ok { "ok  " } else { "FAIL" };
        writeln!(out, "{mark}  {}: {}", finding.what, finding.detail)?;
    }
    let ok = findings.iter().all(|finding| finding.ok);
    writeln!(out, "{}", if ok { "this machine can run guests" } else { "this machine cannot run guests" })?;
    Ok(ok)
}
