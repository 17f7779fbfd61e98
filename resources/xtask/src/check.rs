//! `cargo xtask check`: format, lints, the fuzz targets, dependencies between crates and files, licenses, file sizes and
//! links in documents.

mod circles;
mod dependencies;
mod license;
mod links;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::checkout::{target_dir, top};
use crate::steps::{cargo, output, run, say};

/// Maximum number of lines of a source file above its tests. clippy checks the length of functions (clippy.toml).
const FILE_LINES_MAX: usize = 500;

/// Permitted dependencies between the crates of the workspace. `tests` and `xtask` are not part of the product.
const EDGES: [(&str, &[&str]); 13] = [
    ("devices", &[]),
    ("vmm", &["devices"]),
    ("agent-proto", &[]),
    ("netlink", &[]),
    ("agent", &["agent-proto", "netlink"]),
    ("oci", &[]),
    ("bpf", &[]),
    ("plan", &["oci", "agent-proto", "bpf"]),
    ("host", &["oci", "netlink", "bpf"]),
    ("link", &["agent-proto", "devices", "host"]),
    ("runtime", &["vmm", "agent-proto", "oci", "plan", "host", "link"]),
    ("tests", &["vmm", "runtime", "agent-proto"]),
    ("xtask", &[]),
];

/// Prefixes of crates on which a crate must not depend directly.
const FORBIDDEN: [(&str, &[&str]); 10] = [
    ("devices", &["kvm-", "linux-loader", "oci-spec", "clap"]),
    ("vmm", &["oci-spec", "clap", "serde_json"]),
    ("agent-proto", &["libc", "rustix", "nix", "tokio"]),
    // No crates at all: every name starts with the empty prefix.
    ("netlink", &[""]),
    ("agent", &["libc", "tokio", "async-std", "smol"]),
    ("oci", &["kvm-", "virtio-queue", "clap", "anyhow"]),
    ("plan", &["kvm-", "virtio-queue", "clap", "anyhow", "log"]),
    ("host", &["kvm-", "virtio-queue", "clap", "anyhow"]),
    ("link", &["kvm-", "virtio-queue", "clap", "anyhow"]),
    ("runtime", &["kvm-", "virtio-queue", "linux-loader", "tokio"]),
];

/// The only files that may contain unsafe code.
const UNSAFE_FILES: [&str; 27] = [
    "agent/src/bin/init.rs",
    "agent/src/memory.rs",
    "agent/src/sys.rs",
    "agent/src/sys/carrier.rs",
    "agent/src/sys/random.rs",
    "devices/src/share/credentials.rs",
    "devices/src/share/sys.rs",
    "devices/src/share/sys/lock.rs",
    "devices/src/share/sys/socket.rs",
    "devices/src/virtio/net/tap.rs",
    "runtime/host/src/sys.rs",
    "runtime/host/src/sys/bpf.rs",
    "runtime/host/src/sys/clock.rs",
    "runtime/host/src/sys/confinement.rs",
    "runtime/host/src/sys/inherited.rs",
    "runtime/host/src/sys/socket.rs",
    "tests/guest/attempts.rs",
    "tests/guest/locks.rs",
    "tests/guest/main.rs",
    "tests/guest/surface.rs",
    "tests/vm/confinement/tracer.rs",
    "vmm/src/deferral.rs",
    "vmm/src/kvm.rs",
    "vmm/src/memory.rs",
    "vmm/src/signal.rs",
    "vmm/src/snapshot/plain.rs",
    "vmm/src/snapshot/vcpu.rs",
];

/// Runs all checks. Formatting and clippy end the task at once; violations of the other rules are listed together.
pub fn check() -> anyhow::Result<()> {
    say("format, lints, fuzz targets, borders, circles, licenses, sizes, links");
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    // cargo builds these crates only when they are named.
    let tests = ["--package", "tests", "--test", "vm", "--test", "engines", "--test", "dist"];
    run(cargo().args(["clippy", "--quiet"]).args(tests).args(["--", "-D", "warnings"]))?;
    check_fuzz_targets()?;
    let mut violations = border_violations(&metadata()?)?;
    violations.extend(dependencies::violations()?);
    let sources = files(&top(), ".rs")?;
    violations.extend(circles::violations(&top(), &sources)?);
    for path in &sources {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let name = path.strip_prefix(top()).unwrap_or(path).to_owned();
        violations.extend(file_violations(&name, &text));
    }
    violations.extend(links::violations(&top(), &files(&top(), ".md")?)?);
    if !violations.is_empty() {
        bail!("{} violations:\n{}", violations.len(), violations.join("\n"));
    }
    Ok(())
}

