//! What a guest knows of a share, as plain data: from it, the server of another tree with the same binds goes on.
//!
//! The state names files by bind, directory and name, and has the identity of each. It contains no data of files. What the
//! guest's kernel has cached of them expires when it goes on, because others may have changed them meanwhile.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::bind::Bind;
use super::cursor::Cursor;
use super::errno::{Errno, Result as SysResult};
use super::handle::Handle;
use super::locks::taken;
use super::operations::Operations;
use super::sys;
use super::table::{ROOT_ID, SavedHandle};
use super::tree::{Child, Tree};
use crate::{Decoder, Encoder, StateError};

type Result<T> = std::result::Result<T, StateError>;

/// Limit of entries of the virtual tree.
const ENTRIES_MAX: usize = 1 << 16;

/// An entry of the virtual tree: its number, and what is bound there.
struct Entry {
    id: u64,
    bind: Option<Arc<Bind>>,
}

impl Entry {
    fn kind(&self) -> u8 {
        match &self.bind {
            None => 0,
            Some(bind) if bind.is_dir => 1,
            Some(_) => 2,
        }
    }
}

/// Returns all entries of the virtual tree, by path.
fn entries(tree: &Tree) -> BTreeMap<Vec<u8>, Entry> {
    let mut found = BTreeMap::new();
    let mut open = vec![(ROOT_ID, Vec::new())];
    while let Some((dir, path)) = open.pop() {
        for (name, child) in tree.names(dir).into_iter().flatten() {
            let path = [&path[..], b"/", name].concat();
            let entry = match child {
                Child::Dir(id) => {
                    open.push((*id, path.clone()));
                    Entry { id: *id, bind: None }
                }
                Child::Bind(bind) => Entry { id: bind.id, bind: Some(bind.clone()) },
            };
            found.insert(path, entry);
        }
    }
    found
}

impl Operations {
    /// Writes what the guest knows of the share.
    ///
    /// # Errors
    ///
    /// The guest has something that cannot be found again, such as a file that was removed while it is open.
    pub fn save(&mut self, state: &mut Encoder) -> Result<()> {
        self.close_all_unopened();
        self.sockets.save(state)?;
        state.u8(self.watching.get().into()).u8(self.tells_acls.into()).u8(self.reads_unopened.into());
        let entries = entries(&self.shared.tree.lock().unwrap());
        state.u32(entries.len() as u32);
        for (path, entry) in &entries {
            state.bytes(path).u64(entry.id).u8(entry.kind());
            state.u64(entry.bind.as_ref().map_or(0, |bind| bind.key.0));
        }
        self.shared.table.lock().unwrap().save(self.shared.proc_self_fd.as_fd(), state)?;
        self.save_locks(state)
    }

    /// Takes over what [`save`](Self::save) wrote. This share has the same binds, and no guest has used it.
    pub fn restore(&mut self, state: &mut Decoder) -> Result<()> {
        self.set_asks_for_sockets(state.u8()? != 0);
        let watching = state.u8()? != 0;
        (self.tells_acls, self.reads_unopened) = (state.u8()? != 0, state.u8()? != 0);
        if self.set_watching(watching) != watching {
            return Err(StateError::Busy("changes by the host cannot be watched"));
        }
        let count = state.u32()? as usize;
        let entries = entries(&self.shared.tree.lock().unwrap());
        if count != entries.len() || count > ENTRIES_MAX {
            return Err(StateError::Foreign("the container has other mounts"));
        }
        let mut binds = BTreeMap::new();
        for _ in 0..count {
            let (path, id, kind, device) = (state.bytes()?, state.u64()?, state.u8()?, state.u64()?);
            let entry = entries.get(path).filter(|entry| (entry.id, entry.kind()) == (id, kind));
            let Some(entry) = entry else {
                let path = String::from_utf8_lossy(path);
                return Err(StateError::Refused(format!(
                    "the container has no mount of the same kind at {path:?}"
                )));
            };
            binds.extend(entry.bind.clone().map(|bind| (id, (bind, device))));
        }
        // Opening a file may depend on this thread's credentials.
        self.credentials();
        let handles = self.shared.table.lock().unwrap().restore(&binds, state)?;
        for handle in handles {
            self.reopen(&handle)?;
        }
        self.restore_locks(state)?;
        if watching {
            self.watch.borrow_mut().lose();
        }
        Ok(())
    }

    /// Opens a file again. One that is gone or was replaced is stale.
    fn reopen(&mut self, saved: &SavedHandle) -> Result<()> {
        let opened = self.open_again(saved);
        if let Err(errno) = &opened {
            let name = saved.inode.location().map(|(_, name)| name).unwrap_or_default();
            log::warn!("the open file {name:?} is stale: {}", std::io::Error::from(*errno));
        }
        if let Ok(handle) = &opened
            && saved.mapped
        {
            // The registry may be created.
            let _creating = self.credentials().create_as((0, 0), 0, 0);
            let mapping = self.shared.mappings.add(saved.inode.key);
            let mapping = mapping
                .map_err(|_| StateError::Busy("another machine has mapped a file of the container"))?;
            // Nobody else has the handle.
            let _ = handle.mapping.set(mapping);
        }
        if let (Ok(handle), libc::LOCK_SH | libc::LOCK_EX) = (&opened, saved.flocked) {
            let locked = sys::lock::flock(handle.file.as_fd(), Some(saved.flocked == libc::LOCK_EX));
            locked.map_err(|_| taken(&saved.inode))?;
            handle.flocked.store(saved.flocked, Ordering::Relaxed);
        }
        self.shared.table.lock().unwrap().reopened(saved.id, opened.ok());
        Ok(())
    }

    fn open_again(&self, saved: &SavedHandle) -> SysResult<Handle> {
        let inode = &saved.inode;
        let flags = if saved.offset.is_some() { libc::O_RDONLY | libc::O_DIRECTORY } else { saved.flags };
        let file = match self.open_inode(inode, flags) {
            Err(Errno(libc::EPERM)) if flags & libc::O_NOATIME != 0 => {
                self.open_inode(inode, flags & !libc::O_NOATIME)
            }
            opened => opened,
        }?;
        inode.check_kind(&sys::fstat(file.as_fd())?)?;
        let cursor = saved.offset.map(|offset| Mutex::new(Cursor::at(offset)));
        Ok(Handle::new(inode, file, saved.opener, cursor))
    }
}
