//! Pods: several containers in one machine.
//!
//! [`podfile`] reads what is wanted, [`refuse`] says what is wrong with it, [`plan`] decides what it comes to.

pub mod base64;
pub mod log;
pub mod plan;
pub mod podfile;
pub mod refuse;
pub mod restart;
