//! The state of the pods on this host: a directory for each, below `--root`. An OCI container is a pod of one.
//!
//! ```text
//! <root>/<pod>/lock           held by the pod's process
//!              state.json     the pod's state at its last change, replaced atomically
//!              sandbox.sock   the pod's socket, for requests to it
//!              logs/          the containers' output
//! ```
//!
//! A pod's process keeps its state file up to date, so a reader needs no answer from the guest or from a process that
//! may be suspended. A pod lives as long as its process, which listens on the socket. If nothing listens there, the pod
//! has ended: its directory can be read and removed. An OCI container's process holds the lock before it listens, while
//! it creates the container. A directory without a state whose lock is free is left from an interrupted creation, and
//! is ignored.

use host::HostError;
use std::ffi::{CString, OsString};
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread::Builder;
use std::time::Duration;

use host::cgroup::{Cgroup, CgroupError};
use host::network::{self, NetworkError};
use host::sys;
use host::user::User;

use crate::deadlines;

mod record;

pub use record::{CREATING, ContainerState, OciState, PodState};

/// Maximum size of a state file, in bytes.
const STATE_MAX: u64 = 4 << 20;
const STATE: &str = "state.json";
const SOCKET: &str = "sandbox.sock";
const LOCK: &str = "lock";
/// Lock below the root, held while a directory is created or its owner is determined. No container's name begins with
/// a dot.
const ROOT_LOCK: &str = ".lock";
const LOGS: &str = "logs";
/// Mode bit of a directory in which every user can create and remove files.
const WRITABLE_BY_ALL: u32 = 0o002;

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("there is no pod {0:?}")]
    Unknown(String),
    #[error("pod {id:?} exists already{}", if *living { "" } else { "; it has ended, `vmm pod rm` removes it" })]
    Exists { id: String, living: bool },
    #[error("container with id exists: {0}")]
    ContainerExists(String),
    #[error("container does not exist: {0}")]
    NoContainer(String),
    #[error("pod {0:?} is not running")]
    Stopped(String),
    /// The pod is running, and the request is for one that has ended.
    #[error("pod {0:?} is running")]
    Running(String),
    /// The pod's process accepts no connection.
    #[error("{id}: no answer from its machine within {} s", after.as_secs())]
    Silent { id: String, after: Duration },
    /// Its owner could exchange the pods' directories for others.
    #[error("state directory {path} belongs to user {owner}", path = path.display())]
    Foreign { path: PathBuf, owner: u32 },
    #[error("state directory {} can be written by every user", .0.display())]
    Public(PathBuf),
    #[error("{id}: its machine has not ended within {} s", after.as_secs())]
    Lasting { id: String, after: Duration },
}

pub type Result<T, E = StateError> = std::result::Result<T, E>;

/// The directory that contains the pods' directories.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Default))]
pub struct StateRoot(PathBuf);

impl StateRoot {
    /// Returns the given directory, or else `/run/vmm` for root and `vmm` in the runtime directory of other users, who may
    /// be root of a user namespace.
    pub fn new(given: Option<PathBuf>, lookup: impl Fn(&str) -> Option<OsString>) -> StateRoot {
        StateRoot(given.unwrap_or_else(|| {
            let user = User::of_process();
            if !user.is_rootless(lookup("USER").as_deref()) {
                return PathBuf::from("/run/vmm");
            }
            let directory = lookup("XDG_RUNTIME_DIR").map(PathBuf::from);
            directory.unwrap_or_else(|| PathBuf::from(format!("/run/user/{}", user.outside()))).join("vmm")
        }))
    }

    /// Opens the directory in which this one is or will be, and returns it with this one's name.
    pub fn open_parent(&self) -> io::Result<(OwnedFd, CString)> {
        let (Some(parent), Some(name)) = (self.0.parent(), self.0.file_name()) else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        let parent =
            File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(parent)?;
        Ok((parent.into(), CString::new(name.as_bytes())?))
    }

