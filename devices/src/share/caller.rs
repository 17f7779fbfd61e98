//! Who asks the file server.

/// The process in the guest for which the server acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User ID in the guest.
    pub uid: u32,
    /// Group ID in the guest.
    pub gid: u32,
}

impl Caller {
    /// Root, for which the server acts without a caller.
    pub const ROOT: Caller = Caller { uid: 0, gid: 0 };
}
