//! `linux.cgroupsPath` to a path below each tree's mount (config-linux.md, "Cgroups Path"; runc's cgroupfs driver).
//!
//! Absolute from the top of each tree; a relative one below our own cgroup, but in version 2 below its parent, since a cgroup
//! with processes cannot give controllers to its children.

use std::path::{Component, Path, PathBuf};

use super::hierarchies::Hierarchy;
use crate::bundle::{Result, invalid};

/// JSON path.
const AT: &str = "linux.cgroupsPath";
/// The longest path.
const PATH_MAX: usize = 2048;

/// A cgroup's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPath {
    /// Without a leading slash, and without a component that leads elsewhere.
    path: PathBuf,
    absolute: bool,
}

impl CgroupPath {
    /// Reads what a bundle asks for.
    pub fn parse(text: &str) -> Result<CgroupPath> {
        if text.len() > PATH_MAX || text.contains('\0') {
            return Err(invalid(AT, "too long, or no path"));
        }
        if text.split(':').count() == 3 && !text.contains('/') {
            return Err(invalid(AT, format!("{text:?} is systemd's form, which needs --systemd-cgroup")));
        }
        // As in runc, `..` ends at the top.
        let mut path = PathBuf::new();
        for component in Path::new(text).components() {
            match component {
                Component::Normal(name) => path.push(name),
                Component::ParentDir => _ = path.pop(),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        if path.as_os_str().is_empty() {
            return Err(invalid(AT, format!("{text:?} is the top of the tree")));
        }
        Ok(CgroupPath { path, absolute: text.starts_with('/') })
    }

    /// Returns the path below the mount of `tree`.
    pub fn below(&self, tree: &Hierarchy) -> PathBuf {
        match tree.controllers.is_empty() {
            _ if self.absolute => self.path.clone(),
            true => tree.own.parent().unwrap_or(Path::new("")).join(&self.path),
            false => tree.own.join(&self.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn below(text: &str, tree: &Hierarchy) -> String {
        CgroupPath::parse(text).unwrap().below(tree).to_str().unwrap().to_owned()
    }

    #[test]
    fn paths_are_runc_s() {
        let tree = |controllers: &[&str], own: &str| Hierarchy {
            mount: "/m".into(),
            controllers: controllers.iter().map(|&name| name.to_owned()).collect(),
            own: own.into(),
        };
        let (two, one, top) = (tree(&[], "user/shell"), tree(&["memory"], "user/shell"), tree(&[], ""));
        for (text, in_two, in_one) in [
            ("/docker/0a", "docker/0a", "docker/0a"),
            ("/a/../../b//./c", "b/c", "b/c"),
            ("box/1", "user/box/1", "user/shell/box/1"),
            ("../x", "user/x", "user/shell/x"),
        ] {
            assert_eq!(below(text, &two), in_two, "{text}");
            assert_eq!(below(text, &one), in_one, "{text}");
        }
        assert_eq!(below("x", &top), "x");
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for (text, message) in [
            ("/", r#""/" is the top of the tree"#),
            ("a/..", r#""a/.." is the top of the tree"#),
            ("a:b:c", r#""a:b:c" is systemd's form, which needs --systemd-cgroup"#),
        ] {
            let error = CgroupPath::parse(text).unwrap_err();
            assert_eq!(error.to_string(), format!("config.json linux.cgroupsPath: {message}"));
        }
    }
}
