//! The host's cgroup hierarchies: that of version 2, those of version 1 with their controllers, or both (hybrid).
//!
//! Mount points and the cgroup of this process come from `/proc/self/mountinfo` and `/proc/self/cgroup` (proc(5),
//! cgroups(7)).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci::cgroups_path::CgroupPath;

use super::{Result, Version};
use crate::HostError;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    pub mount: PathBuf,
    /// Controllers of a version 1 hierarchy (`name=systemd` if it has none); empty for version 2.
    pub controllers: Vec<String>,
    /// Cgroup of this process, relative to `mount`.
    pub own: PathBuf,
}

impl Hierarchy {
    /// Returns `path` relative to the mount point, without `.` and `..`.
    pub fn path_of(&self, path: &CgroupPath) -> PathBuf {
        match self.controllers.is_empty() {
            _ if path.absolute => path.path.clone(),
            true => self.own.parent().unwrap_or(Path::new("")).join(&path.path),
            false => self.own.join(&path.path),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// Hierarchy of version 2.
    pub unified: Option<Hierarchy>,
    pub legacy: Vec<Hierarchy>,
}

impl Hierarchies {
    /// Finds the hierarchies of the host.
    pub fn find() -> Result<Hierarchies> {
        let found = Hierarchies::parse(&mounts()?, &read("/proc/self/cgroup")?);
        if found.all().next().is_none() {
            let path = Path::new("/sys/fs/cgroup");
            return Err(HostError::at("find a cgroup hierarchy at", path)(io::ErrorKind::NotFound).into());
        }
        Ok(found)
    }

    /// Parses the content of `/proc/self/mountinfo` and `/proc/self/cgroup`.
    pub fn parse(mountinfo: &str, own: &str) -> Hierarchies {
        let mut found = Hierarchies::default();
        for line in mountinfo.lines() {
            let Some((front, back)) = line.split_once(" - ") else { continue };
            let (front, back): (Vec<&str>, Vec<&str>) =
                (front.split(' ').collect(), back.split(' ').collect());
            let (Some(root), Some(mount), Some(kind)) = (front.get(3), front.get(4), back.first()) else {
                continue;
            };
            let mount = PathBuf::from(unescape(mount));
            match *kind {
                "cgroup2" if found.unified.is_none() => {
                    let own = own_path(own, root, |names| names.is_empty());
                    found.unified = Some(Hierarchy { mount, controllers: Vec::new(), own });
                }
                "cgroup" => {
                    let options = back.get(2).copied().unwrap_or_default();
                    let controllers: Vec<String> =
                        options.split(',').filter(|word| is_controller(word)).map(str::to_owned).collect();
                    let there = |other: &Hierarchy| other.controllers == controllers;
                    if !controllers.is_empty() && !found.legacy.iter().any(there) {
                        let own = own_path(own, root, |names| names.split(',').any(|n| n == controllers[0]));
                        found.legacy.push(Hierarchy { mount, controllers, own });
                    }
                }
                _ => {}
            }
        }
        found
    }

    pub fn all(&self) -> impl Iterator<Item = &Hierarchy> {
        self.unified.iter().chain(&self.legacy)
    }

    /// Returns the version of the hierarchies that have controllers.
    pub fn version(&self) -> Version {
        if self.is_unified() { Version::Two } else { Version::One }
    }

    /// Returns the hierarchy in which systemd has its units.
    pub fn of_systemd(&self) -> Option<&Hierarchy> {
        let named = |tree: &&Hierarchy| tree.controllers.iter().any(|name| name == "name=systemd");
        self.legacy.iter().find(named).or(self.unified.as_ref())
    }

    /// Whether only the hierarchy of version 2 has controllers.
    pub fn is_unified(&self) -> bool {
        self.legacy.iter().all(|tree| tree.controllers.iter().all(|name| name.starts_with("name=")))
    }
}

/// Returns the content of `/proc/self/mountinfo`.
pub fn mounts() -> Result<String> {
    read("/proc/self/mountinfo")
}

fn read(path: &str) -> Result<String> {
    Ok(fs::read_to_string(path).map_err(HostError::at("read", Path::new(path)))?)
}

/// Mount options of version 1 that are not controllers.
fn is_controller(word: &str) -> bool {
    let options = ["rw", "ro", "none", "noprefix", "xattr", "clone_children", "favordynmods"];
    !options.contains(&word) && !word.starts_with("release_agent=") && !word.is_empty()
}

/// Returns the cgroup of this process in the hierarchy with these controllers, relative to the mount of its `root`.
fn own_path(own: &str, root: &str, is_tree: impl Fn(&str) -> bool) -> PathBuf {
    let lines = own.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let path = lines.into_iter().find(|(names, _)| is_tree(names)).map_or("/", |(_, path)| path);
    let below = Path::new(path).strip_prefix(unescape(root)).unwrap_or(Path::new(""));
    below.strip_prefix("/").unwrap_or(below).to_owned()
}

/// mountinfo escapes blanks, tabs, newlines and backslashes as octal numbers.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(mount: &str, controllers: &[&str], own: &str) -> Hierarchy {
        let controllers = controllers.iter().map(|&name| name.to_owned()).collect();
        Hierarchy { mount: mount.into(), controllers, own: own.into() }
    }

