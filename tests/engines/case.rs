//! Cases and groups of cases.

use crate::engine::{Engine, Kind};

/// The cases of one subject and engine.
pub struct Group {
    /// First part of its cases' names.
    pub name: &'static str,
    /// The engine that the cases use.
    pub engine: Kind,
    /// The cases, in the order in which they run.
    pub cases: &'static [Case],
}

/// A test that must pass with both runtimes.
pub struct Case {
    /// The function's name.
    pub name: &'static str,
    /// The test, which panics if it fails.
    pub run: fn(&Engine),
    /// Whether the case belongs to the part that `cargo xtask test` runs.
    pub core: bool,
    /// Why a virtual machine does not support it. The case then asserts that `vmm` refuses it by name.
    pub refused: Option<&'static str>,
}

impl Case {
    /// Returns the case's name with that of its group.
    pub fn full_name(&self, group: &Group) -> String {
        format!("{}::{}", group.name, self.name)
    }

    /// Adds the case to the part that `cargo xtask test` runs.
    pub const fn core(mut self) -> Case {
        self.core = true;
        self
    }

    /// Sets the reason why a virtual machine does not support it.
    pub const fn refused(mut self, why: &'static str) -> Case {
        self.refused = Some(why);
        self
    }
}

/// A [`Case`] with its function's name.
macro_rules! case {
    ($run:ident) => {
        $crate::case::Case { name: stringify!($run), run: $run, core: false, refused: None }
    };
}
pub(crate) use case;
