//! The namespaces of a container.

use agent_proto::payload::{Namespace, OciContainer};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};

use crate::error::{Error, Step};
use crate::sys::{self, namespace};

/// Returns the flags of clone(2) for a container's own namespaces. The child creates two of them itself: a cgroup
/// namespace starts at the cgroup of the process that creates it, and a time namespace needs its offsets before a
/// process enters it.
pub fn flags(oci: Option<&OciContainer>) -> u64 {
    let namespaces = oci.map_or(&[][..], |oci| &oci.namespaces);
    namespaces.iter().fold(namespace::MOUNT, |flags, namespace| {
        flags
            | match namespace {
                Namespace::Pid => namespace::PID,
                Namespace::Ipc => namespace::IPC,
                Namespace::Uts => namespace::UTS,
                Namespace::Network => namespace::NETWORK,
                Namespace::Cgroup | Namespace::Time => 0,
            }
    })
}

/// Sets up the namespaces of the child.
pub fn set_up(oci: &OciContainer) -> Result<(), Error> {
    for namespace in &oci.namespaces {
        match namespace {
            Namespace::Cgroup => sys::unshare_cgroup_view().step("create", "cgroup namespace")?,
            Namespace::Network => bring_loopback_up()?,
            Namespace::Time => enter_time(&oci.time_offsets)?,
            Namespace::Uts => {
                if !oci.hostname.is_empty() {
                    rustix::system::sethostname(oci.hostname.as_bytes())
                        .step("set host name", &oci.hostname)?;
                }
                if !oci.domainname.is_empty() {
                    rustix::system::setdomainname(oci.domainname.as_bytes())
                        .step("set domain name", &oci.domainname)?;
                }
            }
            Namespace::Pid | Namespace::Ipc => {}
        }
    }
    Ok(())
}

/// Moves this process into a time namespace with these offsets.
fn enter_time(offsets: &str) -> Result<(), Error> {
    const OFFSETS: &str = "/proc/self/timens_offsets";
    const NAMESPACE: &str = "/proc/self/ns/time_for_children";
    sys::unshare_time().step("create", "time namespace")?;
    if !offsets.is_empty() {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(OFFSETS, flags, Mode::empty()).step("open", OFFSETS)?;
        rustix::io::write(&file, offsets.as_bytes()).step("set", "time offsets")?;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let made = rustix::fs::open(NAMESPACE, flags, Mode::empty()).step("open", NAMESPACE)?;
    move_into_link_name_space(made.as_fd(), Some(LinkNameSpaceType::Time)).step("enter", "time namespace")
}

/// Brings up the loopback interface of this process's network namespace.
pub fn bring_loopback_up() -> Result<(), Error> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .step("open", "socket")?;
    sys::loopback_up(socket.as_fd()).step("bring up", "lo")
}

/// Enters the namespaces of a container's init process. Root and working directory become the container's root.
/// Does not enter the PID namespace, which the parent sets before fork ([`set_pids_for_children`]).
pub fn enter(init: BorrowedFd<'_>) -> Result<(), Error> {
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::TIME;
    move_into_thread_name_spaces(init, all).step("enter", "the container's namespaces")
}

/// Returns the type of a namespace that a container can take from another one.
pub fn joinable(kind: &str) -> Option<ThreadNameSpaceType> {
    match kind {
        "pid" => Some(ThreadNameSpaceType::PROCESS_ID),
        "ipc" => Some(ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
        "network" => Some(ThreadNameSpaceType::NETWORK),
        "uts" => Some(ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
        _ => None,
    }
}

/// Enters the namespaces that a new container takes from others, each by the pidfd of an init process. A PID namespace
/// is entered by the fork.
pub fn join(joined: &[(ThreadNameSpaceType, OwnedFd)]) -> Result<(), Error> {
    for (kind, init) in joined.iter().filter(|(kind, _)| *kind != ThreadNameSpaceType::PROCESS_ID) {
        move_into_thread_name_spaces(init.as_fd(), *kind).step("join", "namespace")?;
    }
    Ok(())
}

/// Sets the PID namespace of this process's future children to that of `process`.
pub fn set_pids_for_children(process: BorrowedFd<'_>) -> Result<(), Error> {
    move_into_thread_name_spaces(process, ThreadNameSpaceType::PROCESS_ID)
        .step("set", "PID namespace of children")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_container_has_only_a_mount_namespace() {
        assert_eq!(flags(None), namespace::MOUNT);
    }

    #[test]
    fn each_namespace_adds_its_flag() {
        let oci = OciContainer {
            namespaces: vec![
                Namespace::Pid,
                Namespace::Ipc,
                Namespace::Uts,
                Namespace::Cgroup,
                Namespace::Network,
                Namespace::Time,
            ],
            ..OciContainer::default()
        };
        assert_eq!(flags(Some(&oci)), 0x6c02_0000);
    }
}
