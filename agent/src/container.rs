//! The agent's record of a container: name, init process, cgroup.

pub mod cgroup;
pub mod copy_up;
pub mod dev;
pub mod device_binds;
pub mod mounts;
pub mod namespaces;
pub mod oom;
pub mod paths;
pub mod rootfs;
pub mod setup;
pub mod user_namespace;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use agent_proto::payload::{self, ErrorCode, IdMaps, Namespace};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use crate::container::cgroup::CGROUPS;
use crate::container::oom::OomKills;
use crate::error::Error;
use crate::sys;

pub use agent_proto::payload::GUEST;

/// Limit of the length of a name, which is also a directory name.
const NAME_MAX: usize = 255;
/// Limit of bytes of cgroup.procs that are read: about ten thousand processes.
const PROCS_MAX: usize = 64 << 10;

/// A container.
#[derive(Debug)]
pub struct Container {
    /// Name of the container.
    pub id: String,
    /// Key of the init process in the agent's table. `None` after it has exited.
    pub init: Option<u32>,
    /// ID mappings of the container's user namespace, if it has one.
    pub maps: Option<IdMaps>,
    /// Cgroup of the container's processes. `None` in tests on a host.
    cgroup: Option<OwnedFd>,
    /// Kills for the container's memory limit. `None` if it has none.
    pub oom_kills: Option<OomKills>,
    /// The container has its own PID namespace, so the kernel kills all its processes when the init process exits.
    own_pids: bool,
}

impl Container {
    /// Returns a container that is about to start. If it is isolated, creates its cgroup.
    pub fn new(spec: &payload::Container, isolated: bool) -> Result<Container, Error> {
        let maps = spec.oci.as_ref().and_then(|oci| oci.user_namespace.clone());
        let own_pids = has_own_pids(spec);
        let (id, cgroup, oom_kills) = (spec.id.clone(), None, None);
        let mut container = Container { id, init: None, maps, cgroup, oom_kills, own_pids };
        if isolated {
            let cgroup = container.cgroup.insert(cgroup::create(&spec.id)?);
            if let Some(oci) = &spec.oci {
                cgroup::filter_devices(cgroup, &oci.device_rules)?;
                let limited = oci.cgroup.contains_key("memory.max");
                container.limit(&oci.cgroup)?;
                let cgroup = container.cgroup().filter(|_| limited);
                container.oom_kills = cgroup.map(OomKills::open).transpose()?;
            }
        }
        Ok(container)
    }

    /// Sets limits, given as files of the cgroup and the text to write.
    pub fn limit(&self, files: &BTreeMap<String, String>) -> Result<(), Error> {
        let Some(cgroup) = &self.cgroup else { return Ok(()) };
        files.iter().try_for_each(|(file, value)| cgroup::limit(cgroup, file, value))
    }

    /// Returns the directory of the container's cgroup.
    pub fn cgroup(&self) -> Option<BorrowedFd<'_>> {
        self.cgroup.as_ref().map(AsFd::as_fd)
    }

    /// Returns the cgroup of an exec process if it is not the container's own: `path` below that, or the cgroup of
    /// `init` if the container's own does not accept processes.
    pub fn exec_cgroup(&self, path: &str, init: Pid) -> Result<Option<OwnedFd>, Error> {
        match &self.cgroup {
            None => Ok(None),
            Some(own) if !path.is_empty() => cgroup::open_below(own.as_fd(), path).map(Some),
            Some(own) if cgroup::enables_controllers(own.as_fd()) => cgroup::open_of(init).map(Some),
            Some(_) => Ok(None),
        }
    }

    /// Kills the remaining processes after the init process has exited.
    pub fn kill_remaining(&self) {
        if !self.own_pids {
            self.kill();
        }
    }

    /// Kills all processes of the container through its cgroup, from which they cannot escape.
    pub fn kill(&self) {
        let Some(cgroup) = &self.cgroup else { return };
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let killed = rustix::fs::openat(cgroup, "cgroup.kill", flags, Mode::empty())
            .and_then(|file| rustix::io::write(&file, b"1"));
        if killed.is_err() {
            let _ = self.signal_all(Signal::KILL);
        }
    }

    /// Sends a signal to all processes that are now in the container's cgroup.
    pub fn signal_all(&self, signal: Signal) -> Result<(), Errno> {
        for pid in self.read_pids()?.into_iter().filter_map(Pid::from_raw) {
            // A process that has exited meanwhile is not an error.
            let _ = rustix::process::kill_process(pid, signal);
        }
        Ok(())
    }

    /// Returns the PIDs of the processes that are now in the container's cgroup.
    pub fn pids(&self) -> Vec<i32> {
        self.read_pids().unwrap_or_default()
    }

    fn read_pids(&self) -> Result<Vec<i32>, Errno> {
        let Some(cgroup) = &self.cgroup else { return Err(Errno::SRCH) };
        let file =
            rustix::fs::openat(cgroup, "cgroup.procs", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = Vec::new();
        while text.len() < PROCS_MAX && sys::read_append(file.as_fd(), &mut text, 4 << 10)? > 0 {}
        let text = String::from_utf8_lossy(&text);
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.cgroup.take().is_some() {
            let _ = rustix::fs::unlinkat(CWD, format!("{CGROUPS}/{}", self.id), AtFlags::REMOVEDIR);
        }
    }
}

