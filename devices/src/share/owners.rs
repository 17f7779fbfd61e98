//! The owners of files, as the guest sees them.

use super::sys;

/// The mapping of user and group IDs between host and guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// Identity: the server runs as root.
    Host,
    /// The server runs as this unprivileged user and group, which own all files that the guest creates. In the guest
    /// they are root, and all other users are nobody, as in a user namespace with a single mapping.
    Single(u32, u32),
}

/// User and group ID in the guest of all IDs without a mapping.
const NOBODY: u32 = 65534;

impl Owners {
    /// Returns the mapping for the effective user of this process.
    pub fn of_process() -> Owners {
        match sys::effective_ids() {
            (0, _) => Owners::Host,
            (uid, gid) => Owners::Single(uid, gid),
        }
    }

    /// Returns the user and group ID in the guest for those of a host file.
    pub fn to_guest(self, uid: u32, gid: u32) -> (u32, u32) {
        match self {
            Owners::Host => (uid, gid),
            Owners::Single(our_uid, our_gid) => {
                let map = |id, ours| if id == ours { 0 } else { NOBODY };
                (map(uid, our_uid), map(gid, our_gid))
            }
        }
    }
}
