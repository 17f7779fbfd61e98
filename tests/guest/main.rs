//! The program that tests run in the guest. Its checks use files like other programs and assert what these rely on.
//!
//! `guest CHECK` works in the current directory and prints `ok`, or panics. `guest hostile SCENARIO` replaces the
//! agent. `guest echo`, `datagrams`, `drain` and `pour` are ends of connections.
// UNSAFETY: mmap(2), because one of the checks is about shared mappings, and ioperm(2), for which no dependency has a
// function.
#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{FallocateFlags, SeekFrom as Whence, XattrFlags};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};

mod attempts;
mod hostile;
mod locks;
mod network;
mod socket;
mod surface;
mod watch;

/// Entries of the large directory, which need several READDIR replies.
const MANY: usize = 1500;

fn main() {
    let word = |at| std::env::args().nth(at).unwrap_or_default();
    let check = word(1);
    match check.as_str() {
        "unlinked" => unlinked(),
        "renamed-over" => renamed_over(),
        "mapped" => mapped(false),
        "mapped-synced" => mapped(true),
        "linked" => linked(),
        "xattrs" => xattrs(),
        "attributes-again" => return attributes_again(),
        "reserved" => return reserved(),
        "sparse" => sparse(),
        "shifted" => shifted(),
        "nanoseconds" => nanoseconds(),
        "without-waiting" => without_waiting(),
        "many" => many(),
        "appended" => appended(),
        "locked" => locked(),
        "mapped-appended" => mapped_appended(),
        "acls" => acls(),
        "setid" => setid(),
        "locks" => return locks::run(&word(2)),
        "watch" => return watch::run(&word(2)),
        "attempts" => return attempts::run(),
        "socket" => return socket::run(&word(2), &word(3), &word(4)),
        "serve" => return socket::serve(&word(2), &word(3), &word(4)),
        "hostile" => hostile::run(&word(2)),
        "echo" => network::echo(&word(2)),
        "datagrams" => network::datagrams(&word(2)),
        "drain" => network::drain(&word(2), &word(3)),
        "pour" => network::pour(&word(2), &word(3)),
        "serve-tcp" => network::serve(&word(2)),
        "ports" => ports(),
        "clock" => clock(),
        "protocols" => network::protocols(),
        "memory" => memory(&word(2)),
        "calls" => return surface::calls(),
        "sockets" => return surface::sockets(),
        _ => panic!("no check {check:?}"),
    }
    println!("ok");
}

/// Sets, reads and lists attributes that Linux reserves for CAP_SYS_ADMIN, and prints the results.
fn reserved() {
    File::create("file").unwrap();
    for name in ["trusted.test", "security.test"] {
        match rustix::fs::setxattr("file", name, b"value", XattrFlags::empty()) {
            Ok(()) => println!("{name}: set"),
            Err(error) => println!("{name}: {error}"),
        }
        let mut value = [0; 16];
        match rustix::fs::getxattr("file", name, &mut value[..]) {
            Ok(len) => println!("{name}: {}", String::from_utf8_lossy(&value[..len])),
            Err(error) => println!("{name}: {error}"),
        }
    }
    let mut list = [0; 256];
    let len = rustix::fs::listxattr("file", &mut list[..]).unwrap();
    let mut names: Vec<_> = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    for name in names {
        println!("{}", String::from_utf8_lossy(name));
    }
}

/// Touches so many MiB of memory, and keeps them until it is sent a line.
fn memory(mib: &str) {
    let touched = vec![1u8; mib.parse::<usize>().expect("a number of MiB") << 20];
    println!("touched {}", touched.iter().map(|byte| usize::from(*byte)).sum::<usize>());
    std::io::stdin().read_line(&mut String::new()).expect("read a line");
    drop(touched);
}

/// Prints the wall clock in nanoseconds for each line of input.
fn clock() {
    for line in std::io::stdin().lines() {
        line.unwrap();
        println!("{}", std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos());
    }
}

/// Without CAP_SYS_RAWIO a process cannot use I/O ports, such as the port of the boot's marks.
fn ports() {
    const IOPERM: isize = 173;
    const EPERM: isize = 1;
    for port in [0x6e0, 0x64, 0x3f8] {
        let result: isize;
        // SAFETY: ioperm touches no memory.
        unsafe {
            std::arch::asm!(
                "syscall",
                inlateout("rax") IOPERM => result,
                in("rdi") port, in("rsi") 1, in("rdx") 1,
                lateout("rcx") _, lateout("r11") _,
                options(nostack),
            );
        }
        assert_eq!(result, -EPERM, "port {port:#x}");
    }
}

