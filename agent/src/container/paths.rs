//! Files of the agent's own tree that the pod's containers share.

use alloc::format;
use alloc::string::String;

/// `/etc/resolv.conf` of every container.
pub const RESOLV_CONF: &str = "/run/resolv.conf";
/// `/etc/hostname` of every container.
pub const HOSTNAME: &str = "/run/hostname";
/// `/dev/shm` of containers that share the pod's.
pub const SHM: &str = "/run/shm";
/// Directory of the sockets that stand for sockets of the host.
pub const SOCKETS: &str = "/run/sockets";
/// Socket to which the kernel connects processes that connect to sockets of the host.
pub const GATEWAY: &str = "/run/gateway";

/// Returns the path of the socket that stands for the host's socket with this number.
pub fn socket(number: &str) -> String {
    format!("{SOCKETS}/{number}")
}
