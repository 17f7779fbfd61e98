//! Unique inode numbers for the guest, which sees a single file system where the host has several.

use std::collections::HashMap;

use crate::share::errno::{Errno, Result};
use crate::share::operations::Key;

/// Number of low bits of a host inode number that are passed on unchanged.
const LOW_BITS: u32 = 48;
/// Limit of prefixes. A prefix represents a device and the upper bits of an inode number, which overlayfs uses for its
/// layers.
const MAX_PREFIXES: usize = (1 << (u64::BITS - LOW_BITS)) - 1;

/// The prefixes assigned so far. Prefix 0 belongs to the virtual directories.
#[derive(Default)]
pub struct Numbers(HashMap<(u64, u64), u64>);

impl Numbers {
    /// Returns the guest's number for a file of the host, always the same. The guest's cache relies on unique numbers,
    /// so a file is refused when there is no prefix left for it.
    pub fn of_host(&mut self, (device, number): (u64, u64)) -> Result<u64> {
        let next = self.0.len() as u64 + 1;
        let key = (device, number >> LOW_BITS);
        let prefix = match self.0.get(&key) {
            Some(prefix) => *prefix,
            None if self.0.len() == MAX_PREFIXES => return Err(Errno(libc::EOVERFLOW)),
            None => *self.0.entry(key).or_insert(next),
        };
        Ok(prefix << LOW_BITS | number & ((1 << LOW_BITS) - 1))
    }

    /// Returns the guest's number for an entry with inode number `number` of the directory `dir`. It assumes the
    /// directory's device, which is wrong only for mount points.
    pub fn below(&mut self, dir: Key, number: u64) -> Result<u64> {
        match dir {
            Key::Virtual(_) => Ok(Numbers::of_virtual(number)),
            Key::Host((device, _)) => self.of_host((device, number)),
        }
    }

    /// Returns the guest's number for a virtual directory.
    pub fn of_virtual(number: u64) -> u64 {
        number & ((1 << LOW_BITS) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_two_devices_never_share_a_number() {
        let mut numbers = Numbers::default();
        let all: Vec<u64> = [(1, 7), (2, 7), (1, 7 | 1 << 60), (1, 8)]
            .into_iter()
            .map(|key| numbers.of_host(key).unwrap())
            .chain([Numbers::of_virtual(7)])
            .collect();
        for (index, number) in all.iter().enumerate() {
            assert!(!all[..index].contains(number), "{number:x}");
        }
        assert_eq!(numbers.of_host((2, 7)), Ok(all[1]));
    }

    #[test]
    fn a_device_too_many_is_refused() {
        let mut numbers = Numbers::default();
        for device in 0..MAX_PREFIXES as u64 {
            numbers.of_host((device, 1)).unwrap();
        }
        assert_eq!(numbers.of_host((u64::MAX, 1)), Err(Errno(libc::EOVERFLOW)));
        assert!(numbers.of_host((5, 2)).is_ok());
    }
}
