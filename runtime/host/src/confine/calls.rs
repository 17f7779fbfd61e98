//! The system calls of each thread, from recorded runs of every command (`tests/vm/confinement.rs` repeats some) and
//! from the rare paths of the C library and the standard library: out of memory, a panic, a clock without vDSO.

use libc::{c_long, *};

use super::Role;
use super::filter::{Call, Condition, Rule};

/// Calls of all threads: for memory, locks, the clock, the log, and the end of a panic.
const COMMON: [c_long; 26] = [
    SYS_brk,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_close,
    SYS_exit,
    SYS_exit_group,
    SYS_futex,
    SYS_getpid,
    SYS_getrandom,
    SYS_gettid,
    SYS_gettimeofday,
    SYS_mremap,
    SYS_munmap,
    SYS_nanosleep,
    SYS_ppoll,
    SYS_read,
    SYS_restart_syscall,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sched_getaffinity,
    SYS_sched_yield,
    SYS_sigaltstack,
    SYS_time,
    SYS_write,
    SYS_writev,
];

/// Registering a queue's kick with an event loop: a vCPU does it when the driver starts the file device.
const VCPU: [c_long; 2] = [SYS_epoll_create1, SYS_epoll_ctl];

const DEVICES: [c_long; 11] = [
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_wait,
    SYS_poll,
    SYS_pwrite64,
    SYS_readv,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_sendmsg,
    SYS_sendto,
    SYS_shutdown,
];

/// The operations of `devices/src/share`, all relative to descriptors. No call that resolves a path of the guest's.
const FILES: [c_long; 57] = [
    SYS_capget,
    SYS_capset,
    SYS_copy_file_range,
    SYS_epoll_ctl,
    SYS_epoll_wait,
    SYS_epoll_pwait,
    SYS_faccessat2,
    SYS_fallocate,
    SYS_fchdir,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_fchown,
    SYS_fchownat,
    SYS_fdatasync,
    SYS_flock,
    SYS_fstat,
    SYS_fstatfs,
    SYS_fsync,
    SYS_ftruncate,
    SYS_getdents64,
    SYS_getegid,
    SYS_geteuid,
    SYS_getxattr,
    SYS_inotify_add_watch,
    SYS_inotify_rm_watch,
    SYS_lgetxattr,
    SYS_linkat,
    SYS_listxattr,
    SYS_lseek,
    SYS_mkdirat,
    SYS_mknodat,
    SYS_name_to_handle_at,
    SYS_newfstatat,
    SYS_openat,
    SYS_poll,
    SYS_pread64,
    SYS_preadv,
    SYS_preadv2,
    SYS_pwrite64,
    SYS_pwritev,
    SYS_pwritev2,
    SYS_readlinkat,
    SYS_readv,
    SYS_removexattr,
    SYS_renameat,
    SYS_renameat2,
    SYS_setfsgid,
    SYS_setfsuid,
    SYS_setxattr,
    SYS_statfs,
    SYS_statx,
    SYS_symlinkat,
    SYS_sync_file_range,
    SYS_syncfs,
    SYS_umask,
    SYS_unlinkat,
    SYS_utimensat,
];

/// The process's own files below its directory, clients of its socket, signals, the terminal, and the machine's end.
const MAIN: [c_long; 53] = [
    SYS_accept4,
    SYS_dup2,
    SYS_dup3,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_wait,
    SYS_eventfd2,
    SYS_fchmod,
    SYS_fchown,
    SYS_flock,
    SYS_fstat,
    SYS_fstatfs,
    SYS_fsync,
    SYS_ftruncate,
    SYS_getdents64,
    SYS_getegid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getpgrp,
    SYS_getppid,
    SYS_getsid,
    SYS_getsockopt,
    SYS_getuid,
    SYS_lseek,
    SYS_lstat,
    SYS_memfd_create,
    SYS_mkdir,
    SYS_mkdirat,
    SYS_newfstatat,
    SYS_open,
    SYS_openat,
    SYS_pipe2,
    SYS_poll,
    SYS_pread64,
    SYS_pwrite64,
    SYS_readlink,
    SYS_readlinkat,
    SYS_readv,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_rename,
    SYS_renameat,
    SYS_rmdir,
    SYS_sendmsg,
    SYS_sendto,
    SYS_shutdown,
    SYS_stat,
    SYS_statx,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    SYS_unlink,
    SYS_unlinkat,
];

