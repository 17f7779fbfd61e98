//! The directory of a user's templates.
//!
//! Its files are used only if they belong to this process's user and nobody else can write to them: whoever writes a
//! template determines what the guest's kernel does.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use host::user::User;
use host::{HostError, sys};
use vmm::{Snapshot, SnapshotError, snapshot};

use super::Key;

mod attempts;

pub use attempts::RETRY;
use attempts::is_recent;

const STATE: &str = "state";
const MEMORY: &str = "memory";
const LOCK: &str = "lock";
/// Prefix of directories in which templates are made.
const DRAFT: &str = ".new-";
/// How exactly the last use of a template is known. A more exact time would be a write for each start.
const USED: Duration = Duration::from_secs(3600);
/// Mode bits with which others than the owner can write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("{}: {why}", path.display())]
    Refused { path: PathBuf, why: String },
    #[error("{}", path.display())]
    Snapshot {
        path: PathBuf,
        #[source]
        source: SnapshotError,
    },
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A template that can be used.
#[derive(Debug)]
pub struct Found {
    pub path: PathBuf,
    pub snapshot: Snapshot,
    pub memory: File,
}

/// The directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Default))]
pub struct Store {
    path: PathBuf,
    /// Limit of the templates' size on the disk in bytes.
    limit: u64,
}

impl Store {
    /// Returns the directory that was given, or the user's: below /var/lib/vmm for root, otherwise in the cache directory, also for
    /// root of a user namespace that an ordinary user made.
    /// Its templates may have `limit` bytes. `lookup` reads the environment.
    pub fn new(given: Option<PathBuf>, limit: u64, lookup: impl Fn(&str) -> Option<OsString>) -> Store {
        let own = || {
            if !User::of_process().is_rootless(lookup("USER").as_deref()) {
                return PathBuf::from("/var/lib/vmm/templates");
            }
            let home = || lookup("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from).join(".cache");
            lookup("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("vmm/templates")
        };
        Store { path: given.unwrap_or_else(own), limit }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Whether there may be templates. Costs one system call, which is all that a machine pays if there are none.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Returns the template with this key; `None` if there is none.
    ///
    /// # Errors
    ///
    /// There is one, and it is not to be used: it is damaged, of another format, or others can write to it.
    pub fn find(&self, key: &Key) -> Result<Option<Found>> {
        let path = self.path.join(key.name());
        let Some(found) = open(&path)? else { return Ok(None) };
        if found.snapshot.label != key.text().as_bytes() {
            return Err(refused(&path, "it was made of something else"));
        }
        note_use(&path);
        Ok(Some(found))
    }

    /// Returns the names of all templates, in order.
    pub fn names(&self) -> Result<Vec<String>> {
        let step = HostError::at("list", &self.path);
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(step)?,
        };
        let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
        let mut names: Vec<String> = entries.filter_map(name).filter(|name| is_name(name)).collect();
        names.sort();
        Ok(names)
    }

    /// Opens the template with this name.
    pub fn open(&self, name: &str) -> Result<Option<Found>> {
        if !is_name(name) {
            return Ok(None);
        }
        open(&self.path.join(name))
    }

    /// Returns the size on the disk in bytes of the template with this name, and when it was made.
    pub fn measure(&self, name: &str) -> Option<(u64, SystemTime)> {
        let path = self.path.join(name);
        let blocks = |file| fs::symlink_metadata(path.join(file)).map_or(0, |data| data.blocks() * 512);
        let made = fs::symlink_metadata(path.join(STATE)).or_else(|_| fs::symlink_metadata(&path));
        Some((blocks(MEMORY) + blocks(STATE), made.ok()?.modified().ok()?))
    }

    /// Creates the directory if there is none.
    ///
    /// # Errors
    ///
    /// Also if others can change it.
    pub fn create(&self) -> Result<()> {
        let create = HostError::at("create", &self.path);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(create)?;
        check(&self.path, &fs::symlink_metadata(&self.path).map_err(HostError::at("open", &self.path))?)
    }

    /// Returns where templates are or will be written: the directory, or the one in which it will be created.
    ///
    /// # Errors
    ///
    /// This process's user cannot write there, or others can.
    pub fn place(&self) -> Result<StoreDir> {
        fn refuse(path: &Path) -> impl FnOnce(io::Error) -> HostError {
            HostError::at("write to", path)
        }
        let mut path = self.path.as_path();
        let metadata = loop {
            match fs::symlink_metadata(path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    path = path.parent().unwrap_or(Path::new("/"))
                }
                metadata => break metadata.map_err(refuse(path))?,
            }
        };
        if path == self.path {
            check(path, &metadata)?;
        }
        if !fs::metadata(path).map_err(refuse(path))?.is_dir() {
            return Err(refuse(path)(ErrorKind::NotADirectory.into()).into());
        }
        sys::check_writable(path).map_err(refuse(path))?;
        Ok(StoreDir(path.to_owned()))
    }

    /// Locks the directory, after creating it if there is none, and removes what killed processes left in it.
    pub fn lock(&self) -> Result<Locked<'_>> {
        self.create()?;
        let path = self.path.join(LOCK);
        let locked = open_lock(&path).and_then(|file| file.lock().map(|()| file));
        self.locked(locked.map_err(HostError::at("lock", &path))?)
    }