fn open_new(name: &str) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).open(name).unwrap()
}

/// apt, users of mkstemp, here documents: an unlinked file can be used while it is open.
fn unlinked() {
    let mut file = open_new("u");
    file.write_all(b"before").unwrap();
    fs::remove_file("u").unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.nlink()), (6, 0));
    file.set_len(3).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 3);
    file.seek(SeekFrom::End(0)).unwrap();
    file.write_all(b"after").unwrap();
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "befafter");
    rustix::fs::fchmod(&file, 0o600.into()).unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
    // A new file of the same name is another file.
    fs::write("u", "new").unwrap();
    assert_ne!(fs::metadata("u").unwrap().ino(), metadata.ino());
    assert_eq!(file.metadata().unwrap().len(), 8);
}

/// dpkg, editors: a rename replaces a file that is open, and the old file stays readable.
fn renamed_over() {
    fs::write("old", "old").unwrap();
    let mut open = File::open("old").unwrap();
    fs::write("new", "new").unwrap();
    let new = fs::metadata("new").unwrap().ino();
    fs::rename("new", "old").unwrap();
    assert_eq!(fs::read_to_string("old").unwrap(), "new");
    assert_eq!(fs::metadata("old").unwrap().ino(), new);
    assert!(!fs::exists("new").unwrap());
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old");
    fs::create_dir_all("d/e").unwrap();
    assert!(fs::rename("d", "old").is_err());
    fs::rename("d", "f").unwrap();
    assert!(fs::exists("f/e").unwrap());
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    let refused = rustix::fs::renameat_with(rustix::fs::CWD, "f", rustix::fs::CWD, "old", flags);
    assert_eq!(refused, Err(rustix::io::Errno::EXIST));
}

/// Databases, rpm, ldconfig: a shared mapping and its file are coherent. With `synced` the mapping is synced before the
/// file is read.
fn mapped(synced: bool) {
    const LEN: usize = 1 << 20;
    let file = open_new("m");
    file.set_len(LEN as u64).unwrap();
    // SAFETY: a new shared mapping of a file that is not truncated meanwhile. Only this function uses it.
    let bytes = unsafe {
        let flags = MapFlags::SHARED;
        let at =
            rustix::mm::mmap(std::ptr::null_mut(), LEN, ProtFlags::READ | ProtFlags::WRITE, flags, &file, 0);
        std::slice::from_raw_parts_mut(at.unwrap().cast::<u8>(), LEN)
    };
    bytes[5000..5005].copy_from_slice(b"hello");
    if synced {
        // SAFETY: this is the whole mapping from above.
        unsafe { rustix::mm::msync(bytes.as_mut_ptr().cast(), LEN, MsyncFlags::SYNC).unwrap() };
    }
    let mut piece = [0; 5];
    file.read_exact_at(&mut piece, 5000).unwrap();
    assert_eq!(&piece, b"hello");
    file.write_all_at(b"world", 9000).unwrap();
    assert_eq!(&bytes[9000..9005], b"world");
    // SAFETY: this is the whole mapping from above.
    unsafe { rustix::mm::msync(bytes.as_mut_ptr().cast(), LEN, MsyncFlags::SYNC).unwrap() };
    let mut again = [0; 5];
    File::open("m").unwrap().read_exact_at(&mut again, 5000).unwrap();
    assert_eq!(&again, b"hello");
}

fn linked() {
    fs::write("a", "text").unwrap();
    fs::hard_link("a", "b").unwrap();
    let (a, b) = (fs::metadata("a").unwrap(), fs::metadata("b").unwrap());
    assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
    fs::write("b", "longer text").unwrap();
    assert_eq!(fs::read_to_string("a").unwrap(), "longer text");
    fs::remove_file("a").unwrap();
    assert_eq!(fs::metadata("b").unwrap().nlink(), 1);
    assert_eq!(fs::read_to_string("b").unwrap(), "longer text");
}

