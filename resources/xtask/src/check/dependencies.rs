//! Checks the workspace's dependencies against `deny.toml`: licenses, forbidden crates, duplicate versions and sources.
//!
//! This covers the part of cargo-deny that needs no network, without building cargo-deny, which takes minutes.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Context;
use serde::Deserialize;

use super::license::Expression;
use crate::checkout::top;
use crate::packages::{Package, Packages};

/// cargo's name of the only permitted registry.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The checked part of `deny.toml`.
#[derive(Deserialize)]
struct Rules {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Entry>,
    skip: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    /// A name, or `name@` and a version prefix.
    #[serde(rename = "crate")]
    package: String,
}

impl Entry {
    fn is_of(&self, package: &Package) -> bool {
        match self.package.split_once('@') {
            None => self.package == package.name,
            Some((name, version)) => {
                let rest = package.version.strip_prefix(version);
                name == package.name && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            }
        }
    }
}

/// Lists all packages that violate a rule.
pub fn faults() -> anyhow::Result<Vec<String>> {
    let path = top().join("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let rules = toml::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
    Ok(faults_of(&rules, Packages::load()?.all()))
}

fn faults_of(rules: &Rules, packages: &[Package]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&Package>> = BTreeMap::new();
    for package in packages {
        let mut add = |what: String| faults.push(format!("{} {}: {what}", package.name, package.version));
        if package.source.as_deref().is_some_and(|source| source != CRATES_IO) {
            add("comes from another source than crates.io".to_owned());
        }
        match package.license.as_deref().map(Expression::parse) {
            None => add("names no license".to_owned()),
            Some(Err(error)) => add(format!("license {:?}: {error}", package.license)),
            Some(Ok(expression)) if !expression.holds(&rules.licenses.allow) => {
                add(format!(
                    "license {} is not in deny.toml",
                    package.license.as_deref().unwrap_or_default()
                ));
            }
            Some(Ok(_)) => {}
        }
        if rules.bans.deny.iter().any(|entry| entry.is_of(package)) {
            add("is forbidden by deny.toml".to_owned());
        }
        if !rules.bans.skip.iter().any(|entry| entry.is_of(package)) {
            versions.entry(&package.name).or_default().push(package);
        }
    }
    for (name, several) in versions.into_iter().filter(|(_, several)| several.len() > 1) {
        let list: Vec<&str> = several.iter().map(|package| package.version.as_str()).collect();
        faults.push(format!("{name}: versions {} side by side", list.join(", ")));
    }
    for entry in &rules.bans.skip {
        if !packages.iter().any(|package| entry.is_of(package)) {
            faults.push(format!("deny.toml skips {}, which is not there", entry.package));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = "licenses.allow = ['MIT', 'Apache-2.0']\n\
                         [bans]\ndeny = [{ crate = 'tokio' }]\nskip = [{ crate = 'syn@1' }]\n";

    fn package(name: &str, version: &str, license: &str) -> Package {
        serde_json::from_value(serde_json::json!({
            "id": format!("{name}@{version}"),
            "name": name,
            "version": version,
            "license": license,
            "source": CRATES_IO,
            "manifest_path": "/Cargo.toml",
        }))
        .unwrap()
    }

    /// Returns the faults of these packages together with an old `syn`, for which the rules have an exception.
    fn check(packages: Vec<Package>) -> Vec<String> {
        let mut all = vec![package("syn", "1.0.109", "MIT")];
        all.extend(packages);
        faults_of(&toml::from_str(RULES).unwrap(), &all)
    }

    #[test]
    fn packages_that_keep_the_rules_are_no_faults() {
        assert!(
            check(vec![package("syn", "2.0.1", "MIT OR GPL-3.0"), package("a", "1.0.0", "MIT/Apache-2.0")])
                .is_empty()
        );
    }

    #[test]
    fn each_broken_rule_is_a_fault_that_names_the_package() {
        let nowhere = Package { license: None, ..package("a", "1.0.0", "MIT") };
        let git =
            Package { source: Some("git+https://example.org/a".to_owned()), ..package("a", "1.0.0", "MIT") };
        for (packages, wanted) in [
            (vec![package("a", "1.0.0", "GPL-3.0")], "a 1.0.0: license GPL-3.0 is not in deny.toml"),
            (vec![package("a", "1.0.0", "MIT AND")], "a 1.0.0: license"),
            (vec![nowhere], "a 1.0.0: names no license"),
            (vec![git], "a 1.0.0: comes from another source than crates.io"),
            (vec![package("tokio", "1.0.0", "MIT")], "tokio 1.0.0: is forbidden"),
            (
                vec![package("a", "1.0.0", "MIT"), package("a", "2.0.0", "MIT")],
                "a: versions 1.0.0, 2.0.0 side by side",
            ),
            (
                vec![package("syn", "10.0.0", "MIT"), package("syn", "11.0.0", "MIT")],
                "syn: versions 10.0.0, 11.0.0",
            ),
        ] {
            let faults = check(packages);
            assert!(faults.len() == 1 && faults[0].starts_with(wanted), "{wanted}: {faults:?}");
        }
    }

    #[test]
    fn an_exception_that_is_no_longer_needed_is_a_fault() {
        let faults = faults_of(&toml::from_str(RULES).unwrap(), &[package("a", "1.0.0", "MIT")]);
        assert_eq!(faults, ["deny.toml skips syn@1, which is not there"]);
    }
}
