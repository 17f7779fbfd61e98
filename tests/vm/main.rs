//! Whole-VM tests: each runs `vmm` on its own bundles and checks what a user sees.

mod boots;
mod cgroup;
mod clock;
mod faults;
mod files;
mod foreground;
mod hooks;
mod hostile;
mod identity;
mod isolation;
mod kernels;
mod lifecycle;
mod limits;
mod memory;
mod mounts;
mod network;
mod pods;
mod process;
mod schema;
mod seccomp;
mod share_9p;
mod shares;
mod streams;
mod terminal;
mod users;
mod vhost;