    #[test]
    fn version_2_is_one_tree() {
        let mounts = "22 1 0:21 / /proc rw - proc proc rw\n\
                      30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = Hierarchies::parse(mounts, "0::/system.slice/docker.service\n");
        assert!(found.is_unified());
        assert_eq!(found.of_systemd(), found.unified.as_ref());
        let unified = tree("/sys/fs/cgroup", &[], "system.slice/docker.service");
        assert_eq!(found, Hierarchies { unified: Some(unified), legacy: vec![] });
    }

    #[test]
    fn hybrid_is_both_and_each_tree_once() {
        let mounts = "31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            33 30 0:29 /box /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            34 30 0:29 /box /elsewhere rw - cgroup cgroup rw,cpu,cpuacct\n\
            35 30 0:30 / /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory\n";
        let own = "3:memory:/a\n2:cpu,cpuacct:/box/b\n1:name=systemd:/c\n0::/d\n";
        let found = Hierarchies::parse(mounts, own);
        assert!(!found.is_unified());
        assert_eq!(found.unified, Some(tree("/sys/fs/cgroup/unified", &[], "d")));
        let legacy = [
            tree("/sys/fs/cgroup/systemd", &["name=systemd"], "c"),
            tree("/sys/fs/cgroup/cpu,cpuacct", &["cpu", "cpuacct"], "b"),
            tree("/sys/fs/cgroup/my memory", &["memory"], "a"),
        ];
        assert_eq!(found.legacy, legacy);
        assert_eq!(found.of_systemd(), Some(&legacy[0]));
    }

    #[test]
    fn paths_are_runc_s() {
        let path_of = |text: &str, tree: &Hierarchy| {
            tree.path_of(&CgroupPath::parse(text).unwrap()).to_str().unwrap().to_owned()
        };
        let (two, one) = (tree("/m", &[], "user/shell"), tree("/m", &["memory"], "user/shell"));
        for (text, in_two, in_one) in [
            ("/docker/0a", "docker/0a", "docker/0a"),
            ("/a/../../b//./c", "b/c", "b/c"),
            ("box/1", "user/box/1", "user/shell/box/1"),
            ("../x", "user/x", "user/shell/x"),
        ] {
            assert_eq!(path_of(text, &two), in_two, "{text}");
            assert_eq!(path_of(text, &one), in_one, "{text}");
        }
        assert_eq!(path_of("x", &tree("/m", &[], "")), "x");
    }

    #[test]
    fn without_trees_there_is_nothing() {
        assert_eq!(Hierarchies::parse("nonsense\n1 2 - cgroup2\n", ""), Hierarchies::default());
    }
}
