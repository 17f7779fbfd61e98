//! A container's cgroup: its limits, and a name for all its processes.

use alloc::format;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::fault::{Fault, Step};

/// Where the pod's cgroup tree is mounted in the agent's own tree.
pub const CGROUPS: &str = "/run/cgroup";
/// Where the root says which controllers its children have.
const CONTROL: &str = "/run/cgroup/cgroup.subtree_control";

/// Makes a container's cgroup, or finds the one that it had.
pub fn make(id: &str) -> Result<OwnedFd, Fault> {
    let path = format!("{CGROUPS}/{id}");
    match rustix::fs::mkdir(path.as_str(), Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno).step("make cgroup", &path),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path.as_str(), flags, Mode::empty()).step("open cgroup", &path)
}

/// Writes one limit. Its controller is there from then on; one that nobody needs costs the others nothing.
pub fn limit(cgroup: &OwnedFd, file: &str, value: &str) -> Result<(), Fault> {
    let plain = |name: &str| !name.is_empty() && !name.contains('/');
    let Some((controller, _)) =
        file.split_once('.').filter(|(controller, rest)| plain(controller) && plain(rest))
    else {
        return Err(Fault::bad_request(format!("{file} is no file of a cgroup")));
    };
    if controller != "cgroup" {
        write(&CWD, CONTROL, &format!("+{controller}")).step("enable controller", controller)?;
    }
    write(cgroup, file, value).step("set limit", &format!("{file} to {value}"))
}

fn write(directory: &impl AsFd, file: &str, value: &str) -> Result<(), Errno> {
    let opened = rustix::fs::openat(directory, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&opened, value.as_bytes()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_files_of_the_cgroup_and_no_other() {
        let nowhere = rustix::fs::open("/", OFlags::PATH, Mode::empty()).unwrap();
        for file in ["", "memory", "../memory.max", "a/b.c", "cgroup./../x", ".max"] {
            let fault = limit(&nowhere, file, "1").unwrap_err();
            assert_eq!(fault.text, format!("{file} is no file of a cgroup"));
        }
        let fault = limit(&nowhere, "cgroup.max.depth", "3").unwrap_err();
        assert_eq!(fault.text, "set limit cgroup.max.depth to 3: no such file or directory");
    }
}
