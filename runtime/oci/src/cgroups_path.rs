//! `linux.cgroupsPath`: a path below each cgroup hierarchy's mount, or a scope of systemd's (config-linux.md, "Cgroups
//! Path"; runc's cgroupfs and systemd drivers).

use std::path::{Component, Path, PathBuf};

use crate::error::{Result, invalid};
use crate::spec::resources::Resources;

/// JSON path of the field.
const AT: &str = "linux.cgroupsPath";
/// Maximum length of the path in bytes.
const PATH_MAX: usize = 2048;
/// Maximum length of a systemd unit's name in bytes (unit-name.h, UNIT_NAME_MAX).
const UNIT_NAME_MAX: usize = 255;

/// Path of a cgroup in cgroupfs form. An absolute path starts at the root of each hierarchy. A relative path starts at
/// the cgroup of this process; in version 2 at the parent of that cgroup, because a cgroup with processes cannot give
/// controllers to its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPath {
    /// Path without a leading slash, `.` or `..`.
    pub path: PathBuf,
    /// Whether the path starts at the root of each hierarchy.
    pub absolute: bool,
}

impl CgroupPath {
    /// Parses cgroupfs form. As in runc, `..` stops at the root, and a text in systemd's form is a name.
    ///
    /// # Errors
    ///
    /// The text is too long, or names the root cgroup.
    pub fn parse(text: &str) -> Result<CgroupPath> {
        if text.len() > PATH_MAX || text.contains('\0') {
            return Err(invalid(AT, format!("longer than {PATH_MAX} bytes, or contains a NUL byte")));
        }
        let mut path = PathBuf::new();
        for component in Path::new(text).components() {
            match component {
                Component::Normal(name) => path.push(name),
                Component::ParentDir => _ = path.pop(),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        if path.as_os_str().is_empty() {
            return Err(invalid(AT, format!("{text:?} is the root cgroup")));
        }
        Ok(CgroupPath { path, absolute: text.starts_with('/') })
    }
}

/// Path of a cgroup in systemd's form, `slice:prefix:name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The slice that contains the scope; empty for systemd's default.
    pub slice: String,
    /// Name of the unit: `prefix-name.scope`.
    pub unit: String,
}

impl Scope {
    /// Parses systemd's form.
    ///
    /// # Errors
    ///
    /// The text is not `slice:prefix:name`, or does not result in a valid unit name.
    pub fn parse(text: &str) -> Result<Scope> {
        let parts: Vec<&str> = text.split(':').collect();
        let &[slice, prefix, name] = parts.as_slice() else {
            let why = format!("{text:?} is not slice:prefix:name, as --systemd-cgroup requires");
            return Err(invalid(AT, why));
        };
        if !slice.is_empty() && !slice.ends_with(".slice") {
            return Err(invalid(AT, format!("{slice:?} is not a slice")));
        }
        let unit = match prefix {
            "" => format!("{name}.scope"),
            prefix => format!("{prefix}-{name}.scope"),
        };
        let allowed = |letter: char| letter.is_ascii_alphanumeric() || ":-_.\\@".contains(letter);
        // The name of a slice is refused: a slice contains no processes of its own.
        let is_slice = name.is_empty() || name.ends_with(".slice");
        if is_slice || unit.len() > UNIT_NAME_MAX || !unit.chars().all(allowed) {
            return Err(invalid(AT, format!("{text:?} is not a valid scope name")));
        }
        Ok(Scope { slice: slice.to_owned(), unit })
    }
}

/// A cgroup's path and its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupLocation {
    /// A path that `vmm` manages.
    Path(CgroupPath),
    /// A scope that systemd manages.
    Scope(Scope),
}

/// The host cgroup that a bundle asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCgroup {
    pub place: CgroupLocation,
    pub resources: Resources,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_cgroupfs_paths_are_refused() {
        for (text, message) in [("/", r#""/" is the root cgroup"#), ("a/..", r#""a/.." is the root cgroup"#)]
        {
            let error = CgroupPath::parse(text).unwrap_err();
            assert_eq!(error.to_string(), format!("config.json linux.cgroupsPath: {message}"));
        }
    }

    #[test]
    fn systemd_s_form_is_a_name_among_paths() {
        let path = CgroupPath::parse("test.slice:cri-containerd:6a2c").unwrap();
        assert_eq!(path, CgroupPath { path: "test.slice:cri-containerd:6a2c".into(), absolute: false });
    }

    #[test]
    fn a_scope_is_slice_prefix_and_name() {
        for (text, slice, unit) in [
            ("system.slice:docker:0a", "system.slice", "docker-0a.scope"),
            (":x:y", "", "x-y.scope"),
            ("-.slice::y", "-.slice", "y.scope"),
            ("a-b.slice:p:n", "a-b.slice", "p-n.scope"),
        ] {
            assert_eq!(Scope::parse(text).unwrap(), Scope { slice: slice.to_owned(), unit: unit.to_owned() });
        }
    }

    #[test]
    fn invalid_scopes_are_refused() {
        let long = format!("a.slice:b:{}", "c".repeat(UNIT_NAME_MAX));
        for (text, message) in [
            ("/a/b", r#""/a/b" is not slice:prefix:name, as --systemd-cgroup requires"#.to_owned()),
            ("a:b:c", r#""a" is not a slice"#.to_owned()),
            ("a.slice:b:", r#""a.slice:b:" is not a valid scope name"#.to_owned()),
            ("a.slice:b:../c", r#""a.slice:b:../c" is not a valid scope name"#.to_owned()),
            ("a.slice:p:n.slice", r#""a.slice:p:n.slice" is not a valid scope name"#.to_owned()),
            (&long, format!("{long:?} is not a valid scope name")),
        ] {
            let error = Scope::parse(text).unwrap_err();
            assert_eq!(error.to_string(), format!("config.json linux.cgroupsPath: {message}"));
        }
    }
}
