//! The guest agent.
#![cfg_attr(not(test), no_std)]
