//! A container's cgroup: limits, and access to all its processes.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use agent_proto::payload::DEVICE_RULES_MAX;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::error::{Error, Step};
use crate::sys;

/// Mount point of the pod's cgroup tree in the agent's mount namespace.
pub const CGROUPS: &str = "/run/cgroup";
/// File of the root cgroup that enables controllers for its children.
const CONTROL: &str = "/run/cgroup/cgroup.subtree_control";

/// Turns on the controllers that count the memory, processes and CPU time of containers. Containers that are created
/// before this are not counted.
pub fn account() -> Result<(), Error> {
    let file = rustix::fs::openat(CWD, CONTROL, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .step("open", CONTROL)?;
    // One write for each controller, because the kernel may lack some of them.
    for controller in ["+memory", "+pids", "+cpu"] {
        let _ = rustix::io::write(&file, controller.as_bytes());
    }
    Ok(())
}

/// Creates a container's cgroup, or opens the existing one.
pub fn create(id: &str) -> Result<OwnedFd, Error> {
    let path = format!("{CGROUPS}/{id}");
    match rustix::fs::mkdir(path.as_str(), Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno).step("create cgroup", &path),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path.as_str(), flags, Mode::empty()).step("open cgroup", &path)
}

/// Opens the cgroup `path` below `cgroup`.
pub fn open_below(cgroup: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(cgroup, path, flags, Mode::empty(), inside).step("open the container's cgroup", path)
}

/// Whether `cgroup` has enabled controllers for its children. It then accepts no processes (cgroup-v2, "No Internal
/// Process Constraint").
pub fn enables_controllers(cgroup: BorrowedFd<'_>) -> bool {
    read(&cgroup, "cgroup.subtree_control").is_ok_and(|controllers| !controllers.trim().is_empty())
}

/// Opens the cgroup that a process is in.
pub fn open_of(pid: Pid) -> Result<OwnedFd, Error> {
    let path = format!("/proc/{}/cgroup", pid.as_raw_nonzero());
    let text = read(&CWD, &path).step("read", &path)?;
    let below = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    let path = format!("{CGROUPS}{below}");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path.as_str(), flags, Mode::empty()).step("open cgroup", &path)
}

fn read(directory: &impl AsFd, file: &str) -> Result<String, Errno> {
    let opened = rustix::fs::openat(directory, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = Vec::new();
    sys::read_append(opened.as_fd(), &mut text, 4 << 10)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Writes one limit. Enables its controller first: controllers are enabled only when needed, because each costs time.
pub fn limit(cgroup: &OwnedFd, file: &str, value: &str) -> Result<(), Error> {
    let plain = |name: &str| !name.is_empty() && !name.contains('/');
    let Some((controller, _)) =
        file.split_once('.').filter(|(controller, rest)| plain(controller) && plain(rest))
    else {
        return Err(Error::bad_request(format!("invalid cgroup file name {file:?}")));
    };
    if controller != "cgroup" {
        write(&CWD, CONTROL, &format!("+{controller}")).step("enable controller", controller)?;
    }
    write(cgroup, file, value).step("set limit", &format!("{file} to {value}"))
}

/// Applies [`device_rules`](agent_proto::payload::OciContainer::device_rules) to `cgroup` and all cgroups below. Does
/// nothing if the kernel has no devices controller in cgroup v2, as is possible with `--kernel`.
pub fn filter_devices(cgroup: &OwnedFd, rules: &[String]) -> Result<(), Error> {
    if rules.is_empty() {
        return Ok(());
    }
    if rules.len() > DEVICE_RULES_MAX {
        return Err(Error::bad_request(format!("limit of {DEVICE_RULES_MAX} device rules exceeded")));
    }
    match write(&CWD, CONTROL, "+devices") {
        Err(Errno::INVAL) => return Ok(()),
        enabled => enabled.step("enable controller", "devices")?,
    }
    let open = |file| open_to_write(cgroup, file).step("open", file);
    let (allow, deny) = (open("devices.allow")?, open("devices.deny")?);
    rules.iter().try_for_each(|rule| {
        let (file, value) = match rule.split_once(' ') {
            Some(("allow", value)) => (&allow, value),
            Some(("deny", value)) => (&deny, value),
            _ => return Err(Error::bad_request(format!("invalid device rule {rule:?}"))),
        };
        rustix::io::write(file, value.as_bytes()).map(drop).step("write device rule", rule)
    })
}

fn write(directory: &impl AsFd, file: &str, value: &str) -> Result<(), Errno> {
    rustix::io::write(&open_to_write(directory, file)?, value.as_bytes()).map(drop)
}

fn open_to_write(directory: &impl AsFd, file: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(directory, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Returns the number after `name` in a file with lines of name and number.
pub fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_can_only_be_files_of_the_cgroup() {
        let nowhere = rustix::fs::open("/", OFlags::PATH, Mode::empty()).unwrap();
        for file in ["", "memory", "../memory.max", "a/b.c", "cgroup./../x", ".max"] {
            let error = limit(&nowhere, file, "1").unwrap_err();
            assert_eq!(error.text, format!("invalid cgroup file name {file:?}"));
        }
        let error = limit(&nowhere, "cgroup.max.depth", "3").unwrap_err();
        assert_eq!(error.text, "set limit cgroup.max.depth to 3: no such file or directory");
    }

    #[test]
    fn device_rules_have_a_limit() {
        let nowhere = rustix::fs::open("/", OFlags::PATH, Mode::empty()).unwrap();
        assert_eq!(filter_devices(&nowhere, &[]), Ok(()));
        let many = vec!["deny a".into(); DEVICE_RULES_MAX + 1];
        assert_eq!(filter_devices(&nowhere, &many).unwrap_err().text, "limit of 1024 device rules exceeded");
    }

    #[test]
    fn paths_outside_of_the_cgroup_are_refused() {
        let top = rustix::fs::open("/proc", OFlags::PATH, Mode::empty()).unwrap();
        assert!(open_below(top.as_fd(), "sys/kernel").is_ok());
        for path in ["..", "sys/../..", "/proc/sys", "self/root", "nowhere", "uptime"] {
            let error = open_below(top.as_fd(), path).unwrap_err();
            assert!(
                error.text.starts_with(&format!("open the container's cgroup {path}: ")),
                "{}",
                error.text
            );
        }
    }
}
