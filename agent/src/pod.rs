//! The pod: the resources that its containers share.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;

use agent_proto::payload::{self, ErrorCode};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Resource, Rlimit, pidfd_open, set_dumpable_behavior, setrlimit,
};

use crate::container::GUEST;
use crate::container::cgroup::{self, CGROUPS};
use crate::container::namespaces::{self, bring_loopback_up};
use crate::container::paths::{HOSTNAME, RESOLV_CONF, SHM};
use crate::container::rootfs::{ROOT, Root, SHARE};
use crate::error::{Error, Step};
use crate::network;
use crate::process::limits::OPEN_FILES_MAX;
use crate::resolver;
use crate::sys::{self, Fork, namespace};

pub mod parameters;

/// The fastest options for 9p over virtio; API 4244's original used the kernel's small defaults. `cache=mmap` caches
/// pages only for mappings: without it the kernel refuses writable shared mappings, and with more caching (`loose`) the
/// guest would never see the host's changes.
const OPTIONS_9P: &core::ffi::CStr = c"trans=virtio,version=9p2000.L,msize=512000,cache=mmap";

/// A pod that has started.
#[derive(Debug)]
pub struct Pod {
    /// Host name of the pod.
    pub hostname: String,
    /// The pod has name servers, so RESOLV_CONF exists.
    pub has_resolv_conf: bool,
    /// The shared /dev/shm has been mounted.
    has_shm: bool,
    /// The pod's PID namespace, once a container uses it.
    pids: Option<PidNamespace>,
}

/// The PID namespace that containers of a pod share.
#[derive(Debug)]
struct PidNamespace {
    /// PID 1 of the namespace.
    pid_1: Pid,
    pidfd: OwnedFd,
    /// The agent's pidfd, to return to its own PID namespace.
    agent_pidfd: OwnedFd,
}

impl Pod {
    /// Starts the pod: host name, interfaces, share. With `isolated` false, in tests on a host, only its data
    /// are stored.
    pub fn start(spec: &payload::Pod, isolated: bool) -> Result<Pod, Error> {
        if spec.portmapping_white_lists.values().any(|networks| !networks.is_empty()) {
            let why = "portmappingWhiteLists: port mapping is not supported";
            return Err(Error::new(ErrorCode::Unsupported, why));
        }
        let has_resolv_conf =
            !(spec.dns.is_empty() && spec.dns_search.is_empty() && spec.dns_options.is_empty());
        if isolated {
            if !spec.hostname.is_empty() {
                rustix::system::sethostname(spec.hostname.as_bytes())
                    .step("set host name", &spec.hostname)?;
            }
            spec.interfaces.iter().try_for_each(network::set_up)?;
            spec.routes.iter().try_for_each(network::set_route)?;
            if !spec.resolver.is_empty() {
                resolver::start(resolver::parse(&spec.resolver)?)?;
            }
            mount_share(spec)?;
            if spec.accounting {
                cgroup::account()?;
            }
            if has_resolv_conf {
                write(RESOLV_CONF, &resolv_conf(spec))?;
            }
            parameters::set(&spec.parameters);
        }
        Ok(Pod { hostname: spec.hostname.clone(), has_resolv_conf, has_shm: false, pids: None })
    }

    /// Creates the file for /etc/hostname in API 4244's containers.
    pub fn write_hostname(&self) -> Result<(), Error> {
        write(HOSTNAME, &format!("{}\n", self.hostname))
    }

    /// Mounts the shared /dev/shm with the options of its first user.
    pub fn mount_shm(&mut self, options: &str) -> Result<(), Error> {
        if !self.has_shm {
            match rustix::fs::mkdir(SHM, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno).step("create", SHM),
            }
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            let options = CString::new(options).unwrap_or_default();
            rustix::mount::mount("shm", SHM, "tmpfs", flags, Some(options.as_c_str())).step("mount", SHM)?;
            self.has_shm = true;
        }
        Ok(())
    }

    /// Whether `pid` is PID 1 of the pod's PID namespace.
    pub fn is_pid_1(&self, pid: Pid) -> bool {
        self.pids.as_ref().is_some_and(|pids| pids.pid_1 == pid)
    }

    /// Runs `fork` so that its child is in the pod's PID namespace.
    pub fn fork_with_shared_pids<T>(&mut self, fork: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let pids = match self.pids.take() {
            Some(pids) => pids,
            None => PidNamespace::create()?,
        };
        let pids = self.pids.insert(pids);
        fork_with_pids(pids.pidfd.as_fd(), pids.agent_pidfd.as_fd(), fork)
    }
}

impl PidNamespace {
    fn create() -> Result<PidNamespace, Error> {
        let agent_pidfd = agent_pidfd()?;
        match sys::fork(namespace::PID | namespace::MOUNT, None).step("create", "the pod's PID namespace")? {
            Fork::Child => hold_pids(),
            Fork::Parent { pid, pidfd } => Ok(PidNamespace { pid_1: pid, pidfd, agent_pidfd }),
        }
    }
}

