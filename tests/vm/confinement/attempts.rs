//! What each thread of a running machine's process cannot do, tried from within the thread.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;

use libc::*;
use serde_json::json;
use tests::Bundle;

use super::tracer::{Outcome, Thread};
use crate::lifecycle::Container;
use crate::network::Nets;
use crate::pods::Pod;

/// An argument that is a number.
const fn number(value: i64) -> Option<u64> {
    Some(value as u64)
}

/// An argument that is the address of the call's text.
const TEXT: Option<u64> = None;
const NULL: Option<u64> = Some(0);

/// A system call with its arguments and the text that they point to.
type Attempt = (&'static str, c_long, &'static [Option<u64>], &'static str);

/// Attempts to get out of the process, which every filter forbids.
const ATTEMPTS: [Attempt; 32] = [
    ("execve", SYS_execve, &[TEXT, NULL, NULL], "/bin/true"),
    ("execveat", SYS_execveat, &[number(-100), TEXT, NULL, NULL, NULL], "/bin/true"),
    ("fork", SYS_fork, &[], ""),
    ("clone a process", SYS_clone, &[number(SIGCHLD as i64), NULL], ""),
    ("ptrace", SYS_ptrace, &[number(PTRACE_SEIZE as i64), number(1)], ""),
    ("process_vm_readv", SYS_process_vm_readv, &[number(1)], ""),
    ("pidfd_open", SYS_pidfd_open, &[number(1), NULL], ""),
    ("kill", SYS_kill, &[number(1), NULL], ""),
    ("signal another process's thread", SYS_tgkill, &[number(1), number(1), NULL], ""),
    ("mount", SYS_mount, &[TEXT, TEXT, TEXT, NULL, NULL], "tmpfs"),
    ("umount", SYS_umount2, &[TEXT, NULL], "/proc"),
    ("fsopen", SYS_fsopen, &[TEXT, NULL], "tmpfs"),
    ("pivot_root", SYS_pivot_root, &[TEXT, TEXT], "/"),
    ("chroot", SYS_chroot, &[TEXT], "/"),
    ("setns", SYS_setns, &[number(0), NULL], ""),
    ("unshare a user namespace", SYS_unshare, &[number(CLONE_NEWUSER as i64)], ""),
    ("Unix socket", SYS_socket, &[number(AF_UNIX as i64), number(SOCK_STREAM as i64), NULL], ""),
    ("netlink socket", SYS_socket, &[number(AF_NETLINK as i64), number(SOCK_RAW as i64), NULL], ""),
    ("packet socket", SYS_socket, &[number(AF_PACKET as i64), number(SOCK_RAW as i64), NULL], ""),
    ("open_by_handle_at", SYS_open_by_handle_at, &[number(-100), TEXT, NULL], ""),
    ("executable memory", SYS_mmap, &[NULL, number(4096), number(7), number(0x22), number(-1), NULL], ""),
    ("bpf", SYS_bpf, &[NULL, TEXT, number(8)], ""),
    ("io_uring", SYS_io_uring_setup, &[number(1), TEXT], ""),
    ("perf_event_open", SYS_perf_event_open, &[TEXT, NULL, number(-1), number(-1), NULL], ""),
    ("userfaultfd", SYS_userfaultfd, &[NULL], ""),
    ("keyctl", SYS_keyctl, &[NULL, number(-3), NULL], ""),
    ("setuid", SYS_setuid, &[number(0)], ""),
    ("iopl", SYS_iopl, &[number(3)], ""),
    ("load a module", SYS_init_module, &[TEXT, number(1), TEXT], ""),
    ("reboot", SYS_reboot, &[NULL, NULL, NULL, NULL], ""),
    ("a new filter", SYS_seccomp, &[NULL, NULL, TEXT], ""),
    ("core files again", SYS_prctl, &[number(PR_SET_DUMPABLE as i64), number(1)], ""),
];

/// Stops each thread in turn and makes all attempts. `files` says what becomes of an attempt to open /etc/passwd, or to
/// create a file, by the kind of thread.
#[track_caller]
fn try_all(pid: u32, main_opens: Outcome) {
    let mut tried = Vec::new();
    for (name, id) in threads(pid) {
        let thread = Thread::stop(pid, id);
        for (what, call, args, text) in ATTEMPTS {
            assert_eq!(thread.call(call, args, text), Outcome::Forbidden, "{name}: {what}");
        }
        let internet = [number(AF_INET.into()), number(SOCK_DGRAM.into()), NULL];
        let socket = thread.call(SYS_socket, &internet, "");
        assert_eq!(socket == Outcome::Forbidden, name != "resolver", "{name}: {socket:?}");
        let opens = |path: &str, flags: c_int| {
            thread.call(
                SYS_openat,
                &[number(AT_FDCWD.into()), TEXT, number(flags.into()), number(0o600)],
                path,
            )
        };
        let wanted = match name.as_str() {
            // Its root is empty and read-only.
            "fs0" => (Outcome::Failed(ENOENT), Outcome::Failed(EROFS)),
            "vmm" => (main_opens, main_opens),
            // The C library's allocator asks, so that the process is not killed.
            _ => (Outcome::Failed(EACCES), Outcome::Failed(EACCES)),
        };
        let new = format!("/vmm-attempt-{pid}");
        let got = (opens("/etc/passwd", O_RDONLY), opens(&new, O_CREAT | O_WRONLY | O_EXCL));
        if main_opens == Outcome::Returned(0) && name == "vmm" {
            assert!(matches!(got, (Outcome::Returned(_), Outcome::Returned(_))), "{got:?}");
        } else {
            assert_eq!(got, wanted, "{name}");
        }
        let created = std::fs::remove_file(new).is_ok();
        assert_eq!(created, matches!(got.1, Outcome::Returned(_)), "{name}");
        thread.release();
        tried.push(name);
    }
    for kind in ["vmm", "vcpu0", "devices", "fs0"] {
        assert!(tried.iter().any(|name| name == kind), "no {kind} in {tried:?}");
    }
}

/// Returns the process's own threads: names and ids.
fn threads(pid: u32) -> BTreeMap<String, u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("list the threads");
    let named = tasks.map(|task| {
        let task = task.expect("a thread");
        let name = std::fs::read_to_string(task.path().join("comm")).expect("read a thread's name");
        (name.trim_end().to_owned(), task.file_name().to_string_lossy().parse().expect("a number"))
    });
    // Threads of the host's kernel cannot be traced, and run no code of the process.
    named.filter(|(name, _)| !name.starts_with("vhost-") && !name.starts_with("kvm-")).collect()
}

