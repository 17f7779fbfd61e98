//! The flags of files that chattr(1) and lsattr(1) use, and the extended ones of XFS, which all file systems share.

use std::os::fd::AsFd;

use super::errno::Result;
use super::operations::{OpenFile, Operations};
use super::sys;

/// An ioctl that reads or sets flags (include/uapi/linux/fs.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagsCommand {
    /// FS_IOC_GETFLAGS.
    Get,
    /// FS_IOC_SETFLAGS.
    Set,
    /// FS_IOC_FSGETXATTR.
    GetExtended,
    /// FS_IOC_FSSETXATTR.
    SetExtended,
}

impl FlagsCommand {
    /// Limit of [`FlagsCommand::len`].
    pub const MAX_LEN: usize = 28;

    /// Returns the command with this number.
    pub fn of(number: u32) -> Option<FlagsCommand> {
        [FlagsCommand::Get, FlagsCommand::Set, FlagsCommand::GetExtended, FlagsCommand::SetExtended]
            .into_iter()
            .find(|command| command.number() == number)
    }

    /// The number of the ioctl.
    pub(super) fn number(self) -> u32 {
        match self {
            FlagsCommand::Get => 0x8008_6601,
            FlagsCommand::Set => 0x4008_6602,
            FlagsCommand::GetExtended => 0x801c_581f,
            FlagsCommand::SetExtended => 0x401c_5820,
        }
    }

    /// Length of the data in bytes: a word of flags, in spite of the size in the number, or `struct fsxattr`.
    pub fn len(self) -> usize {
        match self {
            FlagsCommand::Get | FlagsCommand::Set => 4,
            FlagsCommand::GetExtended | FlagsCommand::SetExtended => FlagsCommand::MAX_LEN,
        }
    }

    /// Whether the command changes flags.
    pub fn sets(self) -> bool {
        matches!(self, FlagsCommand::Set | FlagsCommand::SetExtended)
    }
}

impl Operations {
    /// Reads or sets the flags of an open file. The host's file system decides which flags there are. The server has no
    /// CAP_LINUX_IMMUTABLE, so the guest cannot leave files that root cannot remove.
    pub fn flags(&mut self, file: OpenFile, command: FlagsCommand, data: &mut [u8]) -> Result<()> {
        let handle = self.handle(file)?;
        if command.sets() {
            handle.inode.writable()?;
        }
        sys::flags(handle.file.as_fd(), command.number(), data)
    }
}
