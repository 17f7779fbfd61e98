//! A virtqueue with its one owner.

/// Placeholder.
pub struct VirtQueue {}
