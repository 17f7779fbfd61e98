//! Requests about open files.

use super::server::{FuseServer, Request, take_name};
use super::wire::{
    CopyFileRangeIn, CreateIn, FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FSYNC_FDATASYNC, FallocateIn, FsyncIn,
    IoctlIn, IoctlOut, LseekIn, LseekOut, OPEN_KILL_SUIDGID, OpenIn, OpenOut, PollIn, PollOut, ReadIn,
    ReleaseIn, WRITE_CACHE, WRITE_KILL_SUIDGID, WriteIn, WriteOut,
};
use crate::pieces::Pieces;
use crate::share::chattr::FlagsCommand;
use crate::share::errno::{Errno, Result};
use crate::share::file::{Allocation, Cache, How, Opened, Position, Write};
use crate::share::operations::OpenFile;

impl FuseServer {
    pub(super) fn open(&mut self, request: &Request) -> Result<()> {
        let input = OpenIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let opened = self.share.open(request.nodeid, how(input.flags, input.open_flags))?;
        self.put_open(opened);
        Ok(())
    }

    fn put_open(&mut self, opened: Opened) {
        let open_flags = match opened.cache {
            Cache::Keep => FOPEN_KEEP_CACHE,
            Cache::Drop => 0,
            Cache::Bypass => FOPEN_DIRECT_IO,
        };
        OpenOut { fh: opened.handle, open_flags, padding: 0 }.put(&mut self.reply);
    }

    pub(super) fn create(&mut self, request: &Request) -> Result<()> {
        let input = CreateIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let name = take_name(&mut &request.body[CreateIn::SIZE..])?;
        let new = request.new_file(input.mode, input.umask);
        let how = how(input.flags, input.open_flags);
        let (entry, opened) = self.share.create(request.nodeid, name, &new, how)?;
        self.put_entry(&entry);
        self.put_open(opened);
        Ok(())
    }

    pub(super) fn tmpfile(&mut self, request: &Request) -> Result<()> {
        let input = CreateIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let new = request.new_file(input.mode, input.umask);
        let (entry, opened) = self.share.tmpfile(request.nodeid, &new, input.flags as i32)?;
        self.put_entry(&entry);
        self.put_open(opened);
        Ok(())
    }

    pub(super) fn release(&mut self, request: &Request) -> Result<()> {
        let input = ReleaseIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        self.share.release(request.file(input.fh))
    }

    /// READ: the data goes directly to guest memory.
    pub(super) fn read(&mut self, request: &Request, mut data: Pieces) -> Result<usize> {
        let input = ReadIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        data.truncate(input.size as usize);
        self.share.read(request.file(input.fh), input.offset, data)
    }

    /// WRITE: the data comes directly from guest memory.
    pub(super) fn write(&mut self, request: &Request, data: &mut Pieces) -> Result<()> {
        let input = WriteIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let write = Write {
            offset: input.offset,
            size: input.size,
            flags: input.flags as i32,
            from_cache: input.write_flags & WRITE_CACHE != 0,
            kill_setid: input.write_flags & WRITE_KILL_SUIDGID != 0,
        };
        let file = request.file(input.fh);
        if !(self.write_attr && write.from_cache) {
            let written = self.share.write(file, &write, data)?;
            WriteOut { size: written as u32, padding: 0 }.put(&mut self.reply);
            return Ok(());
        }
        let (written, attributes) = self.share.write_and_look(file, &write, data)?;
        WriteOut { size: written as u32, padding: 0 }.put(&mut self.reply);
        self.put_attr(&attributes.unwrap_or_default());
        Ok(())
    }

    pub(super) fn fsync(&mut self, request: &Request) -> Result<()> {
        let input = FsyncIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        self.share.fsync(request.file(input.fh), input.fsync_flags & FSYNC_FDATASYNC != 0)
    }

    pub(super) fn fallocate(&mut self, request: &Request) -> Result<()> {
        let input = FallocateIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let allocation = Allocation { mode: input.mode as i32, offset: input.offset, len: input.length };
        self.share.fallocate(request.file(input.fh), &allocation)
    }

    pub(super) fn lseek(&mut self, request: &Request) -> Result<()> {
        let input = LseekIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let offset = self.share.lseek(request.file(input.fh), input.offset, input.whence as i32)?;
        LseekOut { offset }.put(&mut self.reply);
        Ok(())
    }

    pub(super) fn copy_file_range(&mut self, request: &Request) -> Result<()> {
        let input = CopyFileRangeIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        if input.flags != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let from = Position { file: request.file(input.fh_in), offset: input.off_in };
        let target = OpenFile { node: input.nodeid_out, handle: input.fh_out };
        let to = Position { file: target, offset: input.off_out };
        let size = self.share.copy_file_range(from, to, input.len)?;
        WriteOut { size: size as u32, padding: 0 }.put(&mut self.reply);
        Ok(())
    }

    /// IOCTL: the flags of chattr(1), and nothing else.
    pub(super) fn ioctl(&mut self, request: &Request) -> Result<()> {
        let input = IoctlIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let command = FlagsCommand::of(input.cmd).ok_or(Errno(libc::ENOTTY))?;
        let file = request.file(input.fh);
        let given = &request.body[IoctlIn::SIZE..];
        let mut data = [0; FlagsCommand::MAX_LEN];
        let data = &mut data[..command.len()];
        if command.sets() {
            data.copy_from_slice(given.get(..command.len()).ok_or(Errno(libc::EINVAL))?);
        }
        self.share.flags(file, command, data)?;
        IoctlOut::default().put(&mut self.reply);
        if !command.sets() {
            if (input.out_size as usize) < data.len() {
                return Err(Errno(libc::EINVAL));
            }
            self.reply.extend_from_slice(data);
        }
        Ok(())
    }

    /// POLL of a FIFO.
    pub(super) fn poll(&mut self, request: &Request) -> Result<()> {
        let input = PollIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        let revents = self.share.poll(request.file(input.fh), input.events)?;
        PollOut { revents, padding: 0 }.put(&mut self.reply);
        Ok(())
    }

    pub(super) fn syncfs(&mut self, request: &Request) -> Result<()> {
        self.share.syncfs(request.nodeid)
    }
}

fn how(flags: u32, open_flags: u32) -> How {
    How { flags: flags as i32, kill_setid: open_flags & OPEN_KILL_SUIDGID != 0 }
}