fn xattrs() {
    fs::write("x", "").unwrap();
    rustix::fs::setxattr("x", "user.key", b"value", XattrFlags::CREATE).unwrap();
    let mut value = [0; 16];
    let len = rustix::fs::getxattr("x", "user.key", &mut value[..]).unwrap();
    assert_eq!(&value[..len], b"value");
    let refused = rustix::fs::setxattr("x", "user.key", b"other", XattrFlags::CREATE);
    assert_eq!(refused, Err(rustix::io::Errno::EXIST));
    let mut names = [0; 64];
    let len = rustix::fs::listxattr("x", &mut names[..]).unwrap();
    let listed: Vec<&[u8]> = names[..len].split(|b| *b == 0).filter(|n| n.starts_with(b"user.")).collect();
    assert_eq!(listed, [b"user.key"]);
    rustix::fs::removexattr("x", "user.key").unwrap();
    let gone = rustix::fs::getxattr("x", "user.key", &mut value[..]);
    assert_eq!(gone, Err(rustix::io::Errno::NODATA));
}

/// Sets attributes of new files to what they are, and to something else, once the host watches the directory.
fn attributes_again() {
    // struct vfs_ns_cap_data of linux/capability.h, version 2: permitted is CAP_NET_RAW.
    let capabilities = [[1, 0, 0, 2], [0, 0x20, 0, 0], [0; 4], [0; 4], [0; 4]].concat();
    let held = |name: &str| {
        let mut value = [0; 32];
        let len = rustix::fs::getxattr(name, "security.capability", &mut value[..])?;
        Ok::<_, rustix::io::Errno>(value[..len].to_vec())
    };
    assert!(fs::metadata("missing").is_err());
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    for name in (0..8).map(|number| format!("a{number}")) {
        let name = name.as_str();
        open_new(name).write_all(b"x").unwrap();
        let mode = fs::metadata(name).unwrap().mode() & 0o7777;
        chmod(name, mode);
        std::os::unix::fs::chown(name, Some(0), Some(0)).unwrap();
        assert_eq!(held(name), Err(rustix::io::Errno::NODATA));
        chmod(name, 0o711);
        chmod(name, 0o4711);
        std::os::unix::fs::chown(name, Some(0), Some(0)).unwrap();
        assert_eq!(fs::metadata(name).unwrap().mode() & 0o7777, 0o711, "chown clears set-user-ID");
        rustix::fs::setxattr(name, "security.capability", &capabilities[..20], XattrFlags::empty()).unwrap();
        chmod(name, 0o700);
        assert_eq!(held(name).unwrap()[4..8], capabilities[4..8]);
        std::os::unix::fs::chown(name, Some(0), Some(0)).unwrap();
        assert_eq!(held(name), Err(rustix::io::Errno::NODATA), "chown removes capabilities");
        std::os::unix::fs::chown(name, Some(7), Some(8)).unwrap();
        let found = fs::metadata(name).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (7, 8, 0o700));
    }
    println!("ok");
}

fn chmod(name: &str, mode: u32) {
    fs::set_permissions(name, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

fn sparse() {
    const MIB: u64 = 1 << 20;
    let file = open_new("s");
    file.write_all_at(b"end", 64 * MIB).unwrap();
    file.sync_all().unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), 64 * MIB + 3);
    assert!(metadata.blocks() * 512 < MIB, "{} blocks", metadata.blocks());
    assert_eq!(rustix::fs::seek(&file, Whence::Data(0)).unwrap(), 64 * MIB);
    assert_eq!(rustix::fs::seek(&file, Whence::Hole(0)).unwrap(), 0);
    // The file's offset is -1.
    assert_eq!(rustix::fs::seek(&file, Whence::Data(u64::MAX)), Err(rustix::io::Errno::NXIO));
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 2 * MIB).unwrap();
    assert!(file.metadata().unwrap().blocks() * 512 >= 2 * MIB);
    file.write_all_at(&[7; 8192], 0).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 0, 4096).unwrap();
    let mut piece = [1; 8192];
    file.read_exact_at(&mut piece, 0).unwrap();
    assert!(piece[..4096].iter().all(|b| *b == 0) && piece[4096..].iter().all(|b| *b == 7));
}

