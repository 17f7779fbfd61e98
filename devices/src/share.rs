//! Directories and files of the host that a guest may use: a tree of binds, and what the guest knows of it.
//!
//! Nothing here belongs to a protocol. The servers in [`crate::virtio::fs`] (FUSE) and [`crate::virtio::p9`] (9P2000.L)
//! translate their requests.
//!
//! Read in this order: [`tree`], [`nodes`], `table`, `inode`, `identity`, `cursor`, `owners`, `credentials`.

pub(crate) mod credentials;
pub(crate) mod cursor;
pub(crate) mod errno;
pub(crate) mod identity;
pub(crate) mod inode;
pub(crate) mod magic_link;
pub mod nodes;
pub(crate) mod owners;
pub(crate) mod sys;
pub(crate) mod table;
pub mod tree;

pub use nodes::{NodeKind, NodePolicy, NodeRule};
pub use tree::{ShareError, ShareTree, Terms};
