//! A machine's cgroup on the host: the monitor with all its threads is in it, so that what the machine uses is counted and
//! limited where engines look for it.
//!
//! Version 2's tree, version 1's trees, or both where a host has both. Own code: the well-kept library for it (cgroups-rs)
//! brings ninety crates along, an async runtime among them, for what is a dozen files to write. Where systemd's form of a
//! path is used the cgroup is a scope of systemd's; its limits are written here all the same, since not all are systemd's.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use oci::cgroups_path::{CgroupPath, HostCgroup, Place};
use oci::spec::resources::Resources;
use serde::{Deserialize, Serialize};

pub mod hierarchies;
pub mod limits;
pub mod systemd;
pub mod usage;

use hierarchies::{Hierarchies, Hierarchy};
use systemd::{Manager, SystemdError, properties};

/// How long the kernel may take to let processes go that have ended.
const REMOVAL: Duration = Duration::from_secs(2);
/// The first wait between two attempts; each is twice as long as the one before.
const REMOVAL_STEP: Duration = Duration::from_millis(1);

/// Why a cgroup cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The host refused it.
    #[error("{step} cgroup {}", path.display())]
    Host {
        /// What was attempted.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody is in it.
    #[error("cgroup {} has processes already", .0.display())]
    Busy(PathBuf),
    /// The host's kernel has no such limit, or does not count it here.
    #[error("config.json {at}: not supported: the host has no {file} in {}", directory.display())]
    Missing {
        /// JSON path.
        at: String,
        /// The file.
        file: String,
        /// The cgroup.
        directory: PathBuf,
    },
    /// The host's kernel does not take the value.
    #[error("config.json {at}: write {value:?} to {}", path.display())]
    Setting {
        /// JSON path.
        at: String,
        /// What was written.
        value: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// systemd did not do it.
    #[error(transparent)]
    Systemd(#[from] SystemdError),
}

/// This module's result.
pub type Result<T, E = CgroupError> = std::result::Result<T, E>;

/// Whose files are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A tree for each controller.
    One,
    /// One tree.
    Two,
}

/// Something that is written to the first of some files that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// JSON path of what is asked for.
    pub at: String,
    /// Files and what is written to them.
    pub files: Vec<(String, String)>,
}

/// A cgroup: a directory in each tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    directories: Vec<Directory>,
    /// The unit of systemd's that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
}

/// A cgroup's directory in one tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Directory {
    path: PathBuf,
    /// The tree's controllers in version 1; none in version 2.
    controllers: Vec<String>,
}

impl Cgroup {
    /// Says where the cgroup will be, so that it can be written down before it is there: one at a path is nobody's so far.
    pub fn choose(wanted: &HostCgroup) -> Result<Cgroup> {
        match &wanted.place {
            Place::Path(path) => Cgroup::at(&Hierarchies::find()?, path),
            Place::Scope(scope) => Ok(Cgroup { unit: Some(scope.unit.clone()), ..Cgroup::default() }),
        }
    }

    /// Likewise in these trees.
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

