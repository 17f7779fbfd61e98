// UNSAFETY: bpf(2), whose attributes contain addresses.
#![allow(unsafe_code)]
//! Maps, programs and links of eBPF: what steers connections to a socket (BPF_PROG_TYPE_SK_LOOKUP, Linux 5.9).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::check;

/// Commands of bpf(2) (linux/bpf.h).
const MAP_CREATE: u32 = 0;
const MAP_UPDATE_ELEM: u32 = 2;
const PROG_LOAD: u32 = 5;
const LINK_CREATE: u32 = 28;
/// A map of sockets by number.
const SOCKMAP: u32 = 15;
const PROGRAM_SK_LOOKUP: u32 = 30;
const ATTACH_SK_LOOKUP: u32 = 36;
/// Operation code of the instruction that loads 64 bits; in its source register, that the bits are a map's descriptor.
const LOAD_64: u8 = 0x18;
const MAP_DESCRIPTOR: u8 = 1;

/// An instruction of eBPF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub code: u8,
    /// The destination in the lower half, the source in the upper one.
    pub registers: u8,
    pub offset: i16,
    pub value: i32,
}

/// Returns the two instructions that load a map into a register.
pub fn load_map(register: u8, map: BorrowedFd<'_>) -> [Instruction; 2] {
    let load = Instruction {
        code: LOAD_64,
        registers: register | MAP_DESCRIPTOR << 4,
        offset: 0,
        value: map.as_raw_fd(),
    };
    [load, Instruction::default()]
}

#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
}

#[repr(C)]
struct MapUpdate {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// Makes a call of bpf(2).
///
/// # Safety
///
/// `T` must be the beginning of the command's attributes, and addresses in it must be valid for what the command does.
unsafe fn call<T>(command: u32, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads as many bytes as the attributes have; the caller guarantees the addresses.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    check(result as libc::c_int)
}

/// Takes a descriptor that the kernel has just created.
fn owned(fd: libc::c_int) -> OwnedFd {
    // SAFETY: nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Returns an empty map for this many sockets.
pub fn socket_map(entries: u32) -> io::Result<OwnedFd> {
    let attributes = MapCreate { kind: SOCKMAP, key_size: 4, value_size: 8, entries, flags: 0 };
    // SAFETY: the attributes contain no address.
    unsafe { call(MAP_CREATE, &attributes) }.map(owned)
}

/// Puts a socket into a map.
pub fn insert_socket(map: BorrowedFd<'_>, key: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
    let value = socket.as_raw_fd() as u64;
    let attributes = MapUpdate {
        map: map.as_raw_fd() as u32,
        padding: 0,
        key: (&raw const key) as u64,
        value: (&raw const value) as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads a key of 4 bytes and a value of 8, which are the sizes of the map and of the variables.
    unsafe { call(MAP_UPDATE_ELEM, &attributes) }.map(drop)
}

/// Loads a program that selects the listening socket of a new connection.
pub fn load_socket_lookup(program: &[Instruction], license: &CStr) -> io::Result<OwnedFd> {
    let attributes = ProgramLoad {
        kind: PROGRAM_SK_LOOKUP,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: [0; 16],
        interface: 0,
        attach_type: ATTACH_SK_LOOKUP,
    };
    // SAFETY: the kernel reads `count` instructions, and the license up to its NUL.
    unsafe { call(PROG_LOAD, &attributes) }.map(owned)
}

/// Lets a program act in a network namespace until the returned link is closed.
pub fn attach_socket_lookup(program: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        program: program.as_raw_fd() as u32,
        target: namespace.as_raw_fd() as u32,
        attach_type: ATTACH_SK_LOOKUP,
        flags: 0,
    };
    // SAFETY: the attributes contain no address.
    unsafe { call(LINK_CREATE, &attributes) }.map(owned)
}
