//! Licenses and notices of the libraries in the program.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::packages::{Package, Packages};

/// Packages of the program: the runtime, and the agent that it contains.
const MEMBERS: [&str; 2] = ["runtime", "agent"];
/// Prefixes of the names of files with a license, a notice or copyright holders, in lower case.
const PREFIXES: [&str; 5] = ["license", "licence", "copying", "copyright", "notice"];

/// Returns a list of the libraries, then each license text once, below the names of its libraries.
pub fn notices() -> anyhow::Result<String> {
    let packages = Packages::load()?;
    let linked = packages.linked_into(&MEMBERS);
    let mut texts: BTreeMap<String, Vec<&Package>> = BTreeMap::new();
    for package in &linked {
        for file in files(package)? {
            let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            let text = text.replace("\r\n", "\n").trim_matches('\n').to_owned();
            texts.entry(text).or_default().push(package);
        }
    }
    Ok(render(&linked, &texts))
}

fn render(linked: &[&Package], texts: &BTreeMap<String, Vec<&Package>>) -> String {
    let mut all = String::from("Libraries in the program vmm, with their licenses as SPDX expressions:\n\n");
    for package in linked {
        let license = package.license.as_deref().unwrap_or("see the text below");
        let authors = match &package.authors[..] {
            [] => String::new(),
            authors => format!("; {}", authors.join(", ")),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(all, "  {} {}: {license}{authors}", package.name, package.version);
    }
    for (text, packages) in texts {
        let mut names: Vec<String> = packages.iter().map(|p| format!("{} {}", p.name, p.version)).collect();
        names.dedup();
        let _ = write!(all, "\n{}\n{}:\n\n{text}\n", "-".repeat(78), names.join(", "));
    }
    all
}

/// Returns the files of a package with licenses and notices, sorted by name.
fn files(package: &Package) -> anyhow::Result<Vec<PathBuf>> {
    let folder = package.manifest_path.parent().unwrap_or(Path::new("."));
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
            path.is_file() && PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        })
        .collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_their_licenses_are_listed() {
        let notices = notices().unwrap();
        for expected in ["  serde 1.", "  kvm-ioctls ", "Permission is hereby granted", "Apache License"] {
            assert!(notices.contains(expected), "{expected:?}");
        }
        assert!(!notices.contains("  proptest "));
    }
}
