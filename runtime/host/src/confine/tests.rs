//! The filters of all roles: what they forbid, and that the process ends as it should.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::thread;

use bpf::testing::{Call, run};
use libc::*;

use super::*;

const ROLES: [Role; 9] = [
    Role::Main,
    Role::Network,
    Role::Pod,
    Role::Vcpu,
    Role::Devices,
    Role::Files,
    Role::AdminFiles,
    Role::Resolver,
    Role::Sockets,
];

/// Calls that no thread of a running machine makes: they start programs, reach other processes, make sockets, or change
/// namespaces, the kernel or the thread's own rights.
const FOREVER: [c_long; 41] = [
    SYS_execve,
    SYS_execveat,
    SYS_fork,
    SYS_vfork,
    SYS_ptrace,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_pidfd_open,
    SYS_pidfd_getfd,
    SYS_pidfd_send_signal,
    SYS_kill,
    SYS_tkill,
    SYS_socketpair,
    SYS_listen,
    SYS_mount,
    SYS_umount2,
    SYS_move_mount,
    SYS_fsopen,
    SYS_pivot_root,
    SYS_chroot,
    SYS_setns,
    SYS_open_by_handle_at,
    SYS_bpf,
    SYS_perf_event_open,
    SYS_userfaultfd,
    SYS_io_uring_setup,
    SYS_io_uring_enter,
    SYS_init_module,
    SYS_finit_module,
    SYS_kexec_load,
    SYS_iopl,
    SYS_ioperm,
    SYS_modify_ldt,
    SYS_keyctl,
    SYS_add_key,
    SYS_seccomp,
    SYS_setuid,
    SYS_setgid,
    SYS_setresuid,
    SYS_prlimit64,
    SYS_personality,
];

/// The reporter of kills is another process: it forks, and makes no other of these calls.
#[test]
fn the_reporter_forks_and_starts_no_program() {
    let forks = (CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD) as u32;
    assert!(permits(Role::Reporter, SYS_clone, [forks; 6]));
    for flags in [CLONE_VM | SIGCHLD, CLONE_NEWNS | SIGCHLD, CLONE_THREAD] {
        assert!(!permits(Role::Reporter, SYS_clone, [flags as u32; 6]), "{flags:#x}");
    }
    for number in FOREVER.into_iter().chain([SYS_socket, SYS_ioctl, SYS_unlinkat, SYS_connect, SYS_clone3]) {
        assert!(!permits(Role::Reporter, number, [0; 6]), "{number}");
    }
}

const IDS: calls::Ids = calls::Ids { process: 100, thread: 101 };

/// Whether a filter permits a call.
fn permits(role: Role, number: c_long, arguments: [u32; 6]) -> bool {
    let call = Call { number: number as u32, args: arguments.map(u64::from), ..Call::default() };
    run(&filter::program(&calls::of(role, IDS)), &call).0 == SECCOMP_RET_ALLOW
}