    /// Like [`lock`](Self::lock), but returns `None` if another process has locked the directory.
    pub fn try_lock(&self) -> Result<Option<Locked<'_>>> {
        self.create()?;
        let path = self.path.join(LOCK);
        let file = open_lock(&path).map_err(HostError::at("lock", &path))?;
        match file.try_lock() {
            Ok(()) => self.locked(file).map(Some),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(HostError::at("lock", &path)(error).into()),
        }
    }

    fn locked(&self, lock: File) -> Result<Locked<'_>> {
        let locked = Locked { store: self, _lock: lock };
        for entry in fs::read_dir(&self.path).map_err(HostError::at("list", &self.path))?.flatten() {
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(DRAFT.as_bytes()) {
                remove(&entry.path())?;
            }
        }
        self.forget_attempts(Some(RETRY));
        Ok(locked)
    }
}

/// A directory in which templates can be written.
pub struct StoreDir(PathBuf);

impl StoreDir {
    /// Tries whether the host can keep a file of this directory in large pages, with a file without a name.
    pub fn try_large_page(&self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(&self.0)?;
        file.write_all(&vec![1; snapshot::LARGE as usize])?;
        file.sync_all()?;
        let reopened = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        drop(file);
        snapshot::try_gather(&reopened)
    }
}

/// The directory while no other process makes or removes templates in it.
#[derive(Debug)]
pub struct Locked<'a> {
    store: &'a Store,
    _lock: File,
}

