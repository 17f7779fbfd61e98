//! Pods: several containers in one machine.
//!
//! [`podfile`] reads what is wanted, [`refuse`] says what is wrong with it.

pub mod podfile;
pub mod refuse;
