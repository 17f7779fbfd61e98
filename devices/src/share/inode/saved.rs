//! An inode in the state of a saved machine: the identity of its file, and where that is found again.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::{Inode, Pin, State};
use crate::share::bind::Bind;
use crate::share::identity::Identity;

/// What is recorded of an inode that has no descriptor.
pub struct Recorded {
    /// The directory and the name at which the guest last found the file.
    pub location: Option<(Arc<Inode>, CString)>,
    /// Identity of the file; `None` if it was never recorded.
    pub identity: Option<Identity>,
}

impl Inode {
    /// Returns the inode of a file with this identity, which is found again by name when it is needed. With `pin` it has
    /// a descriptor.
    pub fn of_saved(id: u64, bind: &Arc<Bind>, identity: Identity, pin: Option<Pin>) -> Inode {
        Inode {
            id,
            bind: bind.clone(),
            kind: identity.kind,
            key: identity.key,
            used: AtomicBool::new(false),
            names_known: AtomicBool::new(false),
            unwatchable: AtomicBool::new(false),
            locks: AtomicBool::new(false),
            keeps_pin: AtomicBool::new(false),
            state: Mutex::new(State {
                pin: pin.map(Arc::new),
                open: BTreeMap::new(),
                location: None,
                identity: Some(identity),
                seen: None,
                told: None,
                changed: false,
            }),
        }
    }

    /// Returns what is recorded of the file.
    pub fn recorded(&self) -> Recorded {
        let state = self.state.lock().unwrap();
        let location = state.location.as_ref().map(|location| (location.dir.clone(), location.name.clone()));
        Recorded { location, identity: state.identity.clone() }
    }

    /// Records that the guest has locked a file in this directory.
    pub fn set_has_locks(&self) {
        self.locks.store(true, Ordering::Relaxed);
    }
}
