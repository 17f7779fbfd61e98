//! Files that the guest reads without having opened them (FUSE_UNOPENED).
//!
//! The guest's kernel checks the permissions, and is told when the host changes such a file
//! ([`Attributes::lasting`](super::attributes::Attributes::lasting)), so an open without writing tells the server nothing
//! new. A process that opens, reads and closes a file whose pages the guest has then costs no request. The first READ opens
//! the file here. It stays open for further ones until the guest has read [`MAX_UNOPENED`] others, or forgets the inode.
//!
//! An open file of the host would survive the removal of its name, and so must this one: the inode of each file that the
//! guest may read in this way keeps its descriptor. Only as long as descriptors are not scarce are inodes given that right
//! ([`Table::keep`](super::table::Table::keep)).

use std::collections::VecDeque;

mod operations;

/// Limit of files that stay open for the next READ.
pub const MAX_UNOPENED: usize = 64;

/// The files that are open for the next READ, each with the number of its node and of the open file, oldest use first.
#[derive(Default)]
pub struct Unopened(VecDeque<(u64, u64)>);

impl Unopened {
    /// Removes the open file of a node. Returns its number.
    fn take(&mut self, node: u64) -> Option<u64> {
        let at = self.0.iter().rposition(|(known, _)| *known == node)?;
        self.0.remove(at).map(|(_, handle)| handle)
    }

    /// Adds the open file of a node as the one that was used last. Returns the oldest one if there are too many.
    fn put(&mut self, node: u64, handle: u64) -> Option<(u64, u64)> {
        self.0.push_back((node, handle));
        if self.0.len() > MAX_UNOPENED { self.0.pop_front() } else { None }
    }

    /// Forgets all open files, when the guest starts a new session.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
