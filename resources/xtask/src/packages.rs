//! The packages of the workspace and its dependencies, as `cargo metadata` resolves them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::Context;
use serde::Deserialize;

use crate::executable::TARGET;
use crate::steps::{cargo, output};

/// A package of the workspace or of a registry.
#[derive(Debug, Deserialize)]
pub struct Package {
    /// cargo's package id.
    pub id: String,
    pub name: String,
    pub version: String,
    /// License as an SPDX expression.
    pub license: Option<String>,
    /// Authors, if the package names them.
    #[serde(default)]
    pub authors: Vec<String>,
    /// Source of the package; `None` for a member of the workspace.
    pub source: Option<String>,
    /// Path of its `Cargo.toml`.
    pub manifest_path: PathBuf,
}

/// All packages, and the dependencies of each.
#[derive(Deserialize)]
pub struct Packages {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    /// `None` for an ordinary dependency, otherwise `dev` or `build`.
    kind: Option<String>,
}

impl Packages {
    /// Runs cargo, without packages for other platforms.
    pub fn load() -> anyhow::Result<Packages> {
        let words = ["metadata", "--format-version", "1", "--filter-platform", TARGET];
        serde_json::from_str(&output(cargo().args(words))?).context("parse cargo's metadata")
    }

    /// Returns all packages, including those for building and testing.
    pub fn all(&self) -> &[Package] {
        &self.packages
    }

    /// Returns the registry packages that are linked into members of the workspace, sorted by name and version.
    pub fn linked_into(&self, members: &[&str]) -> Vec<&Package> {
        let nodes: BTreeMap<&str, &Node> =
            self.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
        let is_member =
            |package: &&Package| package.source.is_none() && members.contains(&package.name.as_str());
        let mut open: Vec<&str> =
            self.packages.iter().filter(is_member).map(|member| member.id.as_str()).collect();
        let mut linked: BTreeSet<&str> = BTreeSet::new();
        while let Some(id) = open.pop() {
            if linked.insert(id) {
                let dependencies = nodes.get(id).into_iter().flat_map(|node| &node.deps);
                let linked = dependencies.filter(|to| to.dep_kinds.iter().any(|kind| kind.kind.is_none()));
                open.extend(linked.map(|to| to.pkg.as_str()));
            }
        }
        let mut found: Vec<&Package> = self
            .packages
            .iter()
            .filter(|package| package.source.is_some() && linked.contains(package.id.as_str()))
            .collect();
        found.sort_by_key(|package| (&package.name, &package.version));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linked_packages_include_indirect_dependencies_and_not_development_dependencies() {
        let packages = Packages::load().unwrap();
        let names = |members: &[&str]| -> Vec<String> {
            packages.linked_into(members).iter().map(|package| package.name.clone()).collect()
        };
        let runtime = names(&["runtime"]);
        assert!(
            runtime.contains(&"kvm-ioctls".to_owned()) && !runtime.contains(&"proptest".to_owned()),
            "{runtime:?}"
        );
        assert!(!runtime.contains(&"devices".to_owned()));
        assert!(!names(&["agent"]).contains(&"kvm-ioctls".to_owned()));
        assert!(packages.all().iter().any(|package| package.name == "proptest"));
    }
}
