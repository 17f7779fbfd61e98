//! The table as plain data: which files the guest knows and has open, and where they are found again.
//!
//! In the machine that continues, each inode is one that has given up its descriptor: it is found again by name when the
//! guest uses it, and must be the same file ([`Identity`]). So a file that was removed or replaced meanwhile is stale, and
//! no other. The files of the binds themselves are opened at once, as the open files are.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Known, MAX_INODES, ROOT_ID, Table};
use crate::share::bind::Bind;
use crate::share::errno::Result as SysResult;
use crate::share::handle::Handle;
use crate::share::identity::Identity;
use crate::share::inode::{DescriptorCount, Inode, Pin};
use crate::share::magic_link::MagicLink;
use crate::share::operations::Caller;
use crate::share::sys;
use crate::share::tree::{Tree, is_plain};
use crate::{Decoder, Encoder, StateError};

type Result<T> = std::result::Result<T, StateError>;

/// The file is that of its bind.
const ROOT: u8 = 0;
/// The file is at a name in a directory that the guest knows.
const AT: u8 = 1;
/// The file has no place any more, and the guest has not opened it.
const LOST: u8 = 2;

/// Limit of the length of a path that the host's kernel gives.
const PATH_MAX: usize = 4096;

/// Flags of open(2) with which a file is opened again.
const OPEN_FLAGS: i32 = libc::O_ACCMODE | libc::O_NOATIME;

/// An open file of a saved machine.
pub struct SavedHandle {
    /// Number of the open file.
    pub id: u64,
    pub inode: Arc<Inode>,
    /// Flags of open(2).
    pub flags: i32,
    pub opener: Caller,
    /// Where the guest continues to read a directory.
    pub offset: Option<u64>,
    /// The guest has shared mappings of the file that write to it.
    pub mapped: bool,
    /// The guest's lock by flock(2), as in [`Handle::flocked`].
    pub flocked: i32,
}

/// The binds of the tree, by number, each with the number that its device had when the machine was saved.
pub type Binds = BTreeMap<u64, (Arc<Bind>, u64)>;

impl Table {
    /// Writes all inodes and open files. `links` is /proc/self/fd.
    ///
    /// # Errors
    ///
    /// An open file cannot be found again, or has something that a state does not contain.
    pub fn save(&self, links: BorrowedFd, state: &mut Encoder) -> Result<()> {
        state.u64(self.next_inode).u64(self.next_handle).u32(self.inodes.len() as u32);
        let ids: BTreeSet<u64> = self.inodes.keys().copied().collect();
        for id in &ids {
            let Known { inode, lookups } = &self.inodes[id];
            state.u64(*id).u64(inode.bind.id).u64(*lookups).u8(inode.has_locks().into());
            self.save_place(inode, links, state)?;
        }
        state.u32(self.handles.len() as u32);
        let ids: BTreeSet<u64> = self.handles.keys().copied().collect();
        for id in &ids {
            save_handle(*id, &self.handles[id].0, state)?;
        }
        Ok(())
    }

    fn save_place(&self, inode: &Inode, links: BorrowedFd, state: &mut Encoder) -> Result<()> {
        let unknown = || Identity { key: inode.key, kind: inode.kind, birth: None, handle: None };
        if inode.is_bind_root() {
            state.u8(ROOT);
            return Ok(());
        }
        let recorded = inode.recorded();
        let known = |dir: &Inode| self.inodes.contains_key(&dir.id);
        let (identity, place) = if inode.is_pinned() || inode.is_open() {
            let fd = inode.fd().map_err(|_| lost(recorded.location.as_ref()))?;
            let identity = Identity::of(fd.as_fd(), c"").unwrap_or_else(|_| unknown());
            let there = |dir: &Inode, name: &CStr| {
                dir.fd().and_then(|dir| Identity::of(dir.as_fd(), name)).as_ref() == Ok(&identity)
            };
            let place = recorded.location.clone().filter(|(dir, name)| known(dir) && there(dir, name));
            let place = place.or_else(|| {
                let (dir, name) = self.search(inode, fd.as_fd(), links).ok()??;
                there(&dir, &name).then_some((dir, name))
            });
            let removed = || sys::fstat(fd.as_fd()).is_ok_and(|stat| stat.st_nlink == 0);
            if place.is_none() && (inode.is_open() || inode.keeps_pin() && removed()) {
                return Err(lost(recorded.location.as_ref()));
            }
            (identity, place)
        } else {
            let place = recorded.location.filter(|(dir, _)| known(dir) && recorded.identity.is_some());
            (recorded.identity.unwrap_or_else(unknown), place)
        };
        match &place {
            Some((dir, name)) => state.u8(AT).u64(dir.id).bytes(name.to_bytes()),
            None => state.u8(LOST),
        };
        identity.put(state);
        Ok(())
    }

