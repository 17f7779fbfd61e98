//! `linux.cgroupsPath`: a path below each cgroup hierarchy's mount, or a scope of systemd's (config-linux.md, "Cgroups
//! Path"; runc's cgroupfs and systemd drivers).

use std::path::{Component, Path, PathBuf};

use crate::bundle::{Result, invalid};
use crate::spec::resources::Resources;

/// The field's JSON path.
const AT: &str = "linux.cgroupsPath";
/// The longest path in bytes.
const PATH_MAX: usize = 2048;
/// The longest name of a systemd unit (unit-name.h, UNIT_NAME_MAX).
const UNIT_NAME_MAX: usize = 255;

/// A cgroup's path in cgroupfs form. An absolute path starts at the top of each hierarchy. A relative path starts at our own
/// cgroup; in version 2 at our cgroup's parent, because a cgroup with processes cannot give controllers to its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPath {
    /// The path without a leading slash, `.` or `..`.
    pub path: PathBuf,
    /// Whether it starts at the top of each hierarchy.
    pub absolute: bool,
}

impl CgroupPath {
    /// Parses cgroupfs form. As in runc, `..` stops at the top.
    ///
    /// # Errors
    ///
    /// The text is too long, in systemd's form, or names the top of the hierarchy.
    pub fn parse(text: &str) -> Result<CgroupPath> {
        if text.len() > PATH_MAX || text.contains('\0') {
            return Err(invalid(AT, "too long, or no path"));
        }
        if text.split(':').count() == 3 && !text.contains('/') {
            return Err(invalid(AT, format!("{text:?} is systemd's form, which needs --systemd-cgroup")));
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
            return Err(invalid(AT, format!("{text:?} is the top of the tree")));
        }
        Ok(CgroupPath { path, absolute: text.starts_with('/') })
    }
}

/// A cgroup's path in systemd's form, `slice:prefix:name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The slice that the scope belongs to; empty for systemd's default.
    pub slice: String,
    /// The unit's name: `prefix-name.scope`.
    pub unit: String,
}

impl Scope {
    /// Parses systemd's form.
    ///
    /// # Errors
    ///
    /// The text is not `slice:prefix:name`, or does not make a valid unit name.
    pub fn parse(text: &str) -> Result<Scope> {
        let parts: Vec<&str> = text.split(':').collect();
        let &[slice, prefix, name] = parts.as_slice() else {
            let why = format!("{text:?} is not slice:prefix:name, as --systemd-cgroup has it");
            return Err(invalid(AT, why));
        };
        if !slice.is_empty() && !slice.ends_with(".slice") {
            return Err(invalid(AT, format!("{slice:?} is no slice")));
        }
        let unit = match prefix {
            "" => format!("{name}.scope"),
            prefix => format!("{prefix}-{name}.scope"),
        };
        let allowed = |letter: char| letter.is_ascii_alphanumeric() || ":-_.\\@".contains(letter);
        // A slice holds no processes of its own.
        let is_slice = name.is_empty() || name.ends_with(".slice");
        if is_slice || unit.len() > UNIT_NAME_MAX || !unit.chars().all(allowed) {
            return Err(invalid(AT, format!("{text:?} names no scope")));
        }
        Ok(Scope { slice: slice.to_owned(), unit })
    }
}

/// Where a cgroup is, and who manages it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A path that this runtime manages.
    Path(CgroupPath),
    /// A scope that systemd manages.
    Scope(Scope),
}

/// The cgroup that a bundle asks for on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCgroup {
    /// Where it is.
    pub place: Place,
    /// Its limits.
    pub resources: Resources,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_no_path_is_refused() {
        for (text, message) in [
            ("/", r#""/" is the top of the tree"#),
            ("a/..", r#""a/.." is the top of the tree"#),
            ("a:b:c", r#""a:b:c" is systemd's form, which needs --systemd-cgroup"#),
        ] {
            let error = CgroupPath::parse(text).unwrap_err();
            assert_eq!(error.to_string(), format!("config.json linux.cgroupsPath: {message}"));
        }
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
    fn what_is_no_scope_is_refused() {
        let long = format!("a.slice:b:{}", "c".repeat(UNIT_NAME_MAX));
        for (text, message) in [
            ("/a/b", r#""/a/b" is not slice:prefix:name, as --systemd-cgroup has it"#.to_owned()),
            ("a:b:c", r#""a" is no slice"#.to_owned()),
            ("a.slice:b:", r#""a.slice:b:" names no scope"#.to_owned()),
            ("a.slice:b:../c", r#""a.slice:b:../c" names no scope"#.to_owned()),
            ("a.slice:p:n.slice", r#""a.slice:p:n.slice" names no scope"#.to_owned()),
            (&long, format!("{long:?} names no scope")),
        ] {
            let error = Scope::parse(text).unwrap_err();
            assert_eq!(error.to_string(), format!("config.json linux.cgroupsPath: {message}"));
        }
    }
}