/// Sharing a directory with a container that is added to a pod.
const POD: [c_long; 2] = [SYS_mount_setattr, SYS_open_tree];

const RESOLVER: [c_long; 11] = [
    SYS_bind,
    SYS_connect,
    SYS_getpeername,
    SYS_getsockname,
    SYS_getsockopt,
    SYS_poll,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_sendmsg,
    SYS_sendto,
    SYS_setsockopt,
];

/// Connecting to sockets by the number of a descriptor, and listening on those that the file server has bound, as users of
/// the guest.
const SOCKETS: [c_long; 11] = [
    SYS_accept4,
    SYS_connect,
    SYS_fchdir,
    SYS_getsockopt,
    SYS_listen,
    SYS_poll,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_sendmsg,
    SYS_sendto,
    SYS_shutdown,
];

/// Forking a process, moving it to a cgroup, and waiting for its end.
const REPORTER: [c_long; 22] = [
    SYS_close_range,
    SYS_dup2,
    SYS_dup3,
    SYS_fstat,
    SYS_getdents64,
    SYS_getppid,
    SYS_inotify_add_watch,
    SYS_inotify_init1,
    SYS_lseek,
    SYS_mkdir,
    SYS_newfstatat,
    SYS_open,
    SYS_openat,
    SYS_poll,
    SYS_pread64,
    SYS_pwrite64,
    SYS_recvfrom,
    SYS_sendto,
    SYS_set_robust_list,
    SYS_stat,
    SYS_statx,
    SYS_wait4,
];

/// ioctls on a vCPU: KVM_RUN, and those that describe a failed one: KVM_GET_REGS, KVM_GET_SREGS, KVM_TRANSLATE.
const KVM_VCPU: [u32; 4] = [0xae80, 0x8090_ae81, 0x8138_ae83, 0xc018_ae85];
/// ioctls that read the state of a vCPU, while its machine is saved. The last one shows which registers KVM accepts again.
const KVM_VCPU_STATE: [u32; 9] = [
    0x8004_ae98, // KVM_GET_MP_STATE
    0x9000_aea4, // KVM_GET_XSAVE
    0x8188_aea6, // KVM_GET_XCRS
    0x8080_aea1, // KVM_GET_DEBUGREGS
    0x8400_ae8e, // KVM_GET_LAPIC
    0x8040_ae9f, // KVM_GET_VCPU_EVENTS
    0x0000_aea3, // KVM_GET_TSC_KHZ
    0xc008_ae88, // KVM_GET_MSRS
    0x4008_ae89, // KVM_SET_MSRS
];
/// ioctls that read the state of a machine, and what KVM can do.
const KVM_STATE: [u32; 5] = [
    0x8030_ae7c, // KVM_GET_CLOCK
    0xc208_ae62, // KVM_GET_IRQCHIP
    0xc008_ae05, // KVM_GET_SUPPORTED_CPUID
    0x0000_ae03, // KVM_CHECK_EXTENSION
    0xc004_ae02, // KVM_GET_MSR_INDEX_LIST
];
/// KVM_IRQFD, which disconnects the interrupts at the machine's end.
const KVM_IRQFD: u32 = 0x4020_ae76;
/// TUNSETOFFLOAD, when the driver starts a NIC.
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
/// TUNSETIFF and TUNSETVNETHDRSZ, for an interface that is added to a running container.
const TUN: [u32; 2] = [0x4004_54ca, 0x4004_54d8];
/// The ioctls of vhost-net (linux/vhost.h) that lend queues to the kernel and take them back.
const VHOST: [u32; 11] = [
    0x8008_af00, // VHOST_GET_FEATURES
    0x4008_af00, // VHOST_SET_FEATURES
    0x0000_af01, // VHOST_SET_OWNER
    0x4008_af03, // VHOST_SET_MEM_TABLE
    0x4008_af10, // VHOST_SET_VRING_NUM
    0x4028_af11, // VHOST_SET_VRING_ADDR
    0x4008_af12, // VHOST_SET_VRING_BASE
    0xc008_af12, // VHOST_GET_VRING_BASE
    0x4008_af20, // VHOST_SET_VRING_KICK
    0x4008_af21, // VHOST_SET_VRING_CALL
    0x4008_af22, // VHOST_SET_VRING_ERR
];
/// VHOST_NET_SET_BACKEND.
const VHOST_NET: u32 = 0x4008_af30;

/// FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR (linux/fs.h).
const FILE_FLAGS: [u32; 4] = [0x8008_6601, 0x4008_6602, 0x801c_581f, 0x401c_5820];

/// Duplicates and flags. Not the owner of a descriptor, to which the kernel sends signals.
const FCNTL: [u32; 5] =
    [F_DUPFD_CLOEXEC as u32, F_GETFD as u32, F_SETFD as u32, F_GETFL as u32, F_SETFL as u32];

/// Locks of ranges that the file server sets for the guest. It never waits for one.
const RANGES: [u32; 2] = [F_OFD_GETLK as u32, F_OFD_SETLK as u32];

/// The flags with which the C library starts a thread. A process is started with others.
const THREAD: u32 = (CLONE_VM
    | CLONE_FS
    | CLONE_FILES
    | CLONE_SIGHAND
    | CLONE_THREAD
    | CLONE_SYSVSEM
    | CLONE_SETTLS
    | CLONE_PARENT_SETTID
    | CLONE_CHILD_CLEARTID) as u32;
/// The flags with which the C library forks a process.
const FORK: u32 = (CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD) as u32;
/// Signals by which a thread ends the process.
const CRASHES: [u32; 5] = [SIGABRT as u32, SIGBUS as u32, SIGFPE as u32, SIGILL as u32, SIGSEGV as u32];

/// The numbers of this process and thread, to which signals are restricted.
#[derive(Clone, Copy)]
pub struct Ids {
    pub process: u32,
    pub thread: u32,
}

/// Returns the system calls that a thread may make, sorted by number.
pub fn of(role: Role, ids: Ids) -> Vec<Call> {
    let mut calls = COMMON.map(always).to_vec();
    calls.extend(memory());
    let own = one_of(0, &[ids.process]);
    // A crash or a panic ends the process by a signal to its own thread.
    let end = when(SYS_tgkill, [own.clone(), one_of(1, &[ids.thread]), one_of(2, &CRASHES)].concat());
    let mut prctl = vec![PR_GET_NAME as u32];
    let mut ioctls: Vec<u32> = Vec::new();
    match role {
        Role::Vcpu => {
            calls.extend(VCPU.map(always));
            calls.push(end);
            ioctls.extend(KVM_VCPU.iter().chain(&[TUNSETOFFLOAD]).chain(&KVM_VCPU_STATE));
        }
        Role::Devices => {
            calls.extend(DEVICES.map(always));
            calls.push(end);
            ioctls.extend(VHOST.iter().chain(&[VHOST_NET, FIONBIO as u32]));
        }
        Role::Files | Role::AdminFiles => {
            calls.extend(FILES.map(always));
            calls.push(end);
            calls.push(when(SYS_unshare, one_of(0, &[CLONE_FS as u32])));
            calls.extend(binding());
            ioctls.extend(FILE_FLAGS);
            // The second needs a capability that the thread never has, so it fails.
            prctl.extend([PR_GET_SECUREBITS, PR_SET_SECUREBITS].map(|number| number as u32));
        }
        Role::Resolver => {
            calls.extend(RESOLVER.map(always));
            calls.push(end);
            calls.push(when(SYS_socket, one_of(0, &[AF_INET as u32])));
            ioctls.push(FIONBIO as u32);
        }
        Role::Sockets => {
            calls.extend(sockets());
            calls.push(end);
            ioctls.push(FIONBIO as u32);
        }
        Role::Reporter => {
            calls.extend(REPORTER.map(always));
            calls.push(end);
            calls.push(when(SYS_clone, one_of(0, &[FORK])));
            prctl.push(PR_SET_PDEATHSIG as u32);
        }
        Role::Main | Role::Network | Role::Pod => {
            calls.extend(MAIN.map(always));
            calls.push(when(SYS_clone, one_of(0, &[THREAD])));
            // To stop vCPUs as well.
            let signals = [&CRASHES[..], &[SIGRTMIN() as u32]].concat();
            calls.push(when(SYS_tgkill, [own, one_of(2, &signals)].concat()));
            // The C library then starts threads by clone, whose arguments a filter can read.
            calls.push(Call { number: SYS_clone3 as u32, rule: Rule::Fail(ENOSYS as u32) });
            calls.push(always(SYS_rseq));
            calls.push(always(SYS_set_robust_list));
            prctl.push(PR_SET_NAME as u32);
            ioctls.extend([KVM_IRQFD, TCGETS as u32, TIOCGWINSZ as u32, FIONBIO as u32]);
            ioctls.extend(KVM_STATE);
            ioctls.extend([TCSETS, TCSETSW, TCSETSF].map(|number| number as u32));
            ioctls.extend([TCGETS2, TCSETS2, TCSETSW2, TCSETSF2].map(|number| number as u32));
        }
    }
    calls.extend(fcntl(role).into_iter().chain(connections(role)));
    calls.extend(failing(role));
    match role {
        Role::Network => ioctls.extend(TUN.iter().chain(&VHOST).chain(&[VHOST_NET, SIOCGIFINDEX as u32])),
        Role::Pod => calls.extend(POD.map(always)),
        _ => {}
    }
    calls.push(when(SYS_prctl, one_of(0, &prctl)));
    if !ioctls.is_empty() {
        calls.push(when(SYS_ioctl, one_of(1, &ioctls)));
    }
    calls.sort_by_key(|call| call.number);
    calls
}

