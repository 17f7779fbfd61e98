//! How the mount of a directory that is bound to a path of the share is copied.

/// The copy of a directory's mount from which the directory is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountCopy {
    /// The copy does not include the mounts below the directory.
    pub single: bool,
    /// What reading does to access times; `None` for what the host's mounts say.
    pub access_time: Option<AccessTime>,
    /// The copy is read-only, and the mounts below it keep their options. Without a copy the bind is read-only as a whole.
    pub read_only: bool,
}

/// What reading does to access times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessTime {
    /// MOUNT_ATTR_NOATIME, _STRICTATIME, _RELATIME and _NODIRATIME, as far as they are set.
    pub attributes: u64,
    /// They apply to the mounts below as well.
    pub recursive: bool,
}