    /// Finds the directory and the name of a file that the guest has moved, as the host's kernel knows them. `None` if the
    /// guest does not know the directory.
    fn search(
        &self,
        inode: &Inode,
        fd: BorrowedFd,
        links: BorrowedFd,
    ) -> SysResult<Option<(Arc<Inode>, CString)>> {
        let (path, root) = (path_of(fd, links)?, path_of(inode.bind.fd(), links)?);
        let below = match root.as_slice() {
            b"/" => path.strip_prefix(b"/"),
            root => path.strip_prefix(root).and_then(|rest| rest.strip_prefix(b"/")),
        };
        let names = below.unwrap_or_default().split(|byte| *byte == b'/');
        let mut names: Vec<CString> = names.filter_map(|name| CString::new(name).ok()).collect();
        let Some(name) = names.pop().filter(|name| is_plain(name.to_bytes())) else { return Ok(None) };
        let mut dir: OwnedFd = inode.bind.fd().try_clone_to_owned()?;
        for name in names {
            // The path may have changed meanwhile, so no link is followed.
            dir = sys::openat(dir.as_fd(), &name, libc::O_PATH | libc::O_NOFOLLOW | libc::O_DIRECTORY, 0)?;
        }
        let stat = sys::fstat(dir.as_fd())?;
        Ok(self.inode_in(inode.bind.id, (stat.st_dev, stat.st_ino)).map(|dir| (dir, name)))
    }

    /// Reads the inodes that [`save`](Self::save) wrote into this empty table. Returns the open files, which are added by
    /// [`reopened`](Self::reopened).
    pub fn restore(&mut self, binds: &Binds, state: &mut Decoder) -> Result<Vec<SavedHandle>> {
        (self.next_inode, self.next_handle) = (state.u64()?, state.u64()?);
        let count = state.u32()? as usize;
        if count > MAX_INODES || self.next_inode <= ROOT_ID || self.next_handle == 0 {
            return Err(StateError::Damaged("numbers of files"));
        }
        let mut places = Vec::new();
        for _ in 0..count {
            let (id, bind, lookups, locks) = (state.u64()?, state.u64()?, state.u64()?, state.u8()?);
            if Tree::is_virtual(id) || id >= self.next_inode || self.inodes.contains_key(&id) {
                return Err(StateError::Damaged("the number of a file"));
            }
            let (bind, device) = binds.get(&bind).ok_or(StateError::Damaged("the bind of a file"))?;
            let (inode, place) = self.take_inode(id, (bind, *device), state)?;
            if locks != 0 {
                inode.set_has_locks();
            }
            let inode = Arc::new(inode);
            places.extend(place.map(|(dir, name)| (inode.clone(), dir, name)));
            // A later number is that of a newer file.
            self.by_key.insert((bind.id, inode.key.0, inode.key.1), id);
            self.binds.insert(bind.id);
            self.inodes.insert(id, Known { inode, lookups });
        }
        for (inode, dir, name) in places {
            let dir = self.inodes.get(&dir).map(|known| &known.inode);
            let dir = dir.filter(|dir| dir.is_dir() && dir.bind.id == inode.bind.id);
            inode.found_at(dir.ok_or(StateError::Damaged("the directory of a file"))?, &name);
        }
        self.evicted = true;
        self.take_handles(state)
    }

