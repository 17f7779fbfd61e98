//! Measures the cost of FUSE requests: `cargo run --release -p devices --example fs_requests [DIRECTORY]`.
//!
//! Sends requests as a guest's kernel does, without a queue and a guest, to a share of a scratch directory (created in
//! DIRECTORY, or the system's temporary directory). Prints the CPU time of each request type and the memory of an
//! inode.

use std::fs;
use std::io::Write;
use std::path::Path;

use devices::Pieces;
use devices::share::{ShareTree, Terms};
use devices::virtio::fs::{FileServer, server};
use vm_memory::VolatileSlice;

const FILES: u32 = 10_000;
const ROUNDS: u32 = 200_000;

struct Guest {
    server: Box<dyn FileServer>,
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl Guest {
    /// Sends a request whose body consists of 8-byte words and a tail. Returns the length of the reply.
    fn call(&mut self, opcode: u32, nodeid: u64, words: &[u64], tail: &[u8]) -> usize {
        self.request.clear();
        let len = 40 + 8 * words.len() + tail.len();
        self.request.extend_from_slice(&(len as u32).to_le_bytes());
        self.request.extend_from_slice(&opcode.to_le_bytes());
        for word in [1, nodeid, 0, 0].iter().chain(words) {
            self.request.extend_from_slice(&word.to_le_bytes());
        }
        self.request.extend_from_slice(tail);
        let request = Pieces::new(vec![VolatileSlice::from(self.request.as_mut_slice())]);
        let reply = Pieces::new(vec![VolatileSlice::from(self.reply.as_mut_slice())]);
        let len = self.server.handle(request, reply).expect("the request is whole");
        assert!(
            len == 0 || self.word(0) >> 32 == 0,
            "request {opcode}: error {}",
            (self.word(0) >> 32) as i32
        );
        len
    }

    /// Returns the 8-byte word of the reply at a byte offset, which includes the header.
    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.reply[at..at + 8].try_into().expect("eight bytes"))
    }

    fn lookup(&mut self, dir: u64, name: &str) -> u64 {
        self.call(1, dir, &[], format!("{name}\0").as_bytes());
        self.word(16)
    }
}

/// CPU time of this thread in nanoseconds, which excludes other load.
fn busy_ns() -> u64 {
    let times = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    times.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

fn measure(name: &str, rounds: u32, mut one: impl FnMut(u32)) {
    let start = busy_ns();
    (0..rounds).for_each(&mut one);
    println!("{name:<44} {:>9} ns", (busy_ns() - start) / u64::from(rounds));
}

fn resident_kib() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let parent = std::env::args().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(parent)?;
    fill(dir.path())?;
    let tree = ShareTree::new()?;
    tree.bind("/data", fs::File::open(dir.path())?.into(), Terms::default())?;
    let mut guest = Guest { server: server(&tree), request: Vec::new(), reply: vec![0; (1 << 20) + 16] };
    guest.call(26, 0, &[7 | 38 << 32, 131_072 | u64::from(u32::MAX) << 32, 0, 0, 0, 0, 0, 0], &[]);
    let data = guest.lookup(1, "data");

    let before = resident_kib();
    let names: Vec<String> = (0..FILES).map(|n| format!("file{n}")).collect();
    measure("LOOKUP, new", FILES, |n| {
        guest.lookup(data, &names[n as usize]);
    });
    println!(
        "{:<44} {:>9} bytes",
        "resident, of an inode",
        (resident_kib() - before) * 1024 / u64::from(FILES)
    );
    measure("LOOKUP, known", ROUNDS, |n| {
        guest.lookup(data, &names[(n % FILES) as usize]);
    });
    measure("LOOKUP, none", ROUNDS, |_| {
        guest.lookup(data, "none");
    });
    let file = guest.lookup(data, "file0");
    measure("GETATTR", ROUNDS, |_| {
        guest.call(3, file, &[0, 0], &[]);
    });
    measure("OPEN and RELEASE", ROUNDS, |_| {
        guest.call(14, file, &[2], &[]);
        let fh = guest.word(16);
        guest.call(18, file, &[fh, 0, 0], &[]);
    });
    data_requests(&mut guest, file);
    guest.call(27, data, &[0], &[]);
    let fh = guest.word(16);
    for (name, opcode) in [("READDIR", 28), ("READDIRPLUS", 44)] {
        measure(&format!("{name} of {FILES} entries, by pages"), 1, |_| list(&mut guest, data, fh, opcode));
    }
    measure("STATFS", ROUNDS, |_| {
        guest.call(17, file, &[], &[]);
    });
    measure("CREATE, RELEASE, UNLINK and FORGET", 20_000, |_| {
        guest.call(35, data, &[2 | 0o644 << 32, 0], b"new\0");
        let (node, fh) = (guest.word(16), guest.word(16 + 128));
        guest.call(18, node, &[fh, 0, 0], &[]);
        guest.call(10, data, &[], b"new\0");
        guest.call(2, node, &[1], &[]);
    });
    Ok(())
}

fn fill(dir: &Path) -> std::io::Result<()> {
    for n in 0..FILES {
        fs::File::create(dir.join(format!("file{n}")))?;
    }
    fs::File::create(dir.join("file0"))?.write_all(&vec![1; 4 << 20])
}

fn data_requests(guest: &mut Guest, file: u64) {
    guest.call(14, file, &[2], &[]);
    let fh = guest.word(16);
    for size in [4096, 1 << 20] {
        let rounds = ROUNDS / (size / 4096).min(20) as u32;
        measure(&format!("READ, {size} bytes"), rounds, |n| {
            let offset = u64::from(n % 2) * size;
            assert_eq!(guest.call(15, file, &[fh, offset, size, 0, 0], &[]), 16 + size as usize);
        });
        let bytes = vec![7; size as usize];
        measure(&format!("WRITE, {size} bytes"), rounds, |n| {
            let offset = u64::from(n % 2) * size;
            guest.call(16, file, &[fh, offset, size, 0, 0], &bytes);
        });
    }
}

/// Reads a directory to its end. The printed time is that of the whole directory.
fn list(guest: &mut Guest, dir: u64, fh: u64, opcode: u32) {
    let mut offset = 0;
    loop {
        let len = guest.call(opcode, dir, &[fh, offset, 4096, 0, 0], &[]);
        let mut at = 16;
        if at == len {
            return;
        }
        while at < len {
            at += if opcode == 44 { 128 } else { 0 };
            offset = guest.word(at + 8);
            let name = guest.word(at + 16) as u32 as usize;
            at += 24 + name.next_multiple_of(8);
        }
    }
}
