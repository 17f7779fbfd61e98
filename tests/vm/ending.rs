//! The end of a machine: what is over when its process is reaped, and what a SIGKILL during the end leaves.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FlockOperation, flock};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Pid;
use serde_json::json;
use tests::{Bundle, Running, busybox_rootfs, until};

use crate::lifecycle::faults::{in_cgroup, processes};
use crate::lifecycle::{Container, reap};
use crate::network::Nets;

/// Memory that the container uses, in MiB.
const USED_MIB: u64 = 64;

/// A file system in memory at the bundle's root file system.
struct RootMount(PathBuf);

impl RootMount {
    fn new(bundle: &Bundle) -> RootMount {
        let root = bundle.rootfs();
        mount("none", &root, "tmpfs", MountFlags::empty(), None).expect("mount a file system for the root");
        busybox_rootfs(&root);
        RootMount(root)
    }
}

impl Drop for RootMount {
    fn drop(&mut self) {
        // The test has unmounted it, unless it failed.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Memory that is charged to a cgroup, in MiB.
fn charged(cgroup: &Path) -> u64 {
    let bytes = fs::read_to_string(cgroup.join("memory.current")).expect("read memory.current");
    bytes.trim().parse::<u64>().expect("a number") >> 20
}

/// What an engine does next must not meet the machine: it unmounts the root file system, removes the network namespace
/// and the cgroup, and starts a container that needs the memory or a lock.
#[test]
fn a_reaped_process_holds_nothing_of_the_host() {
    let nets = Nets::joined();
    let place = format!("vmm-test-ending-{}", std::process::id());
    let script = format!(
        "dd if=/dev/zero of=/ram/used bs=1M count={USED_MIB}
         (echo open 5 rw; echo flock 5 try w; exec sleep 1000) | exec /bin/guest locks /volume/lock"
    );
    let volume = tempfile::TempDir::new().expect("create a volume");
    File::create(volume.path().join("lock")).expect("create the lock's file");
    let bundle = nets
        .bundle(&script)
        .mount(json!({"destination": "/ram", "type": "tmpfs", "source": "tmpfs"}))
        .mount(
            json!({"destination": "/volume", "type": "bind", "source": volume.path(), "options": ["bind"]}),
        )
        .with(|config| config["linux"]["cgroupsPath"] = json!(format!("/{place}/inner")));
    let root = RootMount::new(&bundle);
    bundle.copy_guest_program();
    let container = Container::new(bundle);
    let pid = container.create();
    container.out(&["start", "c"]);
    let answers = until("the container locks its file", || {
        Some(container.read("stdout")).filter(|text| text.lines().count() == 2)
    });
    assert_eq!(answers.lines().last(), Some("ok"), "{answers}");
    let cgroup = Path::new("/sys/fs/cgroup").join(&place);
    let lock = || File::open(volume.path().join("lock")).expect("open the lock's file");
    assert!(flock(lock(), FlockOperation::NonBlockingLockExclusive).is_err());
    assert!(nets.traces().contains("vmm"), "the machine has no tap: {}", nets.traces());
    assert!(charged(&cgroup) >= USED_MIB, "{} MiB are charged", charged(&cgroup));

    container.out(&["kill", "c", "KILL"]);
    assert_eq!(reap(pid), Ok(137));
    let traces = nets.traces();
    assert!(!traces.contains("vmm"), "the tap is still there: {traces}");
    flock(lock(), FlockOperation::NonBlockingLockExclusive).expect("nobody holds the lock");
    unmount(&root.0, UnmountFlags::empty()).expect("nobody uses the root file system");
    let left = charged(&cgroup);
    assert!(left < USED_MIB / 4, "{left} MiB are still charged");
    container.out(&["delete", "c"]);
    assert!(!cgroup.join("inner").exists());
    fs::remove_dir(&cgroup).expect("the cgroup is empty");
}

/// The cgroup of `vmm run` is removed before its process ends.
#[test]
fn a_reaped_run_has_no_cgroup() {
    let place = format!("vmm-test-run-{}", std::process::id());
    let bundle = Bundle::sh("true").with(|config| config["linux"]["cgroupsPath"] = json!(place));
    bundle.run().code(0);
    assert!(!Path::new("/sys/fs/cgroup").join(place).exists());
}

/// System calls that a machine's process makes at its end.
const ENDING: [&str; 10] = [
    "write",
    "ioctl",
    "epoll_ctl",
    "futex",
    "close",
    "munmap",
    "rename,renameat",
    "unlink,unlinkat",
    "rmdir",
    "exit_group",
];

/// Attaches strace to the process. From now on its `nth` call of `step` kills it.
fn kill_at(pid: Pid, step: &str, nth: u32) -> Running {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-p", &pid.as_raw_nonzero().to_string(), "-o", "/dev/null"]);
    strace.args(["-e", &format!("trace={step}"), "-e", &format!("inject={step}:signal=SIGKILL:when={nth}")]);
    let strace = Running::start(strace);
    until("strace traces every thread", || {
        let threads = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).ok()?;
        let is_traced = |thread: fs::DirEntry| {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            status.contains("TracerPid:\t") && !status.contains("TracerPid:\t0\n")
        };
        threads.filter_map(Result::ok).all(is_traced).then_some(())
    });
    strace
}

#[test]
fn a_process_killed_at_any_moment_of_its_end_leaves_nothing() {
    let mut kills = 0;
    for step in ENDING {
        // Every call of an end that has few of this kind, and some of many.
        for nth in [1, 2, 3, 5, 8, 13, 21] {
            let (container, cgroup) = in_cgroup("end");
            let pid = container.create();
            container.out(&["start", "c"]);
            let strace = kill_at(pid, step, nth);
            // The process may already be killed while it answers.
            container.state.output(&["kill", "c", "KILL"]);
            let ended = reap(pid);
            strace.finish();
            let moment = format!("{step} {nth}");
            assert!(matches!(ended, Ok(137) | Err(9)), "{moment}: {ended:?}");
            container.out(&["delete", "--force", "c"]);
            assert_eq!(processes(&container), [""; 0], "{moment}");
            assert!(container.is_gone() && !cgroup.exists(), "{moment}");
            if ended == Ok(137) {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 10, "{kills} kills");
}
