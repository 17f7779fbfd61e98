//! `cargo xtask check`: format, lints, dependencies between crates, licenses, file sizes and documents' links.

mod dependencies;
mod license;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::steps::{cargo, output, run, say, top};

mod links;

/// Maximum number of lines of a source file above its tests. clippy checks the length of functions (clippy.toml).
const FILE_LINES_MAX: usize = 500;

/// Permitted dependencies between the crates of the workspace. `tests` and `xtask` are not part of the product.
const EDGES: [(&str, &[&str]); 12] = [
    ("devices", &[]),
    ("vmm", &["devices"]),
    ("agent-proto", &[]),
    ("netlink", &[]),
    ("agent", &["agent-proto", "netlink"]),
    ("oci", &[]),
    ("plan", &["oci", "agent-proto"]),
    ("host", &["oci", "netlink"]),
    ("link", &["agent-proto", "devices", "host"]),
    ("runtime", &["vmm", "agent-proto", "oci", "plan", "host", "link"]),
    ("tests", &["vmm", "runtime", "agent-proto"]),
    ("xtask", &[]),
];

/// Prefixes of crates that a crate must never use directly.
const FORBIDDEN: [(&str, &[&str]); 10] = [
    ("devices", &["kvm-", "linux-loader", "oci-spec", "clap"]),
    ("vmm", &["oci-spec", "clap", "serde_json"]),
    ("agent-proto", &["libc", "rustix", "nix", "tokio"]),
    // All crates: every name starts with the empty prefix.
    ("netlink", &[""]),
    ("agent", &["libc", "tokio", "async-std", "smol"]),
    ("oci", &["kvm-", "virtio-queue", "clap", "anyhow"]),
    ("plan", &["kvm-", "virtio-queue", "clap", "anyhow", "log"]),
    ("host", &["kvm-", "virtio-queue", "clap", "anyhow"]),
    ("link", &["kvm-", "virtio-queue", "clap", "anyhow"]),
    ("runtime", &["kvm-", "virtio-queue", "linux-loader", "tokio"]),
];

/// The only files that may contain unsafe code.
const UNSAFE_FILES: [&str; 14] = [
    "agent/src/bin/init.rs",
    "agent/src/memory.rs",
    "agent/src/sys.rs",
    "devices/src/share/credentials.rs",
    "devices/src/share/sys.rs",
    "devices/src/virtio/net/tap.rs",
    "runtime/host/src/sys.rs",
    "runtime/host/src/sys/clock.rs",
    "runtime/host/src/sys/inherited.rs",
    "runtime/host/src/sys/socket.rs",
    "tests/guest/main.rs",
    "vmm/src/kvm.rs",
    "vmm/src/memory.rs",
    "vmm/src/signal.rs",
];

/// Runs all checks. Fails at the first kind of check that finds a fault.
pub fn check() -> anyhow::Result<()> {
    say("format, lints, borders, licenses, sizes, links");
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    // cargo builds these crates only when they are named.
    let tests = ["--package", "tests", "--test", "vm", "--test", "engines", "--test", "dist"];
    run(cargo().args(["clippy", "--quiet"]).args(tests).args(["--", "-D", "warnings"]))?;
    let mut faults = border_faults(&metadata()?)?;
    faults.extend(dependencies::faults()?);
    for path in files(&top(), ".rs")? {
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let name = path.strip_prefix(top()).unwrap_or(&path).to_owned();
        faults.extend(file_faults(&name, &text));
    }
    faults.extend(links::faults(&top(), &files(&top(), ".md")?)?);
    if !faults.is_empty() {
        bail!("{} faults:\n{}", faults.len(), faults.join("\n"));
    }
    Ok(())
}

fn metadata() -> anyhow::Result<Value> {
    let text = output(cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    serde_json::from_str(&text).context("parse cargo's metadata")
}

/// Lists all forbidden dependencies. Development dependencies are exempt: tests may use more than the product.
fn border_faults(metadata: &Value) -> anyhow::Result<Vec<String>> {
    let packages = metadata["packages"].as_array().context("cargo's metadata has no packages")?;
    let ours: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let mut faults = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = EDGES.iter().find(|(from, _)| *from == name) else {
            faults.push(format!("{name}: a crate that the design does not name"));
            continue;
        };
        let forbidden = FORBIDDEN.iter().find(|(from, _)| *from == name).map_or(&[][..], |(_, to)| to);
        let used = package["dependencies"].as_array().into_iter().flatten().filter(|d| d["kind"].is_null());
        for to in used.filter_map(|d| d["name"].as_str()) {
            let crosses = ours.contains(to) && !allowed.contains(&to);
            if crosses || forbidden.iter().any(|f| to.starts_with(f)) {
                faults.push(format!("{name} -> {to}: an edge that the design forbids"));
            }
        }
    }
    Ok(faults)
}

/// Lists the faults of one source file: its length, and unsafe code in a file that may not contain any.
fn file_faults(name: &Path, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
    if lines > FILE_LINES_MAX && !name.ends_with("tests.rs") {
        faults.push(format!("{}: {lines} lines, more than {FILE_LINES_MAX}", name.display()));
    }
    let opens = text.lines().any(|l| l.trim_start().starts_with("#![allow(unsafe_code)]"));
    if opens && !UNSAFE_FILES.iter().any(|f| Path::new(f) == name) {
        faults.push(format!("{}: unsafe code in a file not named for it", name.display()));
    }
    if opens && !text.contains("// UNSAFETY: ") {
        faults.push(format!("{}: unsafe code without an UNSAFETY line", name.display()));
    }
    let single = text.lines().any(|l| l.trim_start().starts_with("#[allow(unsafe_code)]"));
    if single {
        faults.push(format!("{}: unsafe code opened for less than a named file", name.display()));
    }
    faults
}

/// Returns all files below `dir` whose name ends with `ending`, without cargo's output.
fn files(dir: &Path, ending: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn package(name: &str, dependency: &str) -> Value {
        json!({"packages": [
            {"name": name, "dependencies": [{"name": dependency, "kind": null}]},
            {"name": "runtime", "dependencies": []},
        ]})
    }

    #[test]
    fn a_forbidden_edge_is_a_fault() {
        for (from, to) in [
            ("devices", "kvm-ioctls"),
            ("vmm", "runtime"),
            ("agent", "libc"),
            ("netlink", "serde"),
            ("stray", "serde"),
        ] {
            assert_eq!(border_faults(&package(from, to)).unwrap().len(), 1, "{from} -> {to}");
        }
        assert!(border_faults(&package("vmm", "kvm-ioctls")).unwrap().is_empty());
    }

    #[test]
    fn a_long_file_is_a_fault_unless_its_tests_make_it_long() {
        let long = "//\n".repeat(FILE_LINES_MAX + 1);
        assert_eq!(file_faults(Path::new("vmm/src/a.rs"), &long).len(), 1);
        let tested = format!("//\n#[cfg(test)]\n{long}");
        assert!(file_faults(Path::new("vmm/src/a.rs"), &tested).is_empty());
    }

    #[test]
    fn unsafe_code_needs_a_named_file_and_a_reason() {
        let open = "#![allow(unsafe_code)]\n";
        assert_eq!(file_faults(Path::new("vmm/src/a.rs"), open).len(), 2);
        let told = format!("// UNSAFETY: ioctls\n{open}");
        assert!(file_faults(Path::new("vmm/src/kvm.rs"), &told).is_empty());
    }
}
