//! Prints the findings about this host's KVM.

fn main() -> std::process::ExitCode {
    let findings = vmm::check::probe();
    for finding in &findings {
        println!("{} {}: {}", if finding.ok { "ok " } else { "NO " }, finding.what, finding.detail);
    }
    if findings.iter().all(|finding| finding.ok) { 0.into() } else { 1.into() }
}
