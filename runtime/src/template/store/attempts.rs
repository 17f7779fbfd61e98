//! Attempts to make a template without being asked: a file for each key says when the last one began, and why it failed.

use std::fs::{self, DirEntry, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use host::HostError;

use super::{Result, Store};
use crate::template::Key;

/// Prefix of the files' names.
const ATTEMPT: &str = ".tried-";
/// After an attempt, no other one for the same key is made for this time.
pub const RETRY: Duration = Duration::from_secs(3600);
/// Limit of a reason's length in bytes.
const REASON_MAX: u64 = 4096;

impl Store {
    /// Claims the making of the template with this key. Only one process gets it, and no other one before [`RETRY`] has passed,
    /// unless the attempt is [taken back](Self::forget).
    pub fn claim(&self, key: &Key) -> Result<bool> {
        let path = self.attempt(key);
        let create = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let created = match create() {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if is_recent(&path, RETRY) {
                    return Ok(false);
                }
                let _ = fs::remove_file(&path);
                create()
            }
            created => created,
        };
        match created {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(HostError::at("create", &path)(error).into()),
        }
    }

    /// Takes an attempt back.
    pub fn forget(&self, key: &Key) {
        let _ = fs::remove_file(self.attempt(key));
    }

    /// Records why an attempt failed, and lets another one begin after `pause`.
    pub fn fail(&self, key: &Key, why: &str, pause: Duration) -> Result<()> {
        let path = self.attempt(key);
        let write = || -> io::Result<()> {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
            let mut file = options.open(&path)?;
            // Without the text the file still says when.
            let written = file.write_all(why.as_bytes());
            let before = SystemTime::now().checked_sub(RETRY.saturating_sub(pause));
            before.map_or(Ok(()), |time| file.set_modified(time))?;
            written
        };
        Ok(write().map_err(HostError::at("write", &path))?)
    }

    /// Returns why the making of templates failed lately.
    pub fn failures(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let attempts = entries.filter(is_attempt);
        let reason = |entry: fs::DirEntry| {
            let mut text = String::new();
            let file =
                OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(entry.path()).ok()?;
            file.take(REASON_MAX).read_to_string(&mut text).ok()?;
            Some(text).filter(|text| !text.is_empty())
        };
        attempts.filter_map(reason).collect()
    }

    /// Removes the records of attempts, only those that are older than `age` if it is given.
    pub fn forget_attempts(&self, age: Option<Duration>) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten().filter(is_attempt) {
            if age.is_none_or(|age| !is_recent(&entry.path(), age)) {
                // Another process may have removed it.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn attempt(&self, key: &Key) -> PathBuf {
        self.path.join(format!("{ATTEMPT}{}", key.name()))
    }
}

fn is_attempt(entry: &DirEntry) -> bool {
    entry.file_name().as_encoded_bytes().starts_with(ATTEMPT.as_bytes())
}

/// Whether the file `path` was written within the last `time`. One with a time in the future was not: the clock was set.
pub fn is_recent(path: &Path, time: Duration) -> bool {
    let written = fs::symlink_metadata(path).and_then(|data| data.modified());
    written.is_ok_and(|written| written.elapsed().is_ok_and(|age| age < time))
}
