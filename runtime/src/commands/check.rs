//! `vmm check`: tests whether KVM on this host can run a guest, and names what is missing.

use std::fs::File;
use std::io::{self, Write};

use anyhow::Result;
use host::confine::cores::Cores;
use host::confine::{has_filters, has_landlock};

use crate::cli::RunArgs;
use crate::config::RunConfig;
use crate::template::{Making, Use};

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
    let config = RunConfig::resolve(RunArgs::default(), |name| std::env::var_os(name))?;
    for (what, (mark, detail)) in templates(&config) {
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

/// Returns what is to be said of templates, each with a mark and a description. A machine without one boots.
fn templates(config: &RunConfig) -> Vec<(&'static str, (&'static str, String))> {
    const MISSING: &str = "--  ";
    let store = &config.templates;
    let path = store.path().display();
    let mut said = Vec::new();
    match store.place() {
        Err(error) => {
            let why = format!("{:#}", anyhow::Error::from(error));
            said.push(("templates", (MISSING, format!("none can be made: {why}"))));
        }
        Ok(place) => {
            let names = store.names().unwrap_or_default();
            let sizes = names.iter().filter_map(|name| store.measure(name));
            let used = sizes.map(|(size, _)| size).sum::<u64>() >> 20;
            let count = names.len();
            let detail = format!("{path}, {count} with {used} MiB of {} MiB", store.limit() >> 20);
            said.push(("templates", ("ok  ", detail)));
            said.push(("large pages of templates", large_pages(place.try_large_page())));
        }
    }
    let (mark, when) = match (config.template, config.making) {
        (Use::Off, _) => (MISSING, "not used: template is \"off\""),
        (Use::Require, _) | (_, Making::Never) => (MISSING, "made only by vmm template create"),
        (Use::Auto, Making::Idle) => ("ok  ", "made for machines that boot, once the host is idle"),
        (Use::Auto, Making::Always) => ("ok  ", "made for machines that boot, at once"),
    };
    said.push(("new templates", (mark, when.to_owned())));
    let failures = store.failures().into_iter().map(|why| (MISSING, format!("failed lately: {why}")));
    said.extend(failures.map(|failure| ("new templates", failure)));
    said
}

/// Returns a mark and a description for the attempt to make a large page of the store's file system.
fn large_pages(tried: io::Result<()>) -> (&'static str, String) {
    match tried {
        Ok(()) => ("ok  ", "available".to_owned()),
        Err(error) => {
            let why = "each machine copies the kernel's code (better: a directory in memory, Linux 6.1)";
            ("--  ", format!("not available ({error}): {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use plan::VmSettings;

    use super::*;
    use crate::template::Store;

    #[test]
    fn templates_are_said_to_work_or_why_not() {
        let folder = tempfile::tempdir().unwrap();
        let said = |path: &str, change: fn(&mut RunConfig)| {
            let store = Store::new(Some(folder.path().join(path)), 8 << 20, |_| None);
            let mut config = RunConfig::blank(VmSettings::default(), store, std::time::Duration::ZERO);
            change(&mut config);
            let line = |(what, (mark, detail)): (&str, (&str, String))| format!("{mark}{what}: {detail}\n");
            templates(&config).into_iter().map(line).collect::<String>()
        };
        let new = said("a/b", |_| {});
        assert!(new.contains("ok  templates: ") && new.contains("/a/b, 0 with 0 MiB of 8 MiB\n"), "{new}");
        assert!(new.contains("new templates: made for machines that boot, once the host is idle\n"), "{new}");
        assert!(!folder.path().join("a").exists());
        let never = said("a", |config| config.making = Making::Never);
        assert!(never.contains("--  new templates: made only by vmm template create\n"), "{never}");
        let off = said("a", |config| config.template = Use::Off);
        assert!(off.contains("--  new templates: not used"), "{off}");
        std::fs::write(folder.path().join("file"), "").unwrap();
        let none = said("file/x", |_| {});
        assert!(none.contains("--  templates: none can be made: ") && none.contains("file"), "{none}");
    }

    #[test]
    fn a_host_without_vhost_net_gets_advice() {
        assert_eq!(vhost_net(Ok(())).0, "ok  ");
        let (mark, detail) = vhost_net(Err(io::ErrorKind::NotFound.into()));
        assert_eq!(mark, "--  ");
        assert!(detail.starts_with("not available (modprobe vhost_net)"), "{detail}");
        assert!(!vhost_net(Err(io::ErrorKind::PermissionDenied.into())).1.contains("modprobe"));
    }
}
