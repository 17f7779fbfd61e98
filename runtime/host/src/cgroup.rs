//! A machine's cgroup on the host. It contains the monitor with all its threads, so that the resources of the machine
//! are accounted and limited where engines expect it.
//!
//! Supports the hierarchy of version 2, those of version 1, and both together. The maintained library for cgroups
//! (cgroups-rs) has ninety dependencies, among them an async runtime, for a dozen files to write. For a path in
//! systemd's form the cgroup is a systemd scope; this module still writes its limits, because systemd does not support
//! all of them.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use oci::cgroups_path::{CgroupLocation, CgroupPath, HostCgroup};
use oci::spec::resources::Resources;
use serde::{Deserialize, Serialize};

pub mod hierarchies;
pub mod kill_reporter;
pub mod limits;
pub mod room;
pub mod systemd;
pub mod usage;

use hierarchies::{Hierarchies, Hierarchy};
use systemd::{Manager, SystemdError, properties};

use crate::HostError;

/// Timeout for the kernel to remove exited processes from a cgroup.
const REMOVAL: Duration = Duration::from_secs(2);
/// First interval between two attempts; each following interval is twice as long.
const REMOVAL_STEP: Duration = Duration::from_millis(1);

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("cgroup {} already has processes", .0.display())]
    Busy(PathBuf),
    /// The host's kernel has no such limit, or the controller is not enabled in the cgroup.
    #[error("config.json {at}: not supported: the host has no {file} in {}", directory.display())]
    Missing {
        /// JSON path of the limit.
        at: String,
        file: String,
        directory: PathBuf,
    },
    #[error("config.json {at}: write {value:?} to {}", path.display())]
    Setting {
        at: String,
        value: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Systemd(#[from] SystemdError),
}

pub type Result<T, E = CgroupError> = std::result::Result<T, E>;

/// Version of the cgroup hierarchies that have the controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller or group of controllers.
    One,
    /// The unified hierarchy.
    Two,
}

/// A value to write to the first existing file of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// JSON path of the limit.
    pub at: String,
    /// Names of the files, each with its value.
    pub files: Vec<(String, String)>,
}

/// A cgroup: a directory in each hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    directories: Vec<Directory>,
    /// Name of the systemd unit that the cgroup belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
}

/// A cgroup's directory in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Directory {
    path: PathBuf,
    /// Controllers of the hierarchy in version 1; empty in version 2.
    controllers: Vec<String>,
}

impl Cgroup {
    /// Determines the path of the cgroup, so that the caller can record it before it exists. A cgroup with processes is
    /// refused.
    pub fn choose(wanted: &HostCgroup) -> Result<Cgroup> {
        match &wanted.place {
            CgroupLocation::Path(path) => Cgroup::at(&Hierarchies::find()?, path),
            CgroupLocation::Scope(scope) => {
                Ok(Cgroup { unit: Some(scope.unit.clone()), ..Cgroup::default() })
            }
        }
    }

    /// Like [`choose`](Self::choose), in these hierarchies.
    fn at(trees: &Hierarchies, path: &CgroupPath) -> Result<Cgroup> {
        let mut cgroup = Cgroup::default();
        for tree in trees.all() {
            let path = tree.mount.join(tree.path_of(path));
            let inside = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            if !inside.trim().is_empty() {
                return Err(CgroupError::Busy(path));
            }
            cgroup.add(tree, path);
        }
        Ok(cgroup)
    }

    /// Creates the chosen cgroup for a machine of `memory_mib`, without limits. It has no processes, except that a
    /// systemd scope starts with this process and with `companion`.
    pub fn make(&mut self, wanted: &HostCgroup, memory_mib: u32, companion: Option<u32>) -> Result<()> {
        let trees = Hierarchies::find()?;
        match &wanted.place {
            CgroupLocation::Path(path) => make_directories(&trees, |tree| tree.path_of(path)),
            CgroupLocation::Scope(scope) => {
                let limits = limits::settings(&wanted.resources, memory_mib, trees.version());
                let processes = [std::process::id()].into_iter().chain(companion).collect();
                Manager::connect()?.start(scope, processes, properties(&limits, trees.version()))?;
                // systemd has moved the processes into the scope. In hierarchies of version 1 that systemd does not
                // manage, the cgroup gets the same path.
                let trees = Hierarchies::find()?;
                let own = trees.of_systemd().map_or_else(PathBuf::new, |tree| tree.own.clone());
                trees.all().for_each(|tree| self.add(tree, tree.mount.join(&own)));
                make_directories(&trees, |_| own.clone())
            }
        }
    }