#[test]
fn no_role_may_leave_its_process() {
    for role in ROLES {
        for number in FOREVER {
            // It connects and listens as a user of the guest, and stays root in its real and saved user.
            let connects = role == Role::Sockets && [SYS_setresuid, SYS_listen].contains(&number);
            assert_eq!(permits(role, number, [0; 6]), connects, "{role:?}: {number}");
        }
        for ids in [[1000, 1000, 0], [0, 1000, 1000]] {
            let [real, effective, saved] = ids;
            let arguments = [real, effective, saved, 0, 0, 0];
            assert!(!permits(role, SYS_setresuid, arguments), "{role:?}: {ids:?}");
            assert!(!permits(role, SYS_setresgid, arguments), "{role:?}: {ids:?}");
        }
        // A process, a thread in new namespaces, and a thread of clone3, whose flags the filter cannot see.
        for flags in [SIGCHLD, CLONE_VM | CLONE_VFORK | SIGCHLD, CLONE_NEWNS, CLONE_NEWUSER, CLONE_THREAD] {
            assert!(!permits(role, SYS_clone, [flags as u32; 6]), "{role:?}: {flags:#x}");
        }
        assert!(!permits(role, SYS_clone3, [0; 6]));
        assert!(!permits(role, SYS_unshare, [CLONE_NEWUSER as u32; 6]));
        assert_eq!(permits(role, SYS_socket, [AF_UNIX as u32; 6]), role == Role::Sockets);
        // The file server binds names, and can neither listen nor connect.
        let stream = (SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK) as u32;
        let serves = matches!(role, Role::Files | Role::AdminFiles);
        let makes = serves || role == Role::Sockets;
        assert_eq!(permits(role, SYS_socket, [AF_UNIX as u32, stream, 0, 0, 0, 0]), makes, "{role:?}");
        // The resolver has sockets of IPv4 only.
        if role != Role::Resolver {
            assert_eq!(permits(role, SYS_bind, [0; 6]), serves, "{role:?}");
            assert_eq!(permits(role, SYS_connect, [0; 6]), role == Role::Sockets, "{role:?}");
        }
        for domain in [AF_INET6, AF_NETLINK, AF_PACKET, AF_VSOCK, AF_ALG] {
            assert!(!permits(role, SYS_socket, [domain as u32; 6]), "{role:?}: {domain}");
        }
        assert_eq!(permits(role, SYS_socket, [AF_INET as u32; 6]), role == Role::Resolver);
    }
}

#[test]
fn no_role_makes_memory_executable() {
    for role in ROLES {
        for protection in [PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC] {
            for number in [SYS_mmap, SYS_mprotect] {
                assert!(!permits(role, number, [0, 0, protection as u32, 0, 0, 0]));
                assert!(permits(role, number, [0, 0, PROT_READ as u32 | PROT_WRITE as u32, 0, 0, 0]));
            }
        }
    }
}

#[test]
fn signals_stay_in_the_process_and_those_of_most_threads_in_the_thread() {
    let signal = |role, process, thread, signal: c_int| {
        permits(role, SYS_tgkill, [process, thread, signal as u32, 0, 0, 0])
    };
    for role in ROLES {
        assert!(signal(role, 100, 101, SIGABRT), "{role:?}");
        for (process, thread, number) in [(1, 101, SIGABRT), (1, 1, SIGKILL), (100, 101, SIGKILL)] {
            assert!(!signal(role, process, thread, number), "{role:?}");
        }
        let stops_vcpus = matches!(role, Role::Main | Role::Network | Role::Pod);
        assert_eq!(signal(role, 100, 102, SIGRTMIN()), stops_vcpus, "{role:?}");
    }
}

#[test]
fn ioctls_are_those_of_the_role() {
    let tiocsti = TIOCSTI as u32;
    for (role, number, permitted) in [
        (Role::Vcpu, 0xae80, true),
        (Role::Devices, 0xae80, false),
        // KVM_GET_LAPIC and KVM_GET_CLOCK, which a checkpoint needs, but not KVM_SET_REGS or KVM_SET_USER_MEMORY_REGION.
        (Role::Vcpu, 0x8400_ae8e, true),
        (Role::Vcpu, 0x4090_ae82, false),
        (Role::Main, 0x8030_ae7c, true),
        (Role::Main, 0x4020_ae46, false),
        (Role::Devices, 0x8030_ae7c, false),
        (Role::Files, 0xae80, false),
        (Role::Files, 0x4008_6602, true),
        (Role::Main, 0x4008_6602, false),
        (Role::Main, 0x4020_ae76, true),
        (Role::Vcpu, tiocsti, false),
        (Role::Main, tiocsti, false),
        (Role::Main, 0x4004_54ca, false),
        (Role::Network, 0x4004_54ca, true),
        (Role::Devices, 0x0000_af01, true),
        (Role::Vcpu, 0x0000_af01, false),
    ] {
        assert_eq!(permits(role, SYS_ioctl, [0, number, 0, 0, 0, 0]), permitted, "{role:?}: {number:#x}");
    }
}