    /// Creates a pod's directory. Fails if one of this name exists.
    pub fn create(&self, id: &str) -> Result<StateDir> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        let make = |path: &Path| builder.create(path).map_err(HostError::at("create", path));
        make(&self.0)?;
        self.check()?;
        let path = self.0.join(id);
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let living = self.open(id)?.is_living();
                return Err(StateError::Exists { id: id.to_owned(), living });
            }
            Err(error) => return Err(HostError::at("create", &path)(error).into()),
        }
        let directory = StateDir { id: id.to_owned(), path };
        make(&directory.path.join(LOGS))?;
        Ok(directory)
    }

    /// Creates an OCI container's directory and takes its lock, which contains this process's id. The remains of an
    /// interrupted creation are not a container.
    pub fn claim(&self, id: &str) -> Result<(StateDir, File)> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .map_err(HostError::at("create", &self.0))?;
        self.check()?;
        let path = self.0.join(id);
        let root = self.lock()?;
        let directory = StateDir { id: id.to_owned(), path: path.clone() };
        if path.exists() {
            // A process that stopped here has not created a container.
            let unmade = |state: &PodState| {
                state.transient || matches!(state.status.as_str(), "" | "creating" | "starting")
            };
            let left = directory.read().ok().filter(unmade);
            let Some(left) = left.filter(|_| directory.is_container() && !directory.is_held()) else {
                return Err(StateError::ContainerExists(id.to_owned()));
            };
            // A cgroup that is still in use does not prevent the new container.
            left.cgroup.remove().unwrap_or_else(|error| log::warn!("{error}"));
            directory.delete(&PodState { cgroup: Cgroup::default(), ..left })?;
        }
        DirBuilder::new().mode(0o700).create(&path).map_err(HostError::at("create", &path))?;
        let path = path.join(LOCK);
        let hold = || {
            let mut file = File::create(&path)?;
            // Waits for a client that looks at this moment whether the lock is held.
            file.lock()?;
            write!(file, "{}", std::process::id())?;
            Ok(file)
        };
        let held = hold().map_err(|error: io::Error| {
            // Usually because the disk is full. An unclaimed directory would not be removed later.
            let _ = directory.remove();
            HostError::at("lock", &path)(error)
        })?;
        drop(root);
        Ok((directory, held))
    }

    /// Returns the directory of a container that process `pid` claimed, or began to claim before it was killed.
    pub fn claimed_by(&self, id: &str, pid: u32) -> Option<StateDir> {
        // The lock prevents other claims meanwhile.
        let _root = self.lock().ok()?;
        let claimed = |directory: &StateDir| {
            let holder = fs::read_to_string(directory.path.join(LOCK)).unwrap_or_default();
            holder == pid.to_string() || holder.is_empty() && directory.is_container() && !directory.is_held()
        };
        self.open(id).ok().filter(claimed)
    }

    /// Waits for a claim in progress, whose directory exists before its process holds a lock there.
    pub fn wait_for_claims(&self) -> Result<()> {
        self.lock().map(drop)
    }

    fn lock(&self) -> Result<File> {
        self.check()?;
        let path = self.0.join(ROOT_LOCK);
        let file = File::create(&path).and_then(|file| file.lock().map(|()| file));
        Ok(file.map_err(HostError::at("lock", &path))?)
    }

    /// Returns an OCI container's directory. Fails for a pod's directory, which has no lock that shows whether the
    /// process lives.
    pub fn container(&self, id: &str) -> Result<StateDir> {
        match self.open(id) {
            Ok(found) if found.is_container() => Ok(found),
            Ok(_) | Err(StateError::Unknown(_)) => Err(StateError::NoContainer(id.to_owned())),
            Err(other) => Err(other),
        }
    }

    pub fn open(&self, id: &str) -> Result<StateDir> {
        self.check()?;
        let path = self.0.join(id);
        if is_id(id) && path.is_dir() {
            Ok(StateDir { id: id.to_owned(), path })
        } else {
            Err(StateError::Unknown(id.to_owned()))
        }
    }

    /// Refuses a root in which other users could create pods or exchange them: a state names processes, cgroups and
    /// namespaces, which this process kills, removes and enters. A root that does not exist is no pod's.
    fn check(&self) -> Result<()> {
        let Ok(metadata) = fs::metadata(&self.0) else { return Ok(()) };
        if metadata.uid() != sys::effective_user() {
            return Err(StateError::Foreign { path: self.0.clone(), owner: metadata.uid() });
        }
        if metadata.mode() & WRITABLE_BY_ALL != 0 {
            return Err(StateError::Public(self.0.clone()));
        }
        Ok(())
    }

    /// Returns every pod's directory, sorted by name.
    pub fn list(&self) -> Result<Vec<StateDir>> {
        self.check()?;
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(HostError::at("list", &self.0)(error).into()),
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut found: Vec<StateDir> = names.filter_map(|id| self.open(&id).ok()).collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }
}