    fn add(&mut self, tree: &Hierarchy, path: PathBuf) {
        self.directories.push(Directory { path, controllers: tree.controllers.clone() });
    }

    /// Applies `resources` to a machine of `memory_mib`.
    pub fn limit(&self, resources: &Resources, memory_mib: u32) -> Result<()> {
        self.set(limits::settings(resources, memory_mib, self.version()))
    }

    /// Changes the limits of a running machine, also in systemd's unit.
    pub fn change(&self, resources: &Resources, memory_mib: u32) -> Result<()> {
        if let Some(unit) = &self.unit {
            let limits = limits::settings(resources, memory_mib, self.version());
            Manager::connect()?.set(unit, &properties(&limits, self.version()))?;
        }
        self.limit(resources, memory_mib)
    }

    pub fn of_process(pid: u32) -> Result<Cgroup> {
        let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let own = fs::read_to_string(&path).map_err(HostError::at("read", &path))?;
        let mut cgroup = Cgroup::default();
        Hierarchies::parse(&hierarchies::mounts()?, &own)
            .all()
            .for_each(|tree| cgroup.add(tree, tree.mount.join(&tree.own)));
        Ok(cgroup)
    }

    /// Whether the machine has no cgroup.
    pub fn is_none(&self) -> bool {
        self.directories.is_empty() && self.unit.is_none()
    }

    /// Returns the cgroup's directory in each hierarchy.
    pub fn directories(&self) -> impl Iterator<Item = PathBuf> {
        self.directories.iter().map(|directory| directory.path.clone())
    }

    /// Returns the directories from which the cgroup's directories are removed.
    pub fn parents(&self) -> impl Iterator<Item = PathBuf> {
        self.directories().filter_map(|path| path.parent().map(Path::to_owned))
    }

    /// Whether the cgroup is a unit of systemd, which removes it.
    pub fn has_unit(&self) -> bool {
        self.unit.is_some()
    }

    /// Returns the version of the hierarchies that have controllers.
    pub fn version(&self) -> Version {
        let legacy =
            |directory: &Directory| directory.controllers.iter().any(|name| !name.starts_with("name="));
        if self.directories.iter().any(legacy) { Version::One } else { Version::Two }
    }

    /// Returns the CPU quota per period in microseconds; -1 for no limit.
    pub fn cpu_quota(&self) -> i64 {
        let text = match self.version() {
            Version::One => self.read("cpu.cfs_quota_us"),
            Version::Two => self.read("cpu.max"),
        };
        text.split_whitespace().next().and_then(|quota| quota.parse().ok()).unwrap_or(-1)
    }

    /// Moves this process with all its threads into the cgroup.
    pub fn join(&self) -> Result<()> {
        // To the kernel, 0 is the process that writes.
        self.admit(0)
    }

    /// Moves process `pid` with all its threads into the cgroup.
    pub fn admit(&self, pid: u32) -> Result<()> {
        self.directories.iter().try_for_each(|Directory { path, .. }| {
            let joined = write_file(&path.join("cgroup.procs"), &pid.to_string());
            Ok(joined.map_err(HostError::at("join cgroup", path))?)
        })
    }

    /// Writes limits. Retries failed writes once, because a limit may depend on a later one: memory plus swap is never
    /// below memory.
    fn set(&self, settings: Vec<Setting>) -> Result<()> {
        let late: Vec<Setting> =
            settings.into_iter().filter(|setting| self.write(setting).is_err()).collect();
        late.iter().try_for_each(|setting| self.write(setting))
    }