fn fcntl(role: Role) -> Option<Call> {
    match role {
        Role::Vcpu => None,
        Role::Files | Role::AdminFiles => Some(when(SYS_fcntl, one_of(1, &[&FCNTL[..], &RANGES].concat()))),
        _ => Some(when(SYS_fcntl, one_of(1, &FCNTL))),
    }
}

/// Returns the calls that change memory. It is never executable, neither new nor changed memory.
fn memory() -> [Call; 3] {
    let no_code = |argument| vec![Condition { argument, mask: PROT_EXEC as u32, values: vec![0] }];
    let advice = one_of(2, &[MADV_DONTNEED as u32, MADV_FREE as u32]);
    [when(SYS_mmap, no_code(2)), when(SYS_mprotect, no_code(2)), when(SYS_madvise, advice)]
}

/// Returns the calls that bind a name to a socket, on which another thread listens.
fn binding() -> [Call; 2] {
    let stream = (SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK) as u32;
    let kind = [one_of(0, &[AF_UNIX as u32]), one_of(1, &[stream])].concat();
    [when(SYS_socket, kind), always(SYS_bind)]
}

/// Returns the calls of the thread that connects to sockets of the host.
fn sockets() -> Vec<Call> {
    let mut calls = SOCKETS.map(always).to_vec();
    calls.push(when(SYS_socket, one_of(0, &[AF_UNIX as u32])));
    // The real and the saved user and group stay root's.
    let effective = [one_of(0, &[0]), one_of(2, &[0])].concat();
    calls.push(when(SYS_setresuid, effective.clone()));
    calls.push(when(SYS_setresgid, effective));
    calls
}

/// Returns the calls for connections to the namespace's loopback addresses: the port, and a reset at the end.
fn connections(role: Role) -> Vec<Call> {
    if role != Role::Network {
        return Vec::new();
    }
    let reset = [one_of(1, &[SOL_SOCKET as u32]), one_of(2, &[SO_LINGER as u32])].concat();
    vec![always(SYS_getsockname), when(SYS_setsockopt, reset)]
}

/// Returns the calls that the C library or a panic makes, and that may fail.
fn failing(role: Role) -> Vec<Call> {
    let fails = |number: c_long| Call { number: number as u32, rule: Rule::Fail(EACCES as u32) };
    // A panic shortens the paths of its backtrace by the working directory, and looks for its own program.
    let mut calls = vec![fails(SYS_getcwd)];
    if !matches!(role, Role::Main | Role::Network | Role::Pod) {
        calls.push(fails(SYS_readlink));
    }
    if matches!(role, Role::Vcpu | Role::Devices | Role::Resolver | Role::Sockets) {
        // The C library's allocator looks for the number of CPUs in /sys, and asks for it otherwise.
        calls.push(fails(SYS_openat));
    }
    calls
}

fn always(number: c_long) -> Call {
    Call { number: number as u32, rule: Rule::Always }
}

fn when(number: c_long, conditions: Vec<Condition>) -> Call {
    Call { number: number as u32, rule: Rule::If(conditions) }
}

fn one_of(argument: u32, values: &[u32]) -> Vec<Condition> {
    vec![Condition { argument, mask: u32::MAX, values: values.to_vec() }]
}