/// Removes what a killed process of an OCI container left in its network namespace. The state does not tell: it says
/// `stopped` before the machine's taps are removed, and `vmm start` may kill the process in between.
fn clear_network(state: &PodState) {
    let path = state.oci.as_ref().and_then(|oci| oci.network.as_deref());
    if let Some(path) = path.filter(|path| path.exists()) {
        match network::remove_leftovers(path) {
            // The host's own namespace: the container was refused and left nothing there.
            Ok(()) | Err(NetworkError::HostNamespace(_)) => {}
            Err(error) => log::warn!("clear the network namespace {}: {error}", path.display()),
        }
    }
}

#[derive(Clone, Debug)]
pub struct StateDir {
    pub id: String,
    path: PathBuf,
}

impl StateDir {
    pub fn listen(&self) -> Result<UnixListener, HostError> {
        let listener = self.at_socket(UnixListener::bind).map_err(HostError::at("listen in", &self.path))?;
        listener.set_nonblocking(true).map_err(HostError::at("listen in", &self.path))?;
        Ok(listener)
    }

    pub fn connect(&self) -> Result<UnixStream> {
        self.connect_within(deadlines::ANSWER)
    }

    fn connect_within(&self, patience: Duration) -> Result<UnixStream> {
        match self.at_socket(|path| sys::connect(&path, patience)) {
            Ok(stream) => Ok(stream),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) =>
            {
                Err(StateError::Stopped(self.id.clone()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(StateError::Silent { id: self.id.clone(), after: patience })
            }
            Err(error) => Err(HostError::at("connect to the pod in", &self.path)(error).into()),
        }
    }

    /// Whether the pod's process listens.
    pub fn is_living(&self) -> bool {
        match self.is_container() {
            true => self.is_held(),
            // A full queue means that a process listens and does not accept.
            false => matches!(self.connect_within(Duration::ZERO), Ok(_) | Err(StateError::Silent { .. })),
        }
    }

    /// Returns the pod's process if it exists, even if it does not answer.
    pub fn process(&self) -> Result<Option<OwnedFd>> {
        let locked = fs::read_to_string(self.path.join(LOCK)).ok().and_then(|text| text.parse().ok());
        let Some(pid) = locked.or(Some(self.read()?.pid)).filter(|pid| *pid != 0) else { return Ok(None) };
        match sys::process(pid) {
            // The process is alive after the open, so the id has not been reused.
            Ok(process) => Ok(Some(process).filter(|_| self.is_living())),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(HostError::at("find the process of", &self.path)(error).into()),
        }
    }

    /// Whether the directory belongs to an OCI container, or to the beginning of one.
    fn is_container(&self) -> bool {
        let empty = || fs::read_dir(&self.path).is_ok_and(|mut entries| entries.next().is_none());
        // In this order: a claim that is in progress creates the lock in the empty directory.
        empty() || self.path.join(LOCK).exists()
    }

    /// Whether an OCI container's process exists, even if it does not listen yet.
    pub fn is_held(&self) -> bool {
        match File::open(self.path.join(LOCK)) {
            Ok(file) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
            Err(_) => false,
        }
    }

    /// Waits until an OCI container's process has ended, at most for `patience`.
    pub fn wait_until_released(&self, patience: Duration) -> Result<()> {
        if !self.is_held() {
            return Ok(());
        }
        let path = self.path.join(LOCK);
        let (send, receive) = channel();
        let lock = path.clone();
        let wait = move || File::open(&lock).and_then(|file| file.lock_shared());
        // The waiting thread may outlive this call. It ends with the process.
        let waiter = Builder::new().spawn(move || send.send(wait()));
        let waited =
            waiter.map(|_| receive.recv_timeout(patience)).map_err(HostError::at("wait for", &path))?;
        match waited {
            Ok(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                Err(HostError::at("lock", &path)(error).into())
            }
            Ok(_) => Ok(()),
            Err(_) => Err(StateError::Lasting { id: self.id.clone(), after: patience }),
        }
    }

    /// Binds or connects through a descriptor of the directory, because a socket's address is too short for some paths.
    fn at_socket<T>(&self, call: impl FnOnce(PathBuf) -> io::Result<T>) -> io::Result<T> {
        let directory = File::open(&self.path)?;
        call(PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd())))
    }

    /// Returns the directory that contains this one.
    pub fn root(&self) -> PathBuf {
        self.path.parent().unwrap_or(&self.path).to_owned()
    }

    pub fn log(&self, container: &str) -> PathBuf {
        self.path.join(LOGS).join(format!("{container}-json.log"))
    }

    /// Opens the log of the pod's own background process.
    pub fn own_log(&self) -> Result<File, HostError> {
        let path = self.path.join("vmm.log");
        File::options().append(true).create(true).open(&path).map_err(HostError::at("open", &path))
    }

    /// Writes the state atomically.
    pub fn write(&self, state: &PodState) -> Result<(), HostError> {
        let (path, next) = (self.path.join(STATE), self.path.join("state.json.next"));
        let text = serde_json::to_vec(state).map_err(HostError::at("write", &path))?;
        fs::write(&next, text).map_err(HostError::at("write", &next))?;
        fs::rename(&next, &path).map_err(HostError::at("replace", &path))
    }

    /// Reads the state. The status of a pod that has ended is `stopped`, whatever was written.
    pub fn read(&self) -> Result<PodState, HostError> {
        use std::io::Read;
        let path = self.path.join(STATE);
        let mut text = Vec::new();
        let state = match File::open(&path).and_then(|file| file.take(STATE_MAX).read_to_end(&mut text)) {
            Ok(_) => serde_json::from_slice(&text).map_err(HostError::at("parse", &path))?,
            // The process ended before it wrote a state.
            Err(error) if error.kind() == io::ErrorKind::NotFound => PodState::default(),
            Err(error) => return Err(HostError::at("read", &path)(error)),
        };
        Ok(PodState { id: self.id.clone(), ..state })
    }

    /// Returns the last written state, whether the process lives or not, without a request to it. That of a container
    /// which has joined a machine is complete with its part of the machine's state.
    pub fn look(&self) -> Result<PodState, HostError> {
        let state = self.read()?;
        if !self.is_living() {
            return Ok(state.stopped());
        }
        if state.joined.is_empty() || state.status == CREATING {
            return Ok(state);
        }
        let machine = self.beside(&state.joined).look()?;
        Ok(state.in_machine(machine))
    }

    /// Returns the directory of the machine in which the container runs: its own, or that of the container that it joined.
    pub fn machine(&self) -> Result<StateDir, HostError> {
        let state = self.read()?;
        Ok(if state.joined.is_empty() { self.clone() } else { self.beside(&state.joined) })
    }

    fn beside(&self, id: &str) -> StateDir {
        StateDir { id: id.to_owned(), path: self.root().join(id) }
    }

    pub fn stop_listening(&self) {
        // A client that comes meanwhile finds a socket without a listener, which means the same.
        let _ = fs::remove_file(self.path.join(SOCKET));
    }

    /// Deletes what an OCI container with this state left on the host. The directory goes last, so that a deletion that
    /// failed can be repeated.
    pub fn delete(&self, state: &PodState) -> Result<()> {
        clear_network(state);
        self.delete_own(state)
    }

    /// Like [`delete`](Self::delete), for a process that has removed its own network.
    pub fn delete_own(&self, state: &PodState) -> Result<()> {
        state.cgroup.remove()?;
        Ok(self.remove()?)
    }

    /// Removes the directory with its contents.
    pub fn remove(&self) -> Result<(), HostError> {
        match self.remove_all() {
            // Another process has removed it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(HostError::at("remove", &self.path)),
        }
    }

    /// Removes the contents in an order that another process can continue. The state goes first: a directory without a
    /// state is not a container. The lock goes last, because it marks the directory as a container's.
    fn remove_all(&self) -> io::Result<()> {
        remove_if_there(&self.path.join(STATE))?;
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.is_dir() {
                fs::remove_dir_all(&path)?;
            } else if !path.ends_with(LOCK) {
                remove_if_there(&path)?;
            }
        }
        remove_if_there(&self.path.join(LOCK))?;
        fs::remove_dir(&self.path)
    }
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Maximum length of a container id, which becomes a name in the share.
const ID_MAX: usize = 128;

/// Whether `id` is a valid id, and so a valid file name.
pub(crate) fn is_id(id: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    (1..=ID_MAX).contains(&id.len()) && !id.starts_with('.') && id.bytes().all(fits)
}

#[cfg(test)]
mod tests;
