// UNSAFETY: system calls for which no dependency has functions, with addresses and numbers that a hostile program would
// pass.
#![allow(unsafe_code)]
//! Attempts of a container to reach the guest's kernel, the agent or another container. Each prints a line: its name, and
//! the error's name or `done`.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use libc::{c_int, c_long};

/// FILEID_INO64_GEN without a parent, as fs/fuse/inode.c encodes nodes.
const FUSE_HANDLE: c_int = 0x81;
/// FUSE_ROOT_ID: the node of a file system's root.
const ROOT_NODE: u32 = 1;
/// Size of a `struct bpf_insn`.
const INSTRUCTION: usize = 8;

/// struct file_handle with a node of FUSE.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: c_int,
    /// Upper and lower half of the node's number, and its generation.
    node: [u32; 3],
}

/// Makes all attempts.
pub fn run() {
    // SAFETY: PTRACE_SEIZE touches no memory.
    report("agent by ptrace", unsafe { call(libc::SYS_ptrace, [libc::PTRACE_SEIZE as usize, 1, 0, 0, 0]) });
    report("memory of process 1", call_on_process_1());
    for file in ["mem", "environ", "root/etc", "cwd/etc", "fd/3", "ns/mnt", "exe"] {
        report(&format!("/proc/1/{file}"), opened(&format!("/proc/1/{file}")));
    }
    for path in [
        "/proc/kcore",
        "/proc/kmsg",
        "/dev/mem",
        "/dev/kmsg",
        "/dev/vport0p1",
        "/dev/hvc0",
        "/sys/kernel/debug/sched",
        "/sys/firmware/memmap",
    ] {
        report(path, opened(path));
    }
    for (path, text) in [
        ("/proc/sysrq-trigger", "h"),
        ("/proc/sys/kernel/core_pattern", "|/bin/sh"),
        ("/proc/sys/kernel/hostname", "other"),
        ("/proc/sys/vm/drop_caches", "1"),
        ("/proc/sys/kernel/modprobe", "/bin/sh"),
        ("/sys/kernel/uevent_helper", "/bin/sh"),
        ("/sys/fs/cgroup/cgroup.procs", "1"),
        ("/sys/fs/cgroup/pids.max", "max"),
    ] {
        report(
            path,
            File::options()
                .write(true)
                .open(path)
                .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes())),
        );
    }
    calls();
    report("root of the share by handle", share_by_handle());
}

/// System calls that change the kernel or make new namespaces.
fn calls() {
    let tmpfs = CString::new("tmpfs").unwrap();
    let mnt = CString::new("/mnt").unwrap();
    let (tmpfs, mnt) = (tmpfs.as_ptr() as usize, mnt.as_ptr() as usize);
    let (mut memory, mut zeros) = ([0_u8; 256], [0_u8; 256]);
    let buffer = zeros.as_mut_ptr() as usize;
    let attempts: [(&str, c_long, [usize; 5]); 15] = [
        ("mount a tmpfs", libc::SYS_mount, [tmpfs, mnt, tmpfs, 0, 0]),
        ("new mount namespace", libc::SYS_unshare, [libc::CLONE_NEWNS as usize, 0, 0, 0, 0]),
        ("new cgroup namespace", libc::SYS_unshare, [libc::CLONE_NEWCGROUP as usize, 0, 0, 0, 0]),
        ("load a module", libc::SYS_init_module, [buffer, 64, buffer, 0, 0]),
        ("remove a module", libc::SYS_delete_module, [tmpfs, 0, 0, 0, 0]),
        ("load another kernel", libc::SYS_kexec_load, [0, 0, 0, 0, 0]),
        ("I/O privilege level", libc::SYS_iopl, [3, 0, 0, 0, 0]),
        ("segment descriptors", libc::SYS_modify_ldt, [1, buffer, 16, 0, 0]),
        (
            "performance counter of the kernel",
            libc::SYS_perf_event_open,
            [buffer, 0, usize::MAX, usize::MAX, 0],
        ),
        ("fault handler for the kernel", libc::SYS_userfaultfd, [0, 0, 0, 0, 0]),
        ("BPF program", libc::SYS_bpf, [5, bpf_load(&mut memory), 128, 0, 0]),
        ("kernel log", libc::SYS_syslog, [3, buffer, 64, 0, 0]),
        ("clear the kernel log", libc::SYS_syslog, [5, 0, 0, 0, 0]),
        ("set the clock", libc::SYS_settimeofday, [buffer, 0, 0, 0, 0]),
        ("swap", libc::SYS_swapon, [mnt, 0, 0, 0, 0]),
    ];
    for (name, number, args) in attempts {
        // SAFETY: the pointers are to buffers of this function that are large enough, and to C strings.
        report(name, unsafe { call(number, args) });
    }
}