/// Times are set to the nanosecond.
fn nanoseconds() {
    let time = |ns| std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_nanos(ns);
    let file = open_new("n");
    let times = fs::FileTimes::new().set_accessed(time(1_234_567_891)).set_modified(time(9_876_543_219));
    file.set_times(times).unwrap();
    drop(file);
    let metadata = fs::metadata("n").unwrap();
    assert_eq!((metadata.atime(), metadata.atime_nsec()), (1, 234_567_891));
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (9, 876_543_219));
}

/// Ranges are taken out of a file and put into it.
fn shifted() {
    const BLOCK: usize = 4096;
    let file = open_new("h");
    for n in 0..8u8 {
        file.write_all_at(&[n; BLOCK], u64::from(n) * BLOCK as u64).unwrap();
    }
    let blocks = |expected: &[u8]| {
        let mut data = Vec::new();
        File::open("h").unwrap().read_to_end(&mut data).unwrap();
        assert_eq!(file.metadata().unwrap().len(), (expected.len() * BLOCK) as u64);
        assert!(data.chunks(BLOCK).map(|block| block[9]).eq(expected.iter().copied()));
    };
    blocks(&[0, 1, 2, 3, 4, 5, 6, 7]);
    let (offset, len) = (BLOCK as u64, 2 * BLOCK as u64);
    rustix::fs::fallocate(&file, FallocateFlags::COLLAPSE_RANGE, offset, len).unwrap();
    blocks(&[0, 3, 4, 5, 6, 7]);
    rustix::fs::fallocate(&file, FallocateFlags::INSERT_RANGE, offset, len).unwrap();
    blocks(&[0, 0, 0, 3, 4, 5, 6, 7]);
    let end = rustix::fs::fallocate(&file, FallocateFlags::COLLAPSE_RANGE, offset, 7 * BLOCK as u64);
    assert_eq!(end, Err(rustix::io::Errno::INVAL));
}

/// What is in memory can be read without waiting, and only that.
fn without_waiting() {
    use std::io::IoSliceMut;
    let file = open_new("w");
    file.write_all_at(b"text", 0).unwrap();
    let read = |len| {
        let mut data = vec![0; len];
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        rustix::io::preadv2(&file, &mut [IoSliceMut::new(&mut data)], 0, flags)
            .map(|count| data[..count].to_vec())
    };
    // After an ordinary read, attributes and pages are valid.
    file.read_exact_at(&mut [0; 4], 0).unwrap();
    assert_eq!(read(9).unwrap(), b"text");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    assert_eq!(read(4), Err(rustix::io::Errno::AGAIN));
}

fn many() {
    fs::create_dir("many").unwrap();
    for n in 0..MANY {
        fs::write(format!("many/a-file-with-a-name-of-some-length-{n:06}"), "").unwrap();
    }
    let mut names: Vec<_> = fs::read_dir("many").unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), MANY);
    fs::remove_dir_all("many").unwrap();
    assert!(!fs::exists("many").unwrap());
}

/// Log writers: appends through two descriptors overwrite nothing.
fn appended() {
    let mut one = OpenOptions::new().append(true).create(true).open("l").unwrap();
    let mut two = OpenOptions::new().append(true).open("l").unwrap();
    for _ in 0..100 {
        one.write_all(b"1").unwrap();
        two.write_all(b"2").unwrap();
    }
    assert_eq!(fs::read_to_string("l").unwrap(), "12".repeat(100));
    drop(OpenOptions::new().write(true).truncate(true).open("l").unwrap());
    one.write_all(b"x").unwrap();
    assert_eq!(fs::read_to_string("l").unwrap(), "x");
}

/// Databases with a log: a mapping's change of the last page and what is appended after it are both kept.
fn mapped_appended() {
    let file = open_new("ma");
    file.write_all_at(&[b'.'; 100], 0).unwrap();
    // SAFETY: a new shared mapping of a file that is not truncated meanwhile. Only this function uses it.
    let bytes = unsafe {
        let (flags, access) = (MapFlags::SHARED, ProtFlags::READ | ProtFlags::WRITE);
        let at = rustix::mm::mmap(std::ptr::null_mut(), 4096, access, flags, &file, 0);
        std::slice::from_raw_parts_mut(at.unwrap().cast::<u8>(), 4096)
    };
    let mut log = OpenOptions::new().append(true).open("ma").unwrap();
    for round in 0..10 {
        bytes[round] = b'M';
        log.write_all(b"tail").unwrap();
        let end = 104 + 4 * round;
        assert_eq!(&bytes[end - 4..end], b"tail");
    }
    let expected = format!("{}{}{}", "M".repeat(10), ".".repeat(90), "tail".repeat(10));
    assert_eq!(fs::read_to_string("ma").unwrap(), expected);
    // SAFETY: this is the whole mapping from above.
    unsafe { rustix::mm::msync(bytes.as_mut_ptr().cast(), 4096, MsyncFlags::SYNC).unwrap() };
    file.sync_all().unwrap();
    assert_eq!(fs::read_to_string("ma").unwrap(), expected);
}

