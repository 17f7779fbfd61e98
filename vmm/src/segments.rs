//! The first vCPU's initial registers and descriptor tables.
//!
//! There are two entry points. Linux's 64-bit entry is entered in long mode with flat segments (Linux
//! Documentation/arch/x86/boot.rst, "64-bit Boot Protocol": __BOOT_CS is selector 0x10, __BOOT_DS 0x18, RSI holds the
//! address of the zero page). PVH is entered in 32-bit protected mode without paging (Xen docs/misc/pvh.pandoc: EBX
//! holds the address of the start info).

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::layout::{
    BOOT_STACK_TOP, GDT_START, IDT_START, PAGE_TABLES_START, PVH_INFO_START, ZERO_PAGE_START,
};
use crate::loader::Entry;

/// CR0: protection, x87 present, numeric errors as exceptions, and paging (Intel SDM 3A, 2.5).
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled and active.
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS: only the bit that is always set, so interrupts are disabled.
const RFLAGS: u64 = 2;

/// Code, execute and read, accessed (Intel SDM 3A, 3.4.5.1).
const CODE: u8 = 0xb;
/// Data, read and write, accessed.
const DATA: u8 = 0x3;
/// A busy TSS, which VM entry requires in TR.
const TSS: u8 = 0xb;

/// CPU mode, as the code segment selects it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Long,
    Protected,
}

fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment { limit: 0xffff_ffff, selector, type_, present: 1, s: 1, g: 1, db: 1, ..Default::default() }
}

fn segments(mode: Mode) -> [kvm_segment; 3] {
    let mut code = flat(0x10, CODE);
    if mode == Mode::Long {
        (code.l, code.db) = (1, 0);
    }
    let tss = kvm_segment { limit: 0x67, selector: 0, type_: TSS, present: 1, ..Default::default() };
    [code, flat(0x18, DATA), tss]
}

/// Encodes a segment as its descriptor (Intel SDM 3A, 3.4.5, figure 3-8).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let base = segment.base;
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.avl)
        | u64::from(segment.l) << 1
        | u64::from(segment.db) << 2
        | u64::from(segment.g) << 3;
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

/// Returns the GDT for `mode`: two null descriptors, code at 0x10, data at 0x18.
fn gdt(mode: Mode) -> [u64; 4] {
    let [code, data, _] = segments(mode);
    [0, 0, descriptor(&code), descriptor(&data)]
}

fn mode(entry: Entry) -> Mode {
    match entry {
        Entry::Linux64(_) => Mode::Long,
        Entry::Pvh(_) => Mode::Protected,
    }
}

/// Writes the descriptor tables for `entry` into guest memory.
pub fn write_tables(memory: &GuestMemoryMmap, entry: Entry) -> Result<(), GuestMemoryError> {
    let bytes: Vec<u8> = gdt(mode(entry)).iter().flat_map(|d| d.to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(GDT_START))?;
    memory.write_obj(0u64, GuestAddress(IDT_START))
}

/// Changes the system registers from their reset values to those that `entry` expects.
pub fn set_sregs(sregs: &mut kvm_sregs, entry: Entry) {
    let mode = mode(entry);
    let [code, data, tss] = segments(mode);
    sregs.gdt = kvm_dtable { base: GDT_START, limit: 4 * 8 - 1, ..Default::default() };
    sregs.idt = kvm_dtable { base: IDT_START, limit: 7, ..Default::default() };
    sregs.cs = code;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    sregs.tr = tss;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE;
    if mode == Mode::Long {
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = PAGE_TABLES_START;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
    }
}

/// Returns the general registers that `entry` expects.
pub fn regs(entry: Entry) -> kvm_regs {
    let regs = kvm_regs { rflags: RFLAGS, ..Default::default() };
    match entry {
        Entry::Linux64(rip) => {
            kvm_regs { rip, rsp: BOOT_STACK_TOP, rbp: BOOT_STACK_TOP, rsi: ZERO_PAGE_START, ..regs }
        }
        Entry::Pvh(rip) => kvm_regs { rip, rbx: PVH_INFO_START, ..regs },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_linux_own_boot_descriptors() {
        // arch/x86/boot/compressed/head_64.S, gdt: __KERNEL_CS, __KERNEL_DS and __KERNEL32_CS, here with "accessed".
        assert_eq!(gdt(Mode::Long), [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
        assert_eq!(gdt(Mode::Protected)[2], 0x00cf_9b00_0000_ffff);
    }

    #[test]
    fn a_base_and_a_byte_limit_are_spread_over_the_descriptor() {
        let segment = kvm_segment { base: 0x1234_5678, limit: 0xa_bcde, present: 1, ..Default::default() };
        assert_eq!(descriptor(&segment), 0x120a_8034_5678_bcde);
    }

    #[test]
    fn the_64_bit_entry_starts_in_long_mode_with_the_zero_page() {
        let mut sregs = kvm_sregs::default();
        set_sregs(&mut sregs, Entry::Linux64(0x100_0000));
        assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.cs.db), (0x10, 1, 0));
        assert_eq!((sregs.ss.selector, sregs.ds.selector), (0x18, 0x18));
        assert_eq!(sregs.cr0, 0x8000_0031);
        assert_eq!((sregs.cr3, sregs.cr4, sregs.efer), (PAGE_TABLES_START, 0x20, 0x500));
        let regs = regs(Entry::Linux64(0x100_0000));
        assert_eq!((regs.rip, regs.rsi, regs.rflags), (0x100_0000, ZERO_PAGE_START, 2));
    }

    #[test]
    fn the_pvh_entry_starts_in_flat_protected_mode_with_the_start_info() {
        let mut sregs = kvm_sregs::default();
        set_sregs(&mut sregs, Entry::Pvh(0x100_0000));
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cr0, sregs.cr4, sregs.efer), (0, 1, 0x31, 0, 0));
        assert_eq!(regs(Entry::Pvh(7)).rbx, PVH_INFO_START);
    }
}