/// Writes union bpf_attr of BPF_PROG_LOAD to the memory: a socket filter that returns 0. Returns its address.
fn bpf_load(memory: &mut [u8; 256]) -> usize {
    // r0 = 0; exit
    memory[128] = 0xb7;
    memory[128 + INSTRUCTION] = 0x95;
    memory[0..4].copy_from_slice(&1_u32.to_ne_bytes());
    memory[4..8].copy_from_slice(&2_u32.to_ne_bytes());
    let code = memory[128..].as_ptr() as u64;
    memory[8..16].copy_from_slice(&code.to_ne_bytes());
    memory[200..204].copy_from_slice(b"GPL\0");
    let license = memory[200..].as_ptr() as u64;
    memory[16..24].copy_from_slice(&license.to_ne_bytes());
    memory.as_ptr() as usize
}

fn call_on_process_1() -> io::Result<()> {
    let mut to = [0_u8; 16];
    let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(0x0040_0000), iov_len: to.len() };
    // SAFETY: both vectors and the buffer live during the call.
    let read = unsafe { libc::process_vm_readv(1, &raw const local, 1, &raw const remote, 1, 0) };
    if read < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Opens the root of the virtio-fs share by its handle, and looks for this container's root below it.
fn share_by_handle() -> io::Result<()> {
    let root = File::open("/")?;
    let handle = Handle { bytes: 12, kind: FUSE_HANDLE, node: [0, ROOT_NODE, 0] };
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    // SAFETY: the handle is a struct file_handle with its number of bytes.
    let fd =
        unsafe { libc::syscall(libc::SYS_open_by_handle_at, root.as_raw_fd(), &raw const handle, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel returned this descriptor, which has no other owner.
    let share = unsafe { File::from_raw_fd(fd as c_int) };
    for entry in fs::read_dir(format!("/proc/self/fd/{}", share.as_raw_fd()))? {
        println!("share has {}", entry?.file_name().display());
    }
    Ok(())
}

fn opened(path: &str) -> io::Result<()> {
    File::open(path).map(drop)
}

/// Makes a system call.
///
/// # Safety
///
/// Pointers among the arguments are valid for what the call does with them.
unsafe fn call(number: c_long, args: [usize; 5]) -> io::Result<()> {
    // SAFETY: as above.
    let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4]) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn report(name: &str, result: io::Result<()>) {
    let error = result.err().map(|error| error.raw_os_error().unwrap_or_default());
    let outcome = match error {
        None => "done",
        Some(libc::EPERM) => "EPERM",
        Some(libc::EACCES) => "EACCES",
        Some(libc::ENOENT) => "ENOENT",
        Some(libc::ENOSYS) => "ENOSYS",
        Some(libc::EROFS) => "EROFS",
        Some(libc::ENXIO) => "ENXIO",
        Some(libc::EBUSY) => "EBUSY",
        Some(libc::EOPNOTSUPP) => "EOPNOTSUPP",
        Some(libc::ESRCH) => "ESRCH",
        Some(libc::ESTALE) => "ESTALE",
        Some(libc::EINVAL) => "EINVAL",
        Some(libc::EIO) => "EIO",
        Some(libc::EFAULT) => "EFAULT",
        Some(other) => return println!("{name}: error {other}"),
    };
    println!("{name}: {outcome}");
}