/// dpkg, databases: a lock excludes another open file description.
fn locked() {
    let one = open_new("k");
    let two = File::open("k").unwrap();
    one.lock().unwrap();
    assert!(two.try_lock().is_err());
    one.unlock().unwrap();
    two.try_lock().unwrap();
}

/// setfacl: the mask of an ACL is the group's part of the mode at once.
fn acls() {
    fs::write("acl", "").unwrap();
    rustix::fs::chmod("acl", 0o640.into()).unwrap();
    assert_eq!(fs::metadata("acl").unwrap().mode() & 0o7777, 0o640);
    // linux/posix_acl_xattr.h: version, then tag, permissions and ID of each entry.
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(0x01, 6, u32::MAX), (0x02, 7, 1000), (0x04, 4, u32::MAX), (0x10, 7, u32::MAX), (0x20, 0, u32::MAX)]
    {
        value.extend(u16::to_le_bytes(tag).into_iter().chain(u16::to_le_bytes(permissions)));
        value.extend(u32::to_le_bytes(id));
    }
    rustix::fs::setxattr("acl", "system.posix_acl_access", &value, XattrFlags::empty()).unwrap();
    assert_eq!(fs::metadata("acl").unwrap().mode() & 0o7777, 0o670);
}

/// A change of a file, and its name.
type Change<'a> = (&'a str, &'a dyn Fn(&File));

/// Prints which changes of a file clear set-user-ID, set-group-ID and its capabilities.
fn setid() {
    // linux/capability.h: version 2, CAP_NET_RAW permitted.
    let capability = [0x0200_0001_u32, 1 << 13, 0, 0, 0].map(u32::to_le_bytes).concat();
    let fallocate = |file: &File, flags| rustix::fs::fallocate(file, flags, 0, 4096).unwrap();
    let copy = |file: &File| {
        fs::write("from", "copied").unwrap();
        rustix::fs::copy_file_range(File::open("from").unwrap(), None, file, None, 6).unwrap();
    };
    let keep = FallocateFlags::KEEP_SIZE;
    let changes: [Change; 9] = [
        ("write", &|mut file| file.write_all(b"x").unwrap()),
        ("append", &|_| OpenOptions::new().append(true).open("s").unwrap().write_all(b"x").unwrap()),
        ("truncate", &|file| file.set_len(1).unwrap()),
        ("open", &|_| drop(OpenOptions::new().write(true).truncate(true).open("s").unwrap())),
        ("fallocate", &|file| fallocate(file, FallocateFlags::empty())),
        ("punch", &|file| fallocate(file, FallocateFlags::PUNCH_HOLE | keep)),
        ("zero", &|file| fallocate(file, FallocateFlags::ZERO_RANGE)),
        ("copy_file_range", &copy),
        ("chmod", &|file| rustix::fs::fchmod(file, 0o6711.into()).unwrap()),
    ];
    for mode in [0o6755, 0o2755, 0o4711] {
        for (name, change) in &changes {
            let file = open_new("s");
            (&file).write_all(&[1; 8192]).unwrap();
            rustix::fs::fchmod(&file, mode.into()).unwrap();
            // Only root may set capabilities.
            let set =
                rustix::fs::setxattr("s", "security.capability", &capability, XattrFlags::empty()).is_ok();
            change(&file);
            let after = fs::metadata("s").unwrap().mode() & 0o7777;
            let has = rustix::fs::getxattr("s", "security.capability", &mut [0u8; 64][..]).is_ok();
            println!("{name}: {mode:o} {after:o} {set} {has}");
            fs::remove_file("s").unwrap();
        }
    }
    println!("{:?}", rustix::fs::seek(open_new("e"), Whence::Data(u64::MAX)));
}