#[test]
fn only_the_main_thread_of_a_namespace_resets_its_connections() {
    for role in ROLES {
        let resets = matches!(role, Role::Network | Role::Resolver);
        let option = |name: c_int| [0, SOL_SOCKET as u32, name as u32, 0, 0, 0];
        assert_eq!(permits(role, SYS_setsockopt, option(SO_LINGER)), resets, "{role:?}");
        assert_eq!(permits(role, SYS_setsockopt, option(SO_MARK)), role == Role::Resolver, "{role:?}");
    }
}

#[test]
fn only_the_file_server_and_the_main_thread_open_files() {
    for role in ROLES {
        let opens = !matches!(role, Role::Vcpu | Role::Devices | Role::Resolver | Role::Sockets);
        assert_eq!(permits(role, SYS_openat, [0; 6]), opens, "{role:?}");
        assert_eq!(permits(role, SYS_unlinkat, [0; 6]), opens, "{role:?}");
        for number in [SYS_renameat2, SYS_mknodat, SYS_linkat, SYS_fchmodat, SYS_fchownat] {
            let serves = matches!(role, Role::Files | Role::AdminFiles);
            assert_eq!(permits(role, number, [0; 6]), serves, "{role:?}: {number}");
        }
    }
}

/// Runs [`child`] in a process of its own, with its task in an environment variable.
fn in_process(task: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "confine::tests::child", "--nocapture"]).env("VMM_TEST_CONFINED", task);
    command.output().unwrap()
}

/// Not a test of its own: what the processes of the other tests do.
#[test]
fn child() {
    let Ok(task) = std::env::var("VMM_TEST_CONFINED") else { return };
    prepare(|message| eprintln!("{message}")).unwrap();
    let (role, act) = task.split_once(' ').unwrap();
    let role = ROLES.into_iter().find(|it| format!("{it:?}") == role).unwrap();
    let act = act.to_owned();
    let work = move || {
        enter(role);
        match act.as_str() {
            "end" => {}
            "panic" => {
                std::panic::catch_unwind(|| panic!("a message")).map_or_else(|_| std::process::abort(), drop)
            }
            number => sys::confinement::call(number.parse().unwrap()),
        }
    };
    thread::Builder::new().name(format!("{role:?}")).spawn(work).unwrap().join().unwrap();
}

#[test]
fn a_forbidden_call_is_reported_and_kills_the_process() {
    for role in ROLES {
        for number in [SYS_execve, SYS_socketpair, SYS_ptrace, SYS_mount] {
            let output = in_process(&format!("{role:?} {number}"));
            assert_eq!(output.status.signal(), Some(SIGSYS), "{role:?} {number}: {output:?}");
            let text = String::from_utf8(output.stderr).unwrap();
            let report = format!("thread {role:?}: forbidden system call {number}, the process is killed");
            assert!(text.contains(&report), "{text}");
        }
    }
}

#[test]
fn a_confined_thread_ends_and_panics_as_before() {
    for role in ROLES {
        let output = in_process(&format!("{role:?} end"));
        assert!(output.status.success(), "{role:?}: {output:?}");
        let output = in_process(&format!("{role:?} panic"));
        assert_eq!(output.status.signal(), Some(SIGABRT), "{role:?}: {output:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("a message"));
    }
}

/// The kernel translates each instruction of a filter several times, and runs it for each of some 450 numbers.
#[test]
fn a_filter_is_short_and_finds_a_call_in_few_steps() {
    for role in ROLES.into_iter().chain([Role::Reporter]) {
        let program = filter::program(&calls::of(role, IDS));
        let steps = (0..450).map(|number| run(&program, &Call { number, ..Call::default() }).1);
        let mean = steps.sum::<usize>() as f64 / 450.0;
        assert!(program.len() <= 196 && mean < 10.0, "{role:?}: {}, {mean:.1}", program.len());
    }
}