impl Locked<'_> {
    /// Begins a template: creates an empty file for its memory.
    pub fn begin(&self) -> Result<Draft> {
        let path = self.store.path.join(format!("{DRAFT}{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path).map_err(HostError::at("create", &path))?;
        // From here on removed when it is dropped.
        let mut draft = Draft { path, memory: None, kept: false };
        draft.memory = Some(create(&draft.path.join(MEMORY))?);
        Ok(draft)
    }

    /// Removes the least recently used templates, except `kept`, until `need` more bytes are within the limit.
    fn make_room(&self, need: u64, kept: &str) -> Result<()> {
        let limit = self.store.limit;
        if need > limit {
            let why =
                format!("a template of {} MiB is larger than the limit of {} MiB", need >> 20, limit >> 20);
            return Err(refused(&self.store.path, why));
        }
        let mut templates = Vec::new();
        for name in self.store.names()? {
            let used = fs::symlink_metadata(self.store.path.join(&name)).and_then(|data| data.modified());
            if let (Ok(used), Some((size, _))) = (used, self.store.measure(&name))
                && name != kept
            {
                templates.push((used, name, size));
            }
        }
        templates.sort();
        let mut total: u64 = templates.iter().map(|(_, _, size)| size).sum();
        for (_, name, size) in templates {
            if total + need <= limit {
                break;
            }
            self.remove(&name)?;
            total -= size;
        }
        Ok(())
    }

    /// Gives a template its state, writes it to the disk, and lets it be found as `key`'s, in place of one that was there. Others
    /// are removed if they leave no room.
    pub fn finish(&self, mut draft: Draft, snapshot: &Snapshot, key: &Key) -> Result<PathBuf> {
        let path = draft.path.join(STATE);
        let step = || HostError::at("write", &path);
        let mut state = create(&path)?;
        state.write_all(&snapshot.encode()).map_err(step())?;
        state
            .set_permissions(Permissions::from_mode(0o400))
            .and_then(|()| state.sync_all())
            .map_err(step())?;
        let len = |file: &File| file.metadata().map_or(0, |data| data.blocks() * 512);
        self.make_room(len(&state) + len(draft.memory()), &key.name())?;
        let place = self.store.path.join(key.name());
        remove(&place)?;
        fs::rename(&draft.path, &place).map_err(HostError::at("rename to", &place))?;
        draft.kept = true;
        let directory = File::open(&self.store.path).and_then(|directory| directory.sync_all());
        directory.map_err(HostError::at("write", &self.store.path))?;
        Ok(place)
    }

    /// Removes the template with this name. Machines that continue from it keep its memory.
    pub fn remove(&self, name: &str) -> Result<bool> {
        let path = self.store.path.join(name);
        if !is_name(name) || !path.is_dir() {
            return Ok(false);
        }
        remove(&path).map(|()| true)
    }
}

/// A template that is being made. Dropping it removes it.
#[derive(Debug)]
pub struct Draft {
    path: PathBuf,
    memory: Option<File>,
    kept: bool,
}

impl Draft {
    /// The directory, which becomes the template's.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file for the memory.
    pub fn memory(&self) -> &File {
        self.memory.as_ref().expect("a draft that was begun has a file")
    }

    /// Opens the file for reading only.
    pub fn reopen(&mut self) -> Result<()> {
        self.memory = Some(open_file(&self.path.join(MEMORY))?);
        Ok(())
    }

    /// Makes the memory's file unchangeable, with its content on the disk.
    pub fn seal(file: &File) -> io::Result<()> {
        file.set_permissions(Permissions::from_mode(0o400))?;
        file.sync_all()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = remove(&self.path) {
            log::warn!("{:#}", anyhow::Error::from(error));
        }
    }
}

/// Whether `name` is a template's: 16 hexadecimal digits.
fn is_name(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Records that a template is used: its directory's time says when, up to [`USED`].
fn note_use(path: &Path) {
    if !is_recent(path, USED) {
        // A store that cannot be written has no order.
        let _ = File::open(path).and_then(|directory| directory.set_modified(SystemTime::now()));
    }
}

/// Opens the file with whose lock one process at a time changes the directory.
fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

fn refused(path: &Path, why: impl Into<String>) -> StoreError {
    StoreError::Refused { path: path.to_owned(), why: why.into() }
}

fn create(path: &Path) -> Result<File> {
    let create = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    Ok(create.map_err(HostError::at("create", path))?)
}

/// Removes a directory with its files. It need not exist.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(HostError::at("remove", path)(error).into()),
        _ => Ok(()),
    }
}

/// Refuses what belongs to another user or what others can write to.
pub fn check(path: &Path, metadata: &fs::Metadata) -> Result<()> {
    if metadata.uid() != sys::effective_user() {
        return Err(refused(path, format!("it belongs to user {}", metadata.uid())));
    }
    if metadata.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(refused(path, "others can write to it"));
    }
    Ok(())
}

/// Opens a file of a template or a checkpoint.
pub fn open_file(path: &Path) -> Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(HostError::at("open", path))?;
    let metadata = file.metadata().map_err(HostError::at("open", path))?;
    if !metadata.is_file() {
        return Err(refused(path, "it is not a file"));
    }
    check(path, &metadata)?;
    Ok(file)
}

/// Opens the template in the directory `path`; `None` if there is no such directory.
fn open(path: &Path) -> Result<Option<Found>> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        metadata => check(path, &metadata.map_err(HostError::at("open", path))?)?,
    }
    let state = path.join(STATE);
    let mut bytes = Vec::new();
    let mut file = open_file(&state)?.take(snapshot::STATE_MAX + 1);
    file.read_to_end(&mut bytes).map_err(HostError::at("read", &state))?;
    let of_snapshot = |source| StoreError::Snapshot { path: path.to_owned(), source };
    let snapshot = Snapshot::decode(&bytes).map_err(of_snapshot)?;
    let memory = open_file(&path.join(MEMORY))?;
    snapshot.owns(&memory).map_err(of_snapshot)?;
    Ok(Some(Found { path: path.to_owned(), snapshot, memory }))
}

#[cfg(test)]
mod tests;
