//! The directory of a user's templates.
//!
//! Its files are used only if they belong to this process's user and nobody else can write to them: whoever writes a
//! template determines what the guest's kernel does.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use host::{HostError, sys};
use vmm::{Snapshot, SnapshotError, snapshot};

use super::Key;

const STATE: &str = "state";
const MEMORY: &str = "memory";
const LOCK: &str = "lock";
/// Prefix of directories in which templates are made.
const DRAFT: &str = ".new-";
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
}

impl Store {
    /// Returns the directory that was given, or the user's: below /var/lib/vmm for root, otherwise in the cache directory.
    /// `lookup` reads the environment.
    pub fn new(given: Option<PathBuf>, lookup: impl Fn(&str) -> Option<OsString>) -> Store {
        let own = || {
            if sys::effective_user() == 0 {
                return PathBuf::from("/var/lib/vmm/templates");
            }
            let home = || lookup("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from).join(".cache");
            lookup("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("vmm/templates")
        };
        Store { path: given.unwrap_or_else(own) }
    }

    pub fn path(&self) -> &Path {
        &self.path
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
        let made = fs::symlink_metadata(&path).ok()?.modified().ok()?;
        Some((blocks(MEMORY) + blocks(STATE), made))
    }

    /// Locks the directory, after creating it if there is none, and removes what killed processes left in it.
    pub fn lock(&self) -> Result<Locked<'_>> {
        let create = HostError::at("create", &self.path);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(create)?;
        check(&self.path, &fs::symlink_metadata(&self.path).map_err(HostError::at("open", &self.path))?)?;
        let path = self.path.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .and_then(|file| file.lock().map(|()| file))
            .map_err(HostError::at("lock", &path))?;
        let locked = Locked { store: self, _lock: file };
        for entry in fs::read_dir(&self.path).map_err(HostError::at("list", &self.path))?.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(DRAFT.as_bytes()) {
                remove(&entry.path())?;
            }
        }
        Ok(locked)
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

    /// Gives a template its state, writes it to the disk, and lets it be found as `key`'s, in place of one that was there.
    pub fn finish(&self, mut draft: Draft, snapshot: &Snapshot, key: &Key) -> Result<PathBuf> {
        let path = draft.path.join(STATE);
        let step = || HostError::at("write", &path);
        let mut state = create(&path)?;
        state.write_all(&snapshot.encode()).map_err(step())?;
        state
            .set_permissions(Permissions::from_mode(0o400))
            .and_then(|()| state.sync_all())
            .map_err(step())?;
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
fn check(path: &Path, metadata: &fs::Metadata) -> Result<()> {
    if metadata.uid() != sys::effective_user() {
        return Err(refused(path, format!("it belongs to user {}", metadata.uid())));
    }
    if metadata.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(refused(path, "others can write to it"));
    }
    Ok(())
}

/// Opens a file of a template.
fn open_file(path: &Path) -> Result<File> {
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
