// UNSAFETY: fork(2), and system calls by number with arguments that are no addresses, each in a child.
#![allow(unsafe_code)]
//! What the kernel offers to a program: system calls and kinds of sockets that exist. Each that does not is a line.

use libc::{c_int, c_long};

/// Numbers of system calls that are tried: those of Linux 6.1 on x86-64.
const NUMBERS: std::ops::RangeInclusive<c_long> = 0..=450;
/// System calls that do not return, or that make a process.
const WITHOUT_RETURN: [c_long; 8] = [
    libc::SYS_rt_sigreturn,
    libc::SYS_pause,
    libc::SYS_clone,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_vhangup,
];
/// SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET.
const TYPES: [c_int; 4] = [1, 2, 3, 5];
/// Families of sockets and their protocols. Each that the host's kernel does not have costs a search for a module, so those
/// of special hardware and of old networks are left out.
const SOCKETS: [(c_int, &[c_int]); 7] = [
    (libc::AF_UNIX, &[0]),
    (libc::AF_INET, OF_IP),
    (libc::AF_INET6, OF_IP),
    // ROUTE, SOCK_DIAG, XFRM, AUDIT, CONNECTOR, NETFILTER, KOBJECT_UEVENT, GENERIC, CRYPTO
    (libc::AF_NETLINK, &[0, 4, 6, 9, 11, 12, 15, 16, 21]),
    // PF_KEY_V2
    (libc::AF_KEY, &[2]),
    (libc::AF_PACKET, &[0]),
    (libc::AF_ALG, &[0]),
];
/// The default protocol, ICMP, TCP, UDP, L2TP, SCTP, UDP-Lite, MPTCP.
const OF_IP: &[c_int] = &[0, 1, 6, 17, 115, 132, 136, 262];

/// Calls each system call with arguments that are wrong for it. Prints the numbers of those that do not exist.
pub fn calls() {
    for number in NUMBERS.filter(|number| !WITHOUT_RETURN.contains(number)) {
        // -1 is neither a descriptor nor an address, and a set of flags that nobody knows.
        let exists = in_child(|| {
            // SAFETY: no argument is an address that the kernel could read or write.
            let result = unsafe { libc::syscall(number, -1_i64, -1_i64, -1_i64, -1_i64, -1_i64, -1_i64) };
            result >= 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
        });
        if !exists {
            println!("{number}");
        }
    }
}

/// Opens sockets of each family, type and protocol. Prints those that exist.
pub fn sockets() {
    for (family, protocols) in SOCKETS {
        for (kind, &protocol) in
            TYPES.into_iter().flat_map(|kind| protocols.iter().map(move |one| (kind, one)))
        {
            // SAFETY: socket(2) takes no addresses.
            let fd = unsafe { libc::socket(family, kind, protocol) };
            if fd >= 0 {
                println!("{family} {kind} {protocol}");
                // SAFETY: the descriptor is of this function.
                unsafe { libc::close(fd) };
            }
        }
    }
}

/// Returns what `call` returns in a child process; true if a signal ends it.
fn in_child(call: impl FnOnce() -> bool) -> bool {
    // SAFETY: this program has one thread, and the child only makes a system call and exits.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    if child == 0 {
        // Nobody waits for an alarm that a call has set.
        let code = c_int::from(!call());
        // SAFETY: ends the child without what the parent has registered.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: the status is a variable of this function.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child, "wait: {}", std::io::Error::last_os_error());
    !(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 1)
}
