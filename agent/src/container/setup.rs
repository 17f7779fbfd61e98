//! Set-up of a new container for its init process: the root with all mounts, isolated from the agent.

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::String;
use alloc::vec;

use agent_proto::payload::{self, Mount, OciContainer};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::ThreadNameSpaceType;

use crate::container::rootfs::{Root, SHARE};
use crate::container::{dev, mounts, namespaces, paths};
use crate::error::{Error, Step};
use crate::pty::Terminal;

/// A container to set up and enter.
#[derive(Debug)]
pub struct Setup<'a> {
    /// Specification of the container.
    pub spec: &'a payload::Container,
    /// The pod has name servers, so it has a resolv.conf.
    pub has_resolv_conf: bool,
    /// Namespaces that it takes from other containers: the kind, and the pidfd of an init process.
    pub joined: &'a [(ThreadNameSpaceType, OwnedFd)],
}

/// Sets up the container and makes its root this process's root. Returns the terminal if the process has one.
pub fn set_up(container: &Setup<'_>, process: &payload::Process) -> Result<Option<Terminal>, Error> {
    let spec = container.spec;
    let oci = spec.oci.as_ref().map_or_else(|| Cow::Owned(default_4244()), Cow::Borrowed);
    namespaces::set_up(&oci)?;
    // Created files get exactly the requested modes; the process's own mask is set later.
    rustix::process::umask(Mode::empty());
    let share = Root::open(SHARE)?;
    let root = Root::attach(&share, &format!("{}/{}", spec.image, spec.rootfs))?;
    for entry in &oci.mounts {
        mounts::mount(&root, &share, entry)?;
    }
    dev::populate(&root, &oci)?;
    for entry in &spec.fsmap {
        mounts::map(&root, &share, entry)?;
    }
    if spec.initialize {
        initialize(&root, container)?;
    }
    let terminal = process.terminal.then(|| dev::open_console(&root, process)).transpose()?;
    // As in runc. If it cannot be created, entering it reports the error.
    let _ = root.create_directory(&process.workdir);
    set_parameters(spec)?;
    restrict(&root, &oci, spec.read_only)?;
    root.become_root()?;
    if oci.root_propagation != 0 {
        mounts::set_propagation(&Root::open("/")?, "/", oci.root_propagation)?;
    }
    Ok(terminal)
}

/// Returns the set-up of API 4244's containers, except that each has its own /dev.
fn default_4244() -> OciContainer {
    const NOSUID: u64 = 2;
    const NODEV: u64 = 4;
    const NOEXEC: u64 = 8;
    let mount = |kind: &str, destination: &str, flags, data: &str| Mount {
        destination: destination.into(),
        kind: kind.into(),
        source: kind.into(),
        flags,
        data: data.into(),
        ..Mount::default()
    };
    OciContainer {
        mounts: vec![
            mount("proc", "/proc", NOSUID | NODEV | NOEXEC, ""),
            mount("sysfs", "/sys", NOSUID | NODEV | NOEXEC, ""),
            mount("tmpfs", "/dev", NOSUID, "mode=755,size=65536k"),
            mount("devpts", "/dev/pts", NOSUID | NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"),
            mount("tmpfs", "/dev/shm", NOSUID | NODEV | NOEXEC, "mode=1777"),
        ],
        ..OciContainer::default()
    }
}

/// Creates the files in /etc that API 4244's `initialize` requests.
fn initialize(root: &Root, container: &Setup<'_>) -> Result<(), Error> {
    if container.has_resolv_conf {
        mounts::bind_agent_file(root, paths::RESOLV_CONF, "/etc/resolv.conf")?;
    }
    mounts::bind_agent_file(root, paths::HOSTNAME, "/etc/hostname")?;
    root.create_file("/etc/hosts")?;
    let etc = root.create_directory("/etc")?;
    match rustix::fs::symlinkat("/proc/mounts", &etc, "mtab") {
        Ok(()) | Err(Errno::EXIST | Errno::ROFS) => Ok(()),
        Err(errno) => Err(errno).step("link", "/etc/mtab"),
    }
}

/// Sets kernel parameters through the agent's own /proc. The namespaces of the writing process determine which are
/// changed.
fn set_parameters(spec: &payload::Container) -> Result<(), Error> {
    for (name, value) in &spec.sysctl {
        let path: String = format!("/proc/sys/{}", name.replace('.', "/"));
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(CWD, path.as_str(), flags, Mode::empty())
            .step("set kernel parameter", name)?;
        rustix::io::write(&file, value.as_bytes()).step("set kernel parameter", name)?;
    }
    Ok(())
}

fn restrict(root: &Root, oci: &OciContainer, read_only: bool) -> Result<(), Error> {
    for path in &oci.readonly_paths {
        mounts::set_read_only(root, path)?;
    }
    if !oci.masked_paths.is_empty() {
        let null = dev::null()?;
        for path in &oci.masked_paths {
            mounts::mask(root, &null, path)?;
        }
    }
    // Last, when all mount points below exist.
    for entry in oci.mounts.iter().filter(|entry| mounts::is_read_only_later(entry)) {
        root.set_read_only(&entry.destination)?;
    }
    if read_only { root.set_read_only("/") } else { Ok(()) }
}
