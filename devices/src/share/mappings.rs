//! Shared mappings that write to a file: one machine at a time has them.
//!
//! The memory of two guests is not one memory. If both had a file mapped and wrote through the mapping, neither would see
//! what the other one stores, and the pages that are written back last would win. So the guest's kernel asks before a file
//! is mapped shared and writable (resources/kernel/patches/fuse-mapping.patch), and the answer is no while another machine
//! has it mapped so. The guest keeps the permission until it closes the open file.
//!
//! Machines agree through locks of the host (fcntl(2) with F_OFD_SETLK) in one file, the registry: each file has a byte in
//! it, whose number is a hash of its device and inode number. The registry has no data. A machine that is killed loses its
//! locks, because its descriptors are closed. The registry is made when a machine first needs it, and stays. Two files can share a byte, and then one of them cannot be mapped; with 63
//! bits that is improbable enough.
//!
//! A process of the host that has mapped a file cannot be seen. If it has also locked a part of it, as SQLite and LMDB do,
//! the guest may not map the file. A process of the host that comes later is not refused.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use super::errno::{Errno, Result};
use super::sys;

mod operations;

/// Limit of files of which a guest has such mappings. The host's kernel searches all locks of the registry for each new
/// one.
pub const MAX_MAPPED: usize = 1 << 14;

/// Name of the registry in its directory.
const NAME: &std::ffi::CStr = c".mappings";

type Key = (u64, u64);

/// The files that the guest has mapped shared and writable.
#[derive(Default)]
pub struct Mappings(Arc<Mutex<Mapped>>);

#[derive(Default)]
struct Mapped {
    /// `None` if the machine is alone.
    registry: Option<Registry>,
    /// Number of open files that are mapped, by device and inode number.
    files: HashMap<Key, usize>,
}

/// The file through which machines agree.
struct Registry {
    /// The directory of the registry's directory.
    parent: OwnedFd,
    /// Name of the registry's directory.
    directory: CString,
    file: Option<OwnedFd>,
}

impl Registry {
    /// Returns the file. Creates it and its directory if they are missing.
    fn file(&mut self) -> Result<BorrowedFd<'_>> {
        if self.file.is_none() {
            match sys::mkdirat(self.parent.as_fd(), &self.directory, 0o700) {
                Ok(()) | Err(Errno(libc::EEXIST)) => {}
                Err(errno) => return Err(errno),
            }
            let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
            let directory = sys::openat(self.parent.as_fd(), &self.directory, flags, 0)?;
            let flags = libc::O_RDWR | libc::O_CREAT | libc::O_NOFOLLOW;
            self.file = Some(sys::openat(directory.as_fd(), NAME, flags, 0o600)?);
        }
        Ok(self.file.as_ref().expect("it was opened").as_fd())
    }
}

/// RAII guard: the guest may have the file mapped.
pub struct Mapping {
    mappings: Arc<Mutex<Mapped>>,
    key: Key,
}

impl Mappings {
    /// Sets the directory of the file through which machines agree: `directory` in `parent`.
    pub fn set_registry(&self, parent: OwnedFd, directory: CString) {
        self.0.lock().unwrap().registry = Some(Registry { parent, directory, file: None });
    }

    /// Whether the guest has the file mapped.
    fn has(&self, key: Key) -> bool {
        self.0.lock().unwrap().files.contains_key(&key)
    }

    /// Lets the guest map a file, or returns EAGAIN if another machine has it mapped.
    pub(super) fn add(&self, key: Key) -> Result<Mapping> {
        let mut mapped = self.0.lock().unwrap();
        if !mapped.files.contains_key(&key) {
            if mapped.files.len() >= MAX_MAPPED {
                return Err(Errno(libc::ENOMEM));
            }
            if let Some(registry) = &mut mapped.registry {
                sys::lock::set_range(registry.file()?, libc::F_WRLCK, place(key), 1)?;
            }
        }
        *mapped.files.entry(key).or_default() += 1;
        Ok(Mapping { mappings: self.0.clone(), key })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let mut mapped = self.mappings.lock().unwrap();
        let left = mapped.files.get_mut(&self.key).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            mapped.files.remove(&self.key);
            if let Some(registry) = &mut mapped.registry
                && let Err(errno) = registry
                    .file()
                    .and_then(|file| sys::lock::set_range(file, libc::F_UNLCK, place(self.key), 1))
            {
                log::warn!("file server: give up a mapping: {}", std::io::Error::from(errno));
            }
        }
    }
}

/// Returns the byte of a file in the registry. Every version of the program must use the same one.
fn place((device, inode): Key) -> u64 {
    // The finalizer of MurmurHash3.
    let mix = |mut value: u64| {
        value = (value ^ (value >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        value = (value ^ (value >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        value ^ (value >> 33)
    };
    mix(mix(device) ^ inode) >> 2
}

/// Whether a process of the host has locked a range of the file by fcntl(2) without F_OFD_. Programs that share memory
/// through a file agree by such locks in it, as SQLite and LMDB do, and locks of machines are of another kind.
fn is_locked_by_a_process(file: BorrowedFd) -> bool {
    let found = sys::lock::get_range(file, libc::F_WRLCK, 0, 0);
    matches!(found, Ok(Some(lock)) if lock.l_pid != -1)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_file_that_one_machine_maps_is_refused_to_another_until_it_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let machine = || {
            let mappings = Mappings::default();
            mappings.set_registry(File::open(dir.path()).unwrap().into(), c"vmm".into());
            mappings
        };
        let (one, two) = (machine(), machine());
        assert!(!dir.path().join("vmm").exists(), "a machine that maps nothing leaves nothing");
        let (first, second) = (one.add((1, 2)).unwrap(), one.add((1, 2)).unwrap());
        assert_eq!(two.add((1, 2)).err(), Some(Errno(libc::EAGAIN)));
        assert!(two.add((1, 3)).is_ok() && two.add((2, 2)).is_ok());
        drop(first);
        assert_eq!(two.add((1, 2)).err(), Some(Errno(libc::EAGAIN)));
        drop(second);
        let theirs = two.add((1, 2)).unwrap();
        assert_eq!(one.add((1, 2)).err(), Some(Errno(libc::EAGAIN)));
        drop((theirs, two));
        assert!(one.add((1, 2)).is_ok());
    }

    #[test]
    fn the_number_of_mapped_files_is_limited() {
        let mappings = Mappings::default();
        let all: Vec<_> = (0..MAX_MAPPED as u64).map(|inode| mappings.add((0, inode)).unwrap()).collect();
        assert_eq!(mappings.add((1, 0)).err(), Some(Errno(libc::ENOMEM)));
        assert!(mappings.add((0, 5)).is_ok());
        drop(all);
        assert!(mappings.add((1, 0)).is_ok());
    }
}
