use std::fs::File;
use std::io::Write;

use linux_loader::loader::bootparam::setup_header;
use proptest::prelude::*;
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::*;
use crate::layout::ram_ranges;

fn image(bytes: &[u8]) -> Image {
    let mut file: File = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Image { file, offset: 0, len: bytes.len() as u64, name: "kernel".into() }
}

fn refusal(bytes: &[u8]) -> &'static str {
    match Kernel::read(&image(bytes)) {
        Err(KernelError::NotAKernel { why, .. }) => why,
        other => panic!("not refused: {other:?}"),
    }
}

/// A program header of an ELF file under construction.
#[derive(Clone, Copy, Debug)]
struct Program {
    kind: u32,
    at: u64,
    virt: u64,
    phys: u64,
    len: u64,
    memory_len: u64,
}

const TEXT: Program = Program {
    kind: 1,
    at: 0x1000,
    virt: 0xffff_ffff_8100_0000,
    phys: 0x100_0000,
    len: 0x800,
    memory_len: 0x2000,
};

fn elf(entry: u64, programs: &[Program], body: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [entry, 64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend([0, 0, 0, 0, 64, 0, 56, 0]);
    bytes.extend((programs.len() as u16).to_le_bytes());
    bytes.extend([0; 6]);
    for p in programs {
        bytes.extend(p.kind.to_le_bytes());
        bytes.extend([7, 0, 0, 0]);
        for word in [p.at, p.virt, p.phys, p.len, p.memory_len, 0x1000] {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes.resize(0x1000, 0);
    bytes.extend(body);
    bytes.resize(0x3000, 0);
    bytes
}

fn note(name: &[u8], kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = (name.len() as u32).to_le_bytes().to_vec();
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    for part in [name, data] {
        bytes.extend(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn notes_at_2000() -> Program {
    Program { kind: 4, at: 0x2000, len: 0x100, memory_len: 0x100, ..TEXT }
}

/// A kernel whose note segment is `notes` and whose e_entry is not a physical address.
fn pvh_elf(notes: &[u8]) -> Vec<u8> {
    let mut bytes = elf(0xffff_ffff_8100_0000, &[TEXT, notes_at_2000()], &[0xf4]);
    bytes[0x2000..0x2000 + notes.len()].copy_from_slice(notes);
    bytes
}

#[test]
fn a_vmlinux_is_entered_at_its_64_bit_entry() {
    let data = Program {
        at: 0x1800,
        virt: TEXT.virt + 0x10_0000,
        phys: 0x110_0000,
        len: 3,
        memory_len: 0x5000,
        ..TEXT
    };
    let image = image(&elf(0x100_0100, &[data, TEXT, notes_at_2000()], &[7; 0x803]));
    let kernel = Kernel::read(&image).unwrap();
    assert_eq!(kernel.entry, Entry::Linux64(0x100_0100));
    assert_eq!(kernel.end, 0x110_5000);
    assert_eq!(kernel.segments.iter().map(|s| s.addr).collect::<Vec<_>>(), [0x100_0000, 0x110_0000]);

    let ram = GuestRam::new(&ram_ranges(32)).unwrap();
    kernel.load(&image, &ram).unwrap();
    let byte = |addr| ram.memory().read_obj::<u8>(GuestAddress(addr)).unwrap();
    assert_eq!((byte(0x100_0000), byte(0x100_07ff), byte(0x100_0800)), (7, 7, 0));
    assert_eq!((byte(0x110_0002), byte(0x110_0003)), (7, 0));
}

#[test]
fn a_kernel_without_a_64_bit_entry_is_entered_at_its_pvh_entry() {
    let entry = 0x100_0040u32.to_le_bytes();
    let notes = [note(b"GNU\0", 3, &[1; 20]), note(b"Xen\0", 18, &entry)].concat();
    assert_eq!(Kernel::read(&image(&pvh_elf(&notes))).unwrap().entry, Entry::Pvh(0x100_0040));
    let far = note(b"Xen\0", 18, &0x200_0000u64.to_le_bytes());
    assert_eq!(refusal(&pvh_elf(&far)), "its PVH entry is not in the file");
}

#[test]
fn notes_that_lie_about_their_length_end_the_search() {
    for (name_len, data_len) in [(u32::MAX, 4), (4, u32::MAX), (u32::MAX, u32::MAX), (0x200, 0), (3, 0xf8)] {
        let notes = [name_len.to_le_bytes(), data_len.to_le_bytes(), 18u32.to_le_bytes(), *b"Xen\0"].concat();
        assert_eq!(refusal(&pvh_elf(&notes)), "it has neither a 64-bit entry nor a PVH entry");
    }
}

#[test]
fn a_file_that_is_not_a_kernel_is_refused_with_the_reason() {
    let neither = "it is neither an ELF file nor a bzImage";
    assert_eq!(refusal(b""), neither);
    assert_eq!(refusal(b"#!/bin/sh\n"), neither);
    assert_eq!(refusal(&[0; 0x1000]), neither);
    assert_eq!(refusal(b"\x1f\x8b\x08\0"), "it is compressed; unpack it to a vmlinux first");
    assert_eq!(refusal(b"\x7fELF"), "it is truncated");
    let mut arm = elf(0, &[TEXT], &[]);
    arm[18] = 183;
    assert_eq!(refusal(&arm), "it is an ELF file, but not for x86-64");
    let program = Program { virt: 0x100_0000, ..TEXT };
    assert_eq!(refusal(&elf(0x100_0000, &[program], &[])), "it is a user-space program");
    let headers = "its ELF program headers are missing, too many or of the wrong size";
    assert_eq!(refusal(&elf(0x100_0000, &[], &[])), headers);
    assert_eq!(refusal(&elf(0x100_0000, &[TEXT; 65], &[])), headers);
}

#[test]
fn segments_that_cannot_be_loaded_are_refused() {
    let check = |program: Program, why| assert_eq!(refusal(&elf(0x100_0000, &[TEXT, program], &[])), why);
    let other = Program { phys: 0x200_0000, ..TEXT };
    check(Program { at: 0x2f00, ..other }, "it is truncated");
    check(Program { at: u64::MAX, ..other }, "it is truncated");
    check(Program { len: u64::MAX, memory_len: u64::MAX, ..other }, "it is truncated");
    check(Program { memory_len: 0x7ff, ..other }, "a segment is larger in the file than in memory");
    check(Program { phys: 0xf_f000, ..other }, "a segment lies below 1 MiB");
    check(Program { phys: 0x100_1fff, ..other }, "its segments overlap");
    let above = "a segment lies above the memory that a kernel may be linked to";
    check(Program { phys: 0xcfff_f000, ..other }, above);
    check(Program { phys: u64::MAX, ..other }, above);
    check(Program { memory_len: u64::MAX, ..other }, above);
}

fn bzimage(setup: setup_header, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let header = setup.as_slice();
    bytes[0x1f1..0x1f1 + header.len()].copy_from_slice(header);
    bytes
}

fn bz_setup() -> setup_header {
    setup_header {
        setup_sects: 3,
        header: 0x5372_6448,
        version: 0x020f,
        xloadflags: 1,
        pref_address: 0x100_0000,
        init_size: 0x200_0000,
        ..Default::default()
    }
}

#[test]
fn a_bzimage_is_loaded_at_1_mib_and_unpacks_itself() {
    let kernel = Kernel::read(&image(&bzimage(bz_setup(), 0x4000))).unwrap();
    assert_eq!(kernel.entry, Entry::Linux64(0x10_0200));
    let segment = Segment { at: 0x800, len: 0x3800, addr: 0x10_0000, memory_len: 0x3800 };
    assert_eq!((kernel.segments, kernel.end), (vec![segment], 0x300_0000));
    assert!(kernel.setup.is_some());
}

#[test]
fn bzimages_that_cannot_be_booted_are_refused() {
    let no_entry = "it is a bzImage without a 64-bit entry";
    assert_eq!(refusal(&bzimage(setup_header { xloadflags: 0, ..bz_setup() }, 0x4000)), no_entry);
    assert_eq!(refusal(&bzimage(setup_header { version: 0x0205, ..bz_setup() }, 0x4000)), no_entry);
    assert_eq!(refusal(&bzimage(bz_setup(), 0xa00)), "it is truncated");
    assert_eq!(refusal(&bzimage(setup_header { setup_sects: 0, ..bz_setup() }, 0xc00)), "it is truncated");
    assert_eq!(refusal(&bzimage(bz_setup(), 0x4000)[..0x210]), "it is truncated");
    let huge = setup_header { pref_address: u64::MAX, ..bz_setup() };
    assert_eq!(refusal(&bzimage(huge, 0x4000)), "it has no segments");
}

prop_compose! {
    fn any_number()(
        kind in 0..4,
        small in 0u64..0x4000,
        any in any::<u64>(),
        high in 0x100_0000u64..0x120_0000,
    ) -> u64 {
        match kind { 0 => small, 1 => any, 2 => u64::MAX - small, _ => high }
    }
}

prop_compose! {
    fn any_program()(
        kind in prop::sample::select(vec![1u32, 1, 4, 6]),
        n in prop::array::uniform5(any_number()),
    ) -> Program {
        Program { kind, at: n[0], virt: n[1], phys: n[2], len: n[3], memory_len: n[4] }
    }
}

proptest! {
    /// With any headers, reading neither panics nor accepts a kernel that cannot be loaded.
    #[test]
    fn hostile_elf_headers_are_refused_or_loadable(
        entry in any_number(),
        programs in prop::collection::vec(any_program(), 1..5),
        noise in prop::collection::vec((0usize..0x400, any::<u8>()), 0..4),
    ) {
        let mut bytes = elf(entry, &programs, &[]);
        for (at, byte) in noise {
            bytes[at] = byte;
        }
        let image = image(&bytes);
        if let Ok(kernel) = Kernel::read(&image) {
            prop_assert!(kernel.end <= HOLE_START);
            prop_assert!(kernel.segments.iter().all(|s| s.addr >= HIGH_MEMORY_START && s.len <= s.memory_len));
            let ram = GuestRam::new(&ram_ranges(3328)).unwrap();
            prop_assert!(kernel.load(&image, &ram).is_ok());
        }
    }

    #[test]
    fn hostile_bzimage_headers_are_refused_or_loadable(
        header in prop::collection::vec(any::<u8>(), 0x80),
        len in 0x280usize..0x3000,
    ) {
        let mut bytes = vec![0; len];
        bytes[0x1f1..0x271].copy_from_slice(&header);
        bytes[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
        bytes[0x236] |= 1;
        let image = image(&bytes);
        if let Ok(kernel) = Kernel::read(&image) {
            prop_assert!(kernel.end <= HOLE_START);
            let ram = GuestRam::new(&ram_ranges(32)).unwrap();
            prop_assert!(kernel.load(&image, &ram).is_ok());
        }
    }
}