#[test]
fn no_thread_of_a_container_gets_out_and_the_container_goes_on() {
    let bundle = Bundle::sh("echo ready; read line; echo $line").flag("--cpus").flag("2");
    let mut running = bundle.start();
    running.wait_for("ready");
    try_all(running.pid(), Outcome::Failed(EACCES));
    running.write(b"on\n");
    running.finish().code(0).stdout("\non\n");
}

#[test]
fn no_thread_of_an_engine_s_container_with_a_network_gets_out() {
    let nets = Nets::joined();
    let folder = tempfile::tempdir().unwrap();
    let resolv_conf = folder.path().join("resolv.conf");
    std::fs::write(&resolv_conf, "nameserver 127.0.0.11\n").unwrap();
    // A bind of resolv.conf makes the machine have a resolver.
    let bind = json!({"destination": "/etc/resolv.conf", "type": "bind", "source": resolv_conf, "options": ["bind"]});
    let container = Container::new(nets.bundle("exec sleep 100000").mount(bind));
    let pid = container.create().as_raw_nonzero().get() as u32;
    container.out(&["start", "c"]);
    assert!(threads(pid).contains_key("resolver"), "{:?}", threads(pid));
    try_all(pid, Outcome::Failed(EACCES));
    container.out(&["exec", "c", "true"]);
}

/// A pod's main thread opens the files of containers that are added.
#[test]
fn no_thread_of_a_pod_gets_out_but_its_main_thread_opens_files() {
    let pod = Pod::new();
    let container = pod.container("a", "exec sleep 100000", json!({}));
    pod.detach(json!({"containers": [container]}));
    try_all(pod.pid() as u32, Outcome::Returned(0));
    pod.exec_out("a", "true");
}

#[test]
fn a_thread_that_makes_a_forbidden_call_is_named_in_the_log_and_ends_the_process() {
    for name in ["vcpu0", "devices", "fs0", "vmm"] {
        let mut running = Bundle::sh("echo ready; exec sleep 100000").start();
        running.wait_for("ready");
        let pid = running.pid();
        Thread::stop(pid, threads(pid)[name]).call_for_good(SYS_execve);
        let finished = running.finish();
        assert_eq!(finished.status.signal(), Some(SIGSYS), "{finished}");
        let report = format!("thread {name}: forbidden system call {SYS_execve}, the process is killed");
        assert!(String::from_utf8_lossy(&finished.stderr).contains(&report), "{finished}");
    }
}