    /// Reads the place of an inode. Returns the inode, and the number of its directory and its name there.
    fn take_inode(
        &self,
        id: u64,
        (bind, device): (&Arc<Bind>, u64),
        state: &mut Decoder,
    ) -> Result<(Inode, Option<(u64, CString)>)> {
        let place = match state.u8()? {
            ROOT => {
                let gone = |_| StateError::Busy("a shared directory cannot be used");
                let identity = Identity::of(bind.fd(), c"").map_err(gone)?;
                let fd = bind.fd().try_clone_to_owned().map_err(|error| gone(error.into()))?;
                let pin = Pin::new(fd, DescriptorCount::new(&self.descriptors));
                return Ok((Inode::of_saved(id, bind, identity, Some(pin)), None));
            }
            AT => {
                let (dir, name) = (state.u64()?, state.bytes()?);
                let name = CString::new(name).ok().filter(|name| is_plain(name.to_bytes()));
                Some((dir, name.ok_or(StateError::Damaged("the name of a file"))?))
            }
            LOST => None,
            _ => return Err(StateError::Damaged("the place of a file")),
        };
        let mut identity = Identity::take(state)?;
        // A file system that was mounted again may have another number.
        if identity.key.0 == device {
            identity.key.0 = bind.key.0;
        }
        Ok((Inode::of_saved(id, bind, identity, None), place))
    }

    fn take_handles(&self, state: &mut Decoder) -> Result<Vec<SavedHandle>> {
        let mut handles = Vec::new();
        for _ in 0..state.u32()? {
            let (id, inode, flags) = (state.u64()?, state.u64()?, state.u32()? as i32 & OPEN_FLAGS);
            let opener = Caller { uid: state.u32()?, gid: state.u32()? };
            let (is_dir, offset, mapped) = (state.u8()? != 0, state.u64()?, state.u8()? != 0);
            let flocked = state.u32()? as i32;
            let inode = self.inodes.get(&inode).map(|known| known.inode.clone());
            let inode = inode.filter(|inode| inode.is_dir() == is_dir && !inode.is_fifo());
            let inode = inode.ok_or(StateError::Damaged("the file of an open file"))?;
            if id == 0 || id >= self.next_handle || handles.len() >= self.limit {
                return Err(StateError::Damaged("the number of an open file"));
            }
            let offset = is_dir.then_some(offset);
            handles.push(SavedHandle { id, inode, flags, opener, offset, mapped, flocked });
        }
        Ok(handles)
    }

    /// Adds an open file of a saved machine; `None` if it could not be opened again.
    pub fn reopened(&mut self, id: u64, handle: Option<Handle>) {
        match handle.filter(|_| self.room().is_ok()) {
            Some(handle) => {
                let count = DescriptorCount::new(&self.descriptors);
                self.handles.insert(id, (Arc::new(handle), count));
            }
            None => _ = self.stale.insert(id),
        }
    }
}

fn save_handle(id: u64, handle: &Handle, state: &mut Encoder) -> Result<()> {
    let inode = &handle.inode;
    let named = |what: &str| {
        let (_, name) = inode.location().unwrap_or_else(|| (inode.clone(), c"".to_owned()));
        StateError::Refused(format!("the file {name:?}, which the container has open, {what}"))
    };
    if inode.is_fifo() {
        return Err(named("is a named pipe outside of its root file system"));
    }
    let flags = sys::open_flags(handle.file.as_fd()).map_err(|_| named("cannot be examined"))?;
    state
        .u64(id)
        .u64(inode.id)
        .u32((flags & OPEN_FLAGS) as u32)
        .u32(handle.opener.uid)
        .u32(handle.opener.gid);
    let offset = handle.cursor.as_ref().map(|cursor| cursor.lock().unwrap().offset());
    state.u8(offset.is_some().into()).u64(offset.unwrap_or(0)).u8(handle.mapping.get().is_some().into());
    state.u32(handle.flocked.load(Ordering::Relaxed) as u32);
    Ok(())
}

fn lost(location: Option<&(Arc<Inode>, CString)>) -> StateError {
    let name = location.map(|(_, name)| name.clone()).unwrap_or_default();
    StateError::Refused(format!("the file {name:?}, which the container has open, was removed or replaced"))
}

/// Returns the path of a descriptor's file as the host's kernel knows it.
fn path_of(fd: BorrowedFd, links: BorrowedFd) -> SysResult<Vec<u8>> {
    let mut path = vec![0; PATH_MAX];
    let len = sys::readlink(links, &MagicLink::new("", fd.as_raw_fd()), &mut path)?;
    path.truncate(len);
    Ok(path)
}