/// Compiles the fuzz targets, which are a workspace of their own, without the instrumentation and without libFuzzer. Its
/// Cargo.lock names the versions of the other, so that dependencies are compiled once for both.
fn check_fuzz_targets() -> anyhow::Result<()> {
    let manifest = ["--manifest-path", "tests/fuzz/Cargo.toml"];
    run(cargo().arg("fmt").args(manifest).arg("--check"))?;
    run(cargo()
        .args(["clippy", "--quiet", "--no-default-features"])
        .args(manifest)
        .args(["--", "-D", "warnings"])
        .env("CARGO_TARGET_DIR", target_dir()))
}

fn metadata() -> anyhow::Result<Value> {
    let text = output(cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    serde_json::from_str(&text).context("parse cargo's metadata")
}

/// Lists all forbidden dependencies. Development dependencies are exempt.
fn border_violations(metadata: &Value) -> anyhow::Result<Vec<String>> {
    let packages = metadata["packages"].as_array().context("no packages in cargo's metadata")?;
    let ours: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let mut violations = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = EDGES.iter().find(|(from, _)| *from == name) else {
            violations.push(format!("{name}: crate without an entry in EDGES"));
            continue;
        };
        let forbidden = FORBIDDEN.iter().find(|(from, _)| *from == name).map_or(&[][..], |(_, to)| to);
        let used = package["dependencies"].as_array().into_iter().flatten().filter(|d| d["kind"].is_null());
        for to in used.filter_map(|d| d["name"].as_str()) {
            let is_undeclared = ours.contains(to) && !allowed.contains(&to);
            if is_undeclared || forbidden.iter().any(|f| to.starts_with(f)) {
                violations.push(format!("{name} -> {to}: forbidden dependency"));
            }
        }
    }
    Ok(violations)
}

/// Lists the violations of a source file: too many lines, and unsafe code without permission or reason.
fn file_violations(name: &Path, text: &str) -> Vec<String> {
    let mut violations = Vec::new();
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
    if lines > FILE_LINES_MAX && !name.ends_with("tests.rs") {
        violations.push(format!("{}: {lines} lines: limit of {FILE_LINES_MAX}", name.display()));
    }
    let allows_unsafe = text.lines().any(|l| l.trim_start().starts_with("#![allow(unsafe_code)]"));
    if allows_unsafe && !UNSAFE_FILES.iter().any(|f| Path::new(f) == name) {
        violations.push(format!("{}: unsafe code in a file that UNSAFE_FILES does not name", name.display()));
    }
    if allows_unsafe && !text.contains("// UNSAFETY: ") {
        violations.push(format!("{}: unsafe code without an UNSAFETY comment", name.display()));
    }
    let allows_in_item = text.lines().any(|l| l.trim_start().starts_with("#[allow(unsafe_code)]"));
    if allows_in_item {
        violations
            .push(format!("{}: unsafe code allowed for a single item instead of the file", name.display()));
    }
    violations
}

/// Returns all files below `dir` whose names end with `suffix`, except in `target` and hidden folders.
fn files(dir: &Path, suffix: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(suffix) {
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
    fn a_forbidden_dependency_is_a_violation() {
        for (from, to) in [
            ("devices", "kvm-ioctls"),
            ("vmm", "runtime"),
            ("agent", "libc"),
            ("netlink", "serde"),
            ("stray", "serde"),
        ] {
            assert_eq!(border_violations(&package(from, to)).unwrap().len(), 1, "{from} -> {to}");
        }
        assert!(border_violations(&package("vmm", "kvm-ioctls")).unwrap().is_empty());
    }

    #[test]
    fn a_file_is_too_long_only_if_the_lines_above_its_tests_are_too_many() {
        let long = "//\n".repeat(FILE_LINES_MAX + 1);
        assert_eq!(file_violations(Path::new("vmm/src/a.rs"), &long).len(), 1);
        let tested = format!("//\n#[cfg(test)]\n{long}");
        assert!(file_violations(Path::new("vmm/src/a.rs"), &tested).is_empty());
    }

    #[test]
    fn unsafe_code_needs_a_named_file_and_a_reason() {
        let open = "#![allow(unsafe_code)]\n";
        assert_eq!(file_violations(Path::new("vmm/src/a.rs"), open).len(), 2);
        let explained = format!("// UNSAFETY: ioctls\n{open}");
        assert!(file_violations(Path::new("vmm/src/kvm.rs"), &explained).is_empty());
    }
}