    /// Makes what was chosen, for a machine of `memory_mib`. Nobody is in it yet, but in one of systemd's, which begins with
    /// this process. Its limits are to follow.
    pub fn make(&mut self, wanted: &HostCgroup, memory_mib: u32) -> Result<()> {
        let trees = Hierarchies::find()?;
        match &wanted.place {
            Place::Path(path) => make_directories(&trees, |tree| tree.path_of(path)),
            Place::Scope(scope) => {
                let limits = limits::settings(&wanted.resources, memory_mib, trees.version());
                Manager::connect()?.start(scope, properties(&limits, trees.version()))?;
                // systemd says where we are by having us there; in trees of version 1 that it leaves alone we make the same.
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

    /// Limits a machine of `memory_mib` to `resources`.
    pub fn limit(&self, resources: &Resources, memory_mib: u32) -> Result<()> {
        self.set(limits::settings(resources, memory_mib, self.version()))
    }

    /// Changes the limits of a machine that runs.
    pub fn change(&self, resources: &Resources, memory_mib: u32) -> Result<()> {
        if let Some(unit) = &self.unit {
            let limits = limits::settings(resources, memory_mib, self.version());
            Manager::connect()?.set(unit, &properties(&limits, self.version()))?;
        }
        self.limit(resources, memory_mib)
    }

    /// The cgroup in which the process `pid` is.
    pub fn of_process(pid: u32) -> Result<Cgroup> {
        let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let own = fs::read_to_string(&path).map_err(host("read", &path))?;
        let mounts =
            fs::read_to_string("/proc/self/mountinfo").map_err(host("read", Path::new("/proc/self")))?;
        let mut cgroup = Cgroup::default();
        Hierarchies::parse(&mounts, &own).all().for_each(|tree| cgroup.add(tree, tree.mount.join(&tree.own)));
        Ok(cgroup)
    }

    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        self.directories.is_empty() && self.unit.is_none()
    }

    /// Whether version 2's tree alone has the controllers.
    pub fn version(&self) -> Version {
        let legacy =
            |directory: &Directory| directory.controllers.iter().any(|name| !name.starts_with("name="));
        if self.directories.iter().any(legacy) { Version::One } else { Version::Two }
    }

    /// Microseconds of CPU time in a period; -1 where there is no limit.
    pub fn cpu_quota(&self) -> i64 {
        let text = match self.version() {
            Version::One => self.read("cpu.cfs_quota_us"),
            Version::Two => self.read("cpu.max"),
        };
        text.split_whitespace().next().and_then(|quota| quota.parse().ok()).unwrap_or(-1)
    }

    /// Has this process be in it, with all its threads.
    pub fn join(&self) -> Result<()> {
        self.directories.iter().try_for_each(|directory| join(&directory.path))
    }

    /// Writes limits; one may have to wait for another: a limit of memory and swap is never below that of memory.
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
            let written =
                OpenOptions::new().write(true).open(&path).and_then(|mut to| to.write_all(value.as_bytes()));
            match written {
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

    /// Reads a file; nothing where there is none.
    pub fn read(&self, file: &str) -> String {
        let path = self.directory_of(file).map(|directory| directory.join(file));
        path.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default()
    }

    /// The files' names of one controller's, for those whose name depends on the host.
    pub fn files(&self, controller: &str) -> Vec<String> {
        let directory = self.directory_of(&format!("{controller}."));
        let entries = directory.and_then(|path| fs::read_dir(path).ok()).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.split('.').next() == Some(controller)).collect()
    }

    fn directory_of(&self, file: &str) -> Option<&Path> {
        let controller = file.split('.').next().unwrap_or(file);
        let found = match self.version() {
            Version::Two => self.directories.iter().find(|directory| directory.controllers.is_empty()),
            Version::One => self
                .directories
                .iter()
                .find(|directory| directory.controllers.iter().any(|name| name == controller)),
        };
        found.map(|directory| directory.path.as_path())
    }

    /// Removes it. What is still in it ends: nobody but the machine's own was ever there.
    pub fn remove(&self) -> Result<()> {
        if let Some(unit) = &self.unit {
            Manager::connect()?.stop(unit)?;
        }
        self.directories.iter().try_for_each(|directory| {
            let kill = directory.path.join("cgroup.kill");
            // An older kernel does not have it, and mostly nobody is there.
            let _ = OpenOptions::new().write(true).open(kill).and_then(|mut file| file.write_all(b"1"));
            remove_directory(&directory.path)
        })
    }
}

fn join(directory: &Path) -> Result<()> {
    let path = directory.join("cgroup.procs");
    let written = OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(b"0"));
    written.map_err(host("join", directory))
}

/// Makes a cgroup's directory in each tree.
fn make_directories(trees: &Hierarchies, below: impl Fn(&Hierarchy) -> PathBuf) -> Result<()> {
    trees.all().try_for_each(|tree| make_directory(tree, &below(tree), trees.is_unified()))
}

/// Makes a directory in a tree with those above it.
fn make_directory(tree: &Hierarchy, below: &Path, unified: bool) -> Result<()> {
    let mut path = tree.mount.clone();
    for name in below.components() {
        if unified && tree.controllers.is_empty() {
            delegate(&path);
        }
        path.push(name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(host("make", &path)(error));
            }
            _ => {}
        }
        if tree.controllers.iter().any(|name| name == "cpuset") {
            inherit_cpuset(&path)?;
        }
    }
    Ok(())
}

/// Has the children of a cgroup have every controller that it has itself. One that cannot be had is missed where something
/// is written to its files.
fn delegate(path: &Path) {
    let controllers = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        let control = OpenOptions::new().write(true).open(path.join("cgroup.subtree_control"));
        let _ = control.and_then(|mut file| file.write_all(format!("+{controller}").as_bytes()));
    }
}

/// Version 1: a set of CPUs begins empty, and nobody can join it so.
fn inherit_cpuset(path: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = path.join(file);
        let is_empty = fs::read_to_string(&own).is_ok_and(|set| set.trim().is_empty());
        if is_empty && let Some(above) = path.parent() {
            let set = fs::read_to_string(above.join(file)).map_err(host("read the CPUs of", above))?;
            fs::write(&own, set.trim()).map_err(host("set the CPUs of", path))?;
        }
    }
    Ok(())
}

/// Removes a cgroup with those below it, as soon as the kernel has let go of who was there.
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
            other => return other.map_err(host("remove", path)),
        }
    }
}

fn host(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Host { step, path, source }
}

#[cfg(test)]
mod tests;
