//! A case: a name, what it does, and whether a virtual machine can have it at all.

use crate::engine::{Engine, Kind};

/// The cases of one subject with one engine.
pub struct Group {
    /// What the names of its cases begin with.
    pub name: &'static str,
    /// The engine that they drive.
    pub engine: Kind,
    /// In the order in which they run.
    pub cases: &'static [Case],
}

/// Something that must hold with either runtime.
pub struct Case {
    /// The function's name.
    pub name: &'static str,
    /// Drives the engine, and panics where something is not as it should be.
    pub run: fn(&Engine),
    /// It is in the part that every run of the whole test suite includes.
    pub core: bool,
    /// Why it cannot hold for a virtual machine: the case then asserts that `vmm` refuses it by name.
    pub refused: Option<&'static str>,
}

impl Case {
    /// Makes it one of those that always run.
    pub const fn core(mut self) -> Case {
        self.core = true;
        self
    }

    /// Says why a virtual machine cannot have it.
    pub const fn refused(mut self, why: &'static str) -> Case {
        self.refused = Some(why);
        self
    }
}

/// A [`Case`] that has its function's name.
macro_rules! case {
    ($run:ident) => {
        $crate::case::Case { name: stringify!($run), run: $run, core: false, refused: None }
    };
}
pub(crate) use case;
