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
pub fn violations() -> anyhow::Result<Vec<String>> {
    let path = top().join("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let rules = toml::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
    Ok(violations_of(&rules, Packages::load()?.all()))
}

fn violations_of(rules: &Rules, packages: &[Package]) -> Vec<String> {
    let mut violations = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&Package>> = BTreeMap::new();
    for package in packages {
        let mut add = |what: String| violations.push(format!("{} {}: {what}", package.name, package.version));
        if package.source.as_deref().is_some_and(|source| source != CRATES_IO) {
            add("source is not crates.io".to_owned());
        }
        match package.license.as_deref().map(|license| (license, Expression::parse(license))) {
            None => add("no license".to_owned()),
            Some((license, Err(error))) => add(format!("parse license {license:?}: {error}")),
            Some((license, Ok(expression))) if !expression.holds(&rules.licenses.allow) => {
                add(format!("license {license} is not in deny.toml"));
            }
            Some((_, Ok(_))) => {}
        }
        if rules.bans.deny.iter().any(|entry| entry.is_of(package)) {
            add("forbidden by deny.toml".to_owned());
        }
        if !rules.bans.skip.iter().any(|entry| entry.is_of(package)) {
            versions.entry(&package.name).or_default().push(package);
        }
    }
    for (name, several) in versions.into_iter().filter(|(_, several)| several.len() > 1) {
        let list: Vec<&str> = several.iter().map(|package| package.version.as_str()).collect();
        violations.push(format!("{name}: several versions, {}", list.join(", ")));
    }
    for entry in &rules.bans.skip {
        if !packages.iter().any(|package| entry.is_of(package)) {
            violations.push(format!("deny.toml skips {}, which is not a dependency", entry.package));
        }
    }
    violations
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

    /// Returns the violations of these packages together with an old `syn`, for which the rules have an exception.
    fn check(packages: Vec<Package>) -> Vec<String> {
        let mut all = vec![package("syn", "1.0.109", "MIT")];
        all.extend(packages);
        violations_of(&toml::from_str(RULES).unwrap(), &all)
    }

    #[test]
    fn permitted_packages_are_no_violations() {
        assert!(
            check(vec![package("syn", "2.0.1", "MIT OR GPL-3.0"), package("a", "1.0.0", "MIT/Apache-2.0")])
                .is_empty()
        );
    }

    #[test]
    fn each_violation_names_the_package() {
        let unlicensed = Package { license: None, ..package("a", "1.0.0", "MIT") };
        let git =
            Package { source: Some("git+https://example.org/a".to_owned()), ..package("a", "1.0.0", "MIT") };
        for (packages, expected) in [
            (vec![package("a", "1.0.0", "GPL-3.0")], "a 1.0.0: license GPL-3.0 is not in deny.toml"),
            (vec![package("a", "1.0.0", "MIT AND")], "a 1.0.0: parse license \"MIT AND\": "),
            (vec![unlicensed], "a 1.0.0: no license"),
            (vec![git], "a 1.0.0: source is not crates.io"),
            (vec![package("tokio", "1.0.0", "MIT")], "tokio 1.0.0: forbidden by deny.toml"),
            (
                vec![package("a", "1.0.0", "MIT"), package("a", "2.0.0", "MIT")],
                "a: several versions, 1.0.0, 2.0.0",
            ),
            (
                vec![package("syn", "10.0.0", "MIT"), package("syn", "11.0.0", "MIT")],
                "syn: several versions, 10.0.0, 11.0.0",
            ),
        ] {
            let violations = check(packages);
            assert!(
                violations.len() == 1 && violations[0].starts_with(expected),
                "{expected}: {violations:?}"
            );
        }
    }

    #[test]
    fn an_unnecessary_exception_is_a_violation() {
        let violations = violations_of(&toml::from_str(RULES).unwrap(), &[package("a", "1.0.0", "MIT")]);
        assert_eq!(violations, ["deny.toml skips syn@1, which is not a dependency"]);
    }
}
