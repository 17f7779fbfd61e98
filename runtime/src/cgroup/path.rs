//! `linux.cgroupsPath` to a path below each tree's mount (config-linux.md, "Cgroups Path"; runc's two drivers).
//!
//! cgroupfs's form is a path: absolute from the top of each tree; a relative one below our own cgroup, but in version 2 below
//! its parent, since a cgroup with processes cannot give controllers to its children. systemd's form is
//! `slice:prefix:name`, the scope `prefix-name.scope` in the slice.

use std::path::{Component, Path, PathBuf};

use super::hierarchies::Hierarchy;
use crate::bundle::{Result, invalid};

/// The slice of a systemd path that names none.
const DEFAULT_SLICE: &str = "system.slice";
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
    /// Reads what a bundle asks for; with `systemd` in its form.
    pub fn parse(text: &str, systemd: bool) -> Result<CgroupPath> {
        if text.len() > PATH_MAX || text.contains('\0') {
            return Err(invalid(AT, "too long, or no path"));
        }
        if systemd {
            return Ok(CgroupPath { path: scope(text)?, absolute: true });
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

/// Returns where systemd has the scope: each dash of a slice's name is one more slice around it (systemd.slice(5)).
fn scope(text: &str) -> Result<PathBuf> {
    let parts: Vec<&str> = text.split(':').collect();
    let &[slice, prefix, name] = parts.as_slice() else {
        return Err(invalid(AT, format!("{text:?} is not slice:prefix:name, as --systemd-cgroup has it")));
    };
    if name.is_empty() || text.contains('/') {
        return Err(invalid(AT, format!("{text:?} names no scope")));
    }
    let slice = if slice.is_empty() { DEFAULT_SLICE } else { slice };
    let Some(stem) = slice.strip_suffix(".slice") else {
        return Err(invalid(AT, format!("{slice:?} is no slice")));
    };
    let mut path = PathBuf::new();
    if stem != "-" {
        if stem.split('-').any(str::is_empty) {
            return Err(invalid(AT, format!("{slice:?} is no slice")));
        }
        let dashes = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
        path.extend(dashes.map(|at| format!("{}.slice", &stem[..at])));
    }
    path.push(match (prefix, name.ends_with(".slice")) {
        (_, true) => name.to_owned(),
        ("", false) => format!("{name}.scope"),
        (prefix, false) => format!("{prefix}-{name}.scope"),
    });
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn below(text: &str, systemd: bool, tree: &Hierarchy) -> String {
        CgroupPath::parse(text, systemd).unwrap().below(tree).to_str().unwrap().to_owned()
    }

    #[test]
    fn paths_are_runc_s() {
        let tree = |controllers: &[&str], own: &str| Hierarchy {
            mount: "/m".into(),
            controllers: controllers.iter().map(|&name| name.to_owned()).collect(),
            own: own.into(),
        };
        let (two, one, top) = (tree(&[], "user/shell"), tree(&["memory"], "user/shell"), tree(&[], ""));
        for (text, systemd, in_two, in_one) in [
            ("/docker/0a", false, "docker/0a", "docker/0a"),
            ("/a/../../b//./c", false, "b/c", "b/c"),
            ("box/1", false, "user/box/1", "user/shell/box/1"),
            ("../x", false, "user/x", "user/shell/x"),
            ("system.slice:docker:0a", true, "system.slice/docker-0a.scope", "system.slice/docker-0a.scope"),
            (":x:y", true, "system.slice/x-y.scope", "system.slice/x-y.scope"),
            ("-.slice::y", true, "y.scope", "y.scope"),
            ("a-b.slice:p:n", true, "a.slice/a-b.slice/p-n.scope", "a.slice/a-b.slice/p-n.scope"),
            ("a.slice:p:n.slice", true, "a.slice/n.slice", "a.slice/n.slice"),
        ] {
            assert_eq!(below(text, systemd, &two), in_two, "{text}");
            assert_eq!(below(text, systemd, &one), in_one, "{text}");
        }
        assert_eq!(below("x", false, &top), "x");
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for (text, systemd, message) in [
            ("/", false, r#""/" is the top of the tree"#),
            ("a/..", false, r#""a/.." is the top of the tree"#),
            ("a:b:c", false, r#""a:b:c" is systemd's form, which needs --systemd-cgroup"#),
            ("/a/b", true, r#""/a/b" is not slice:prefix:name, as --systemd-cgroup has it"#),
            ("a.slice:b:", true, r#""a.slice:b:" names no scope"#),
            ("a.slice:b:../c", true, r#""a.slice:b:../c" names no scope"#),
            ("a:b:c", true, r#""a" is no slice"#),
            ("a--b.slice:b:c", true, r#""a--b.slice" is no slice"#),
        ] {
            let error = CgroupPath::parse(text, systemd).unwrap_err();
            assert_eq!(error.to_string(), format!("config.json linux.cgroupsPath: {message}"));
        }
    }
}