    fn write(&self, setting: &Setting) -> Result<()> {
        let mut missing = None;
        for (file, value) in &setting.files {
            let Some(directory) = self.directory_of(file) else { continue };
            let path = directory.join(file);
            match write_file(&path, value) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => missing = Some(directory),
                Err(source) => {
                    let (at, value) = (setting.at.clone(), value.clone());
                    return Err(CgroupError::Setting { at, value, path, source });
                }
            }
        }
        let directory =
            missing.or(self.directories.first().map(|first| first.path.as_path())).unwrap_or(Path::new("/"));
        let file = setting.files.last().map_or("", |(file, _)| file).to_owned();
        Err(CgroupError::Missing { at: setting.at.clone(), file, directory: directory.to_owned() })
    }

    /// Returns the content of a file; empty if it cannot be read.
    pub fn read(&self, file: &str) -> String {
        let path = self.directory_of(file).map(|directory| directory.join(file));
        path.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default()
    }

    /// Returns the names of a controller's files, for names that depend on the host.
    pub fn files(&self, controller: &str) -> Vec<String> {
        let directory = self.directory_of(&format!("{controller}."));
        let entries = directory.and_then(|path| fs::read_dir(path).ok()).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.split('.').next() == Some(controller)).collect()
    }

    fn directory_of(&self, file: &str) -> Option<&Path> {
        let controller = file.split('.').next().unwrap_or(file);
        let has = |Directory { controllers, .. }: &&Directory| match self.version() {
            Version::Two => controllers.is_empty(),
            Version::One => controllers.iter().any(|name| name == controller),
        };
        self.directories.iter().find(has).map(|directory| directory.path.as_path())
    }

    /// Removes the cgroup. Kills its remaining processes, which all belong to the machine.
    pub fn remove(&self) -> Result<()> {
        if let Some(unit) = &self.unit {
            Manager::connect()?.stop(unit)?;
        }
        self.directories.iter().try_for_each(|directory| {
            // An older kernel does not have the file, and usually no process is left.
            let _ = write_file(&directory.path.join("cgroup.kill"), "1");
            remove_directory(&directory.path)
        })
    }
}

/// Writes to a file that the kernel has created.
fn write_file(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// Creates the cgroup's directory in each hierarchy.
fn make_directories(trees: &Hierarchies, below: impl Fn(&Hierarchy) -> PathBuf) -> Result<()> {
    trees.all().try_for_each(|tree| make_directory(tree, &below(tree), trees.is_unified()))
}

/// Creates a directory in a hierarchy, with its parents.
fn make_directory(tree: &Hierarchy, below: &Path, unified: bool) -> Result<()> {
    let mut path = tree.mount.clone();
    for name in below.components() {
        if unified && tree.controllers.is_empty() {
            delegate(&path);
        }
        path.push(name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(HostError::at("create cgroup", &path)(error).into());
            }
            _ => {}
        }
        if tree.controllers.iter().any(|name| name == "cpuset") {
            inherit_cpuset(&path)?;
        }
    }
    Ok(())
}

/// Enables all controllers of a cgroup for its children. Ignores errors: a missing controller is reported when a limit
/// is written.
fn delegate(path: &Path) {
    let controllers = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        let _ = write_file(&path.join("cgroup.subtree_control"), &format!("+{controller}"));
    }
}

/// Version 1: a new CPU set is empty, and the kernel lets no process join an empty one.
fn inherit_cpuset(path: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = path.join(file);
        let is_empty = fs::read_to_string(&own).is_ok_and(|set| set.trim().is_empty());
        if is_empty && let Some(above) = path.parent() {
            let set = fs::read_to_string(above.join(file))
                .map_err(HostError::at("read the CPUs of cgroup", above))?;
            fs::write(&own, set.trim()).map_err(HostError::at("set the CPUs of cgroup", path))?;
        }
    }
    Ok(())
}

/// Removes a cgroup and its children, once the kernel has removed the exited processes.
fn remove_directory(path: &Path) -> Result<()> {
    let until = Instant::now() + REMOVAL;
    let mut step = REMOVAL_STEP;
    loop {
        let below = fs::read_dir(path).into_iter().flatten().flatten();
        let directories = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        for entry in directories {
            remove_directory(&entry.path())?;
        }
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                thread::sleep(step);
                step *= 2;
            }
            other => return Ok(other.map_err(HostError::at("remove cgroup", path))?),
        }
    }
}

#[cfg(test)]
mod tests;
