//! What a runtime must not leave on the host after the removal of its containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tests::{check_output, program};

/// Maximum time for a process to end.
const DEADLINE: Duration = Duration::from_secs(30);

/// Asserts that `vmm` has left no process, state or tap.
pub fn assert_none(engine: &Path) {
    for pid in processes(&program()) {
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let timeout = Timespec::try_from(DEADLINE).expect("the deadline is a time");
        let ended =
            poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)).expect("wait for a process");
        assert!(ended > 0, "process {pid:?} is left: {}", command_line(pid));
    }
    for state in states(engine).into_iter().chain(["/run/vmm".into(), "/run/containerd/runc/default".into()])
    {
        let left = names(&state);
        assert!(left.is_empty(), "left in {}: {left:?}", state.display());
    }
    let links = check_output(std::process::Command::new("ip").args(["-o", "link", "show", "type", "tun"]));
    assert_eq!(links, "", "taps are left");
}

/// The runtime's state directories for Docker's containers.
pub fn states(engine: &Path) -> [PathBuf; 3] {
    // Docker names the directory after the type of the runtime, which is independent of the configured name.
    ["run/runtime-vmm/moby", "run/runtime-runc/moby", "xdg/run/runtime-runc/moby"]
        .map(|path| engine.join(path))
}

/// Processes that execute `program`, except one that makes a template, which is no container's.
pub fn processes(program: &Path) -> Vec<Pid> {
    let all = names(Path::new("/proc")).into_iter().filter_map(|name| name.parse().ok());
    all.filter(|pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program))
        .filter_map(Pid::from_raw)
        .filter(|pid| !command_line(*pid).ends_with(" template make "))
        .collect()
}

fn command_line(pid: Pid) -> String {
    let path = PathBuf::from(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).replace('\0', " ")
}

/// The names in a directory, without the lock that all containers of a state directory share and that remains.
pub fn names(dir: &Path) -> Vec<String> {
    let Ok(all) = fs::read_dir(dir) else { return Vec::new() };
    let all = all.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    all.filter(|name| !name.starts_with('.')).collect()
}
