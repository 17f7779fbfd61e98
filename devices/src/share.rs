//! Directories and files of the host that a guest may use: a tree of binds, and what the guest knows of it.
//!
//! Nothing here belongs to a protocol. The servers in [`crate::virtio::fs`] (FUSE) and [`crate::virtio::p9`] (9P2000.L)
//! translate their requests into the same operations and encode the results.
//!
//! An operation is a method of `operations::Operations`. It takes numbers of nodes and open files, checked names and
//! plain structures, and returns plain structures.
//!
//! Read in this order: [`tree`], `operations`, `entry`, [`nodes`], `file`, `fifo`, `sockets`, `unopened`, `locks`,
//! `lock_table`, `mappings`, `dir`, `attributes`, `xattr`, `chattr`, `table`, `watch`, `bind`, `inode`, `identity`, `handle`, `cursor`, `owners`,
//! `credentials`, `saved`.

pub(crate) mod attributes;
pub(crate) mod bind;
mod caller;
pub(crate) mod chattr;
mod credentials;
pub(crate) mod cursor;
pub(crate) mod dir;
pub(crate) mod entry;
pub(crate) mod errno;
pub(crate) mod fifo;
pub(crate) mod file;
pub(crate) mod handle;
pub(crate) mod identity;
pub(crate) mod inode;
mod lock_table;
pub(crate) mod locks;
mod magic_link;
mod mappings;
mod mount_copy;
pub(crate) mod names;
pub mod nodes;
pub(crate) mod operations;
mod owners;
mod saved;
pub mod sockets;
pub(crate) mod sys;
mod table;
#[cfg(test)]
pub(crate) mod testing;
pub mod tree;
pub(crate) mod unopened;
pub(crate) mod watch;
pub(crate) mod xattr;

pub use bind::Terms;
pub use mount_copy::{AccessTime, MountCopy};
pub use nodes::{NodeKind, NodePolicy, NodeRule};
pub(crate) use table::ROOT_ID;
pub use tree::{ShareError, ShareTree, detached};