/// Body of PID 1 of the pod's PID namespace, which only has to exist: the kernel reaps its orphans. Containers see this
/// process, so its root is an empty directory and it has none of the agent's file descriptors. Its memory and
/// capabilities are those of the agent. The kernel denies containers access to them, as to any child before execve
/// (`process/child.rs`).
fn hold_pids() -> ! {
    sys::ignore_children();
    if set_dumpable_behavior(DumpableBehavior::NotDumpable).is_err() {
        sys::exit(1);
    }
    let hidden = rustix::mount::mount("tmpfs", ROOT, "tmpfs", MountFlags::RDONLY, None)
        .step("mount", ROOT)
        .and_then(|()| Root::open(ROOT))
        .and_then(Root::become_root);
    if hidden.is_err() {
        sys::exit(1);
    }
    // These include the agent's pipes, which would otherwise never reach their end.
    sys::close_all();
    let _ = rustix::thread::set_name(c"pod");
    loop {
        rustix::event::pause();
    }
}

/// Returns the agent's own pidfd, which identifies its PID namespace.
pub fn agent_pidfd() -> Result<OwnedFd, Error> {
    pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).step("open", "pidfd of the agent")
}

/// Runs `fork` so that its child is in the PID namespace of `process`, and then returns to the agent's.
pub fn fork_with_pids<T>(
    process: BorrowedFd<'_>,
    agent: BorrowedFd<'_>,
    fork: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    namespaces::set_pids_for_children(process)?;
    let forked = fork();
    namespaces::set_pids_for_children(agent)?;
    forked
}

/// Prepares the guest for a pod, as far as all pods are alike. Called before the first command, so that a machine which
/// continues from a saved one has it.
pub fn prepare() -> Result<(), Error> {
    prepare_root()?;
    bring_loopback_up()?;
    // With nsdelegate a container cannot change the limits of the root of its cgroup namespace, which are its own limits.
    rustix::mount::mount("cgroup2", CGROUPS, "cgroup2", MountFlags::empty(), c"nsdelegate")
        .step("mount", "cgroup2")?;
    let limit = Rlimit { current: Some(OPEN_FILES_MAX), maximum: Some(OPEN_FILES_MAX) };
    setrlimit(Resource::Nofile, limit).step("set", "RLIMIT_NOFILE")
}

/// Lets the kernel do what it does for the first container: for the first cgroup that counts memory it changes its own code in
/// many places. Pages that machines do not change are shared by all that continue from one. The cgroup stays, because the kernel
/// changes its code back otherwise.
pub fn rehearse() {
    // A container reports what the kernel lacks.
    let _ = cgroup::account().and_then(|()| cgroup::create(GUEST));
}

/// Mounts over the initial root file system, which pivot_root(2) refuses to move because it has no parent, and makes
/// the new mount the agent's root. The path `/..` reaches a mount on the root itself.
fn prepare_root() -> Result<(), Error> {
    rustix::mount::mount_bind_recursive("/", "/").step("bind-mount", "/")?;
    rustix::process::chroot("/..").step("change root to", "/")
}

fn mount_share(spec: &payload::Pod) -> Result<(), Error> {
    let tag = spec.share_dir.as_str();
    if tag.is_empty() {
        return Ok(());
    }
    let flags = MountFlags::empty();
    let mounted = match spec.share_type.as_str() {
        "virtiofs" => rustix::mount::mount(tag, SHARE, "virtiofs", flags, None),
        "" | "9p" => rustix::mount::mount(tag, SHARE, "9p", flags, OPTIONS_9P),
        other => {
            return Err(Error::new(ErrorCode::Unsupported, format!("share type {other:?} is not supported")));
        }
    };
    mounted.step("mount share", tag)
}

fn resolv_conf(spec: &payload::Pod) -> String {
    let mut text = String::new();
    for server in &spec.dns {
        text += &format!("nameserver {server}\n");
    }
    for (word, list) in [("search", &spec.dns_search), ("options", &spec.dns_options)] {
        if !list.is_empty() {
            text += &format!("{word} {}\n", list.join(" "));
        }
    }
    text
}

fn write(path: &str, text: &str) -> Result<(), Error> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644)).step("write", path)?;
    rustix::io::write(&file, text.as_bytes()).map(drop).step("write", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_one_line_for_each_server() {
        let spec = payload::Pod {
            dns: vec!["1.1.1.1".into(), "9.9.9.9".into()],
            dns_search: vec!["a.example".into(), "b.example".into()],
            dns_options: vec!["ndots:2".into()],
            ..payload::Pod::default()
        };
        let expected =
            "nameserver 1.1.1.1\nnameserver 9.9.9.9\nsearch a.example b.example\noptions ndots:2\n";
        assert_eq!(resolv_conf(&spec), expected);
    }
}
