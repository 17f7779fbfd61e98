//! Whole-VM tests: each boots `vmm run` on a bundle of its own and looks at what a user would see.

mod boots;
mod cgroup;
mod clock;
mod faults;
mod files;
mod foreground;
mod hostile;
mod identity;
mod isolation;
mod lifecycle;
mod limits;
mod mounts;
mod network;
mod pods;
mod process;
mod seccomp;
mod share_9p;
mod shares;
mod streams;
mod terminal;
mod users;
mod vhost;