/// Whether the container has its own PID namespace instead of the pod's.
pub fn has_own_pids(spec: &payload::Container) -> bool {
    spec.oci.as_ref().is_some_and(|oci| oci.namespaces.contains(&Namespace::Pid))
}

/// Returns the container's mount of the pod's /dev/shm.
pub fn pod_shm(spec: &payload::Container) -> Option<&payload::Mount> {
    spec.oci.iter().flat_map(|oci| &oci.mounts).find(|mount| mount.kind == payload::POD_SHM)
}

/// Refuses an invalid container specification before anything is changed.
pub fn check(spec: &payload::Container) -> Result<(), Error> {
    let id = spec.id.as_str();
    let plain =
        !id.is_empty() && id.len() <= NAME_MAX && !id.contains(['/', '\0']) && id != "." && id != "..";
    if !plain || id == GUEST || id.starts_with("cgroup.") {
        return Err(Error::bad_request(format!("invalid container name {id:?}")));
    }
    let refused = [
        (!spec.addr.is_empty(), "addr: block devices are not supported"),
        (!spec.fstype.is_empty(), "fstype: block devices are not supported"),
        (!spec.volumes.is_empty(), "volumes: block devices are not supported"),
        (!spec.ports.is_empty(), "ports: port mapping is not supported"),
    ];
    if let Some((_, why)) = refused.iter().find(|(asked, _)| *asked) {
        return Err(Error::new(ErrorCode::Unsupported, format!("container {id}: {why}")));
    }
    check_process(&spec.process)
}

/// Refuses an invalid process specification.
pub fn check_process(spec: &payload::Process) -> Result<(), Error> {
    let complaint = if spec.args.is_empty() {
        "has no program"
    } else if spec.id.is_empty() {
        "has no name"
    } else if spec.stdio == 0 {
        "has no stream for stdio"
    } else if !spec.terminal && spec.stderr == 0 {
        "has neither a terminal nor a stream for stderr"
    } else if spec.stdio == spec.stderr {
        "has the same stream for stdio and stderr"
    } else {
        return Ok(());
    };
    Err(Error::bad_request(format!("process {:?} {complaint}", spec.id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> payload::Process {
        payload::Process {
            id: "init".into(),
            args: vec!["sh".into()],
            stdio: 1,
            stderr: 2,
            ..payload::Process::default()
        }
    }

    #[test]
    fn names_that_are_not_valid_directory_names_are_refused() {
        for id in ["", ".", "..", "a/b", "a\0", "hyperstart", "cgroup.procs", &"x".repeat(256)] {
            let spec = payload::Container { id: id.into(), process: process(), ..Default::default() };
            assert!(check(&spec).is_err(), "{id}");
        }
        let spec = payload::Container { id: "c1".into(), process: process(), ..Default::default() };
        assert_eq!(check(&spec), Ok(()));
    }

    #[test]
    fn block_devices_and_port_mapping_are_refused_by_name() {
        let spec = |change: fn(&mut payload::Container)| {
            let mut spec = payload::Container { id: "c1".into(), process: process(), ..Default::default() };
            change(&mut spec);
            check(&spec).unwrap_err().text
        };
        let no_disks = "block devices are not supported";
        assert_eq!(spec(|spec| spec.addr = "0:1".into()), format!("container c1: addr: {no_disks}"));
        assert_eq!(spec(|spec| spec.fstype = "ext4".into()), format!("container c1: fstype: {no_disks}"));
        assert_eq!(
            spec(|spec| spec.volumes = vec![payload::Present]),
            format!("container c1: volumes: {no_disks}")
        );
        assert_eq!(
            spec(|spec| spec.ports = vec![payload::Present]),
            "container c1: ports: port mapping is not supported"
        );
    }

    #[test]
    fn process_without_streams_is_refused() {
        let check = |stdio, stderr, terminal| {
            check_process(&payload::Process { stdio, stderr, terminal, ..process() }).is_ok()
        };
        assert!(check(1, 2, false) && check(1, 0, true) && check(1, 2, true));
        assert!(!check(0, 2, false) && !check(1, 0, false) && !check(1, 1, false) && !check(1, 1, true));
    }

    #[test]
    fn process_without_program_is_refused() {
        let spec = payload::Process { args: vec![], ..process() };
        assert_eq!(check_process(&spec).unwrap_err().text, "process \"init\" has no program");
    }
}
