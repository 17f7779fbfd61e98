//! What a runtime must not leave on the host when its containers are gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tests::{check_output, program};

/// How long what was told to go may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Asserts that no process of ours is left, and no state, tap or queueing discipline.
pub fn assert_none(engine: &Path) {
    for pid in processes(&program()) {
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let timeout = Timespec::try_from(DEADLINE).expect("the deadline is a time");
        let ended =
            poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)).expect("wait for a process");
        assert!(ended > 0, "process {pid:?} is left: {}", words_of(pid));
    }
    for state in states(engine).into_iter().chain(["/run/vmm".into(), "/run/containerd/runc/default".into()])
    {
        let left = names(&state);
        assert!(left.is_empty(), "left in {}: {left:?}", state.display());
    }
    let links = check_output(std::process::Command::new("ip").args(["-o", "link", "show", "type", "tun"]));
    assert_eq!(links, "", "taps are left");
}

/// Where the runtime has its states of Docker's containers.
pub fn states(engine: &Path) -> [PathBuf; 2] {
    // Docker calls the directory by the runtime's type, however it is named in its settings.
    ["run/runtime-vmm/moby", "run/runtime-runc/moby"].map(|path| engine.join(path))
}

/// The processes of a program.
pub fn processes(program: &Path) -> Vec<Pid> {
    let all = names(Path::new("/proc")).into_iter().filter_map(|name| name.parse().ok());
    all.filter(|pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program))
        .filter_map(Pid::from_raw)
        .collect()
}

fn words_of(pid: Pid) -> String {
    let path = PathBuf::from(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).replace('\0', " ")
}

/// What is in a directory, but for a lock that all containers of a state directory share, which stays with it.
pub fn names(dir: &Path) -> Vec<String> {
    let Ok(all) = fs::read_dir(dir) else { return Vec::new() };
    let all = all.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    all.filter(|name| !name.starts_with('.')).collect()
}
