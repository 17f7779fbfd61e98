//! The machine's address map: every guest physical address, interrupt and I/O port that `vmm` chooses.
//!
//! ```text
//! 0x0000_0500  GDT, then an empty IDT             segments.rs
//! 0x0000_6000  PVH start info (PVH kernels only)  pvh.rs
//! 0x0000_7000  boot_params, the "zero page"       boot_params.rs
//! 0x0000_9000  identity page tables               paging.rs
//! 0x0002_0000  kernel command line                boot_params.rs
//! 0x0009_fc00  end of base memory
//! 0x000f_0000  MP floating pointer and table      mptable.rs
//! 0x0010_0000  the kernel, wherever it is linked  loader.rs
//! ...          initramfs, after the kernel        boot_params.rs
//! 0xd000_0000  hole: virtio-mmio devices, IOAPIC, local APICs, KVM's TSS pages
//! 0x1_0000_0000  the rest of memory
//! ```
//!
//! Sources: Linux Documentation/arch/x86/boot.rst ("64-bit Boot Protocol"), Intel MultiProcessor Specification 1.4,
//! KVM API 4.35 (KVM_SET_TSS_ADDR), Intel SDM 3A 11.4.1 (local APIC), 82093AA datasheet (IOAPIC).

/// Page size in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// The initial GDT of the first vCPU.
pub const GDT_START: u64 = 0x500;
/// The initial IDT of the first vCPU. It is empty: the kernel loads its own before it enables interrupts.
pub const IDT_START: u64 = 0x520;
/// The start info of a PVH kernel.
pub const PVH_INFO_START: u64 = 0x6000;
/// The zero page (Linux `struct boot_params`).
pub const ZERO_PAGE_START: u64 = 0x7000;
/// Top of the first vCPU's stack, for a kernel that uses the stack before it sets its own.
pub const BOOT_STACK_TOP: u64 = 0x8ff0;
/// First page-table page: PML4, then PDPT, then one page directory per GiB.
pub const PAGE_TABLES_START: u64 = 0x9000;
/// The kernel command line, terminated by NUL.
pub const CMDLINE_START: u64 = 0x2_0000;
/// Limit of the kernel command line with its NUL: Linux's COMMAND_LINE_SIZE on x86.
pub const CMDLINE_MAX: usize = 2048;
/// End of base memory. On a PC the extended BIOS data area starts here.
pub const BASE_MEMORY_END: u64 = 0x9_fc00;
/// The MP floating pointer, in the BIOS area that a kernel searches for it.
pub const MPTABLE_START: u64 = 0xf_0000;
/// Space for the MP table, in bytes.
pub const MPTABLE_MAX: usize = 0x1_0000;
/// Start of high memory. No kernel may be linked below it.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;

/// Start of the hole below 4 GiB that contains all devices.
pub const HOLE_START: u64 = 0xd000_0000;
/// End of the hole. Memory that does not fit below the hole continues here.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// Registers of the first virtio-mmio device; those of the other devices follow.
pub const VIRTIO_MMIO_START: u64 = HOLE_START;
/// Registers of the IOAPIC.
pub const IOAPIC_START: u32 = 0xfec0_0000;
/// Registers of the local APICs.
pub const LOCAL_APIC_START: u32 = 0xfee0_0000;
/// Three pages for KVM on an Intel host that cannot run real mode natively.
pub const KVM_TSS_START: u64 = 0xfffb_d000;

/// Interrupt of the PIT, which this machine does not have.
pub const TIMER_GSI: u32 = 0;
/// Interrupt of the 16550 at 0x3f8.
pub const SERIAL_GSI: u32 = 4;
/// Interrupt of the first virtio-mmio device; those of the other devices follow.
pub const FIRST_DEVICE_GSI: u32 = 5;
/// Last pin of the IOAPIC.
pub const LAST_GSI: u32 = 23;
/// Interrupt of the device after those: that of a second serial port, which this machine does not have.
const SPARE_GSI: u32 = 3;
/// Limit of virtio-mmio devices: each has its own interrupt.
pub const DEVICES_MAX: usize = (LAST_GSI - FIRST_DEVICE_GSI + 1) as usize + 1;

/// Limit of vCPUs: an APIC id is a byte, 255 is the broadcast id, and the IOAPIC uses one.
pub const VCPUS_MAX: u8 = 254;
/// Limit of memory, 1 TiB: within the 40 physical address bits that every CPU with virtualization has.
pub const MEMORY_MIB_MAX: u32 = 1 << 20;

/// Address and interrupt of one virtio-mmio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceResources {
    /// Guest physical address of the first register.
    pub base: u64,
    /// Interrupt number, the same as the IOAPIC pin.
    pub gsi: u32,
}

/// Returns the resources of device `index` (from 0, in order of attachment), or `None` when all interrupts are used.
pub fn device_resources(index: usize) -> Option<DeviceResources> {
    (index < DEVICES_MAX).then(|| DeviceResources {
        base: VIRTIO_MMIO_START + index as u64 * devices::virtio::mmio::MMIO_SIZE,
        gsi: if index + 1 == DEVICES_MAX { SPARE_GSI } else { FIRST_DEVICE_GSI + index as u32 },
    })
}

/// A range of guest physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl RamRange {
    /// First address after the range.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Returns the ranges of `memory_mib` MiB of memory: below the hole, and the rest above 4 GiB.
pub fn ram_ranges(memory_mib: u32) -> Vec<RamRange> {
    let total = u64::from(memory_mib) << 20;
    let low = total.min(HOLE_START);
    let mut ranges = vec![RamRange { start: 0, len: low }];
    if total > low {
        ranges.push(RamRange { start: HOLE_END, len: total - low });
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn check(memory_mib: u32, expected: &[(u64, u64)]) {
        let ranges: Vec<_> = ram_ranges(memory_mib).iter().map(|r| (r.start, r.len)).collect();
        assert_eq!(ranges, expected, "{memory_mib} MiB");
    }

    #[test]
    fn memory_goes_around_the_hole() {
        check(1, &[(0, MIB)]);
        check(256, &[(0, 256 * MIB)]);
        check(3327, &[(0, 3327 * MIB)]);
        check(3328, &[(0, 0xd000_0000)]);
        check(3329, &[(0, 0xd000_0000), (0x1_0000_0000, MIB)]);
        check(8192, &[(0, 0xd000_0000), (0x1_0000_0000, 8192 * MIB - 0xd000_0000)]);
        check(MEMORY_MIB_MAX, &[(0, 0xd000_0000), (0x1_0000_0000, (1 << 40) - 0xd000_0000)]);
    }

    #[test]
    fn every_size_has_all_of_its_memory_and_none_in_the_hole() {
        for memory_mib in 1..=MEMORY_MIB_MAX {
            let ranges = ram_ranges(memory_mib);
            let len = ranges.iter().map(|range| range.len).sum::<u64>();
            assert_eq!(len, u64::from(memory_mib) * MIB);
            let mut free = 0;
            for range in &ranges {
                assert!(range.start >= free && range.len > 0, "{memory_mib} MiB: {range:x?}");
                assert!(range.end() <= HOLE_START || range.start >= HOLE_END, "{memory_mib} MiB: {range:x?}");
                free = range.end();
            }
            assert!(free <= HOLE_END + (1 << 40), "{memory_mib} MiB");
        }
    }

    #[test]
    fn devices_follow_each_other_until_the_interrupts_end() {
        assert_eq!(device_resources(0), Some(DeviceResources { base: 0xd000_0000, gsi: 5 }));
        assert_eq!(device_resources(18), Some(DeviceResources { base: 0xd001_2000, gsi: 23 }));
        assert_eq!(device_resources(19), Some(DeviceResources { base: 0xd001_3000, gsi: 3 }));
        assert_eq!(device_resources(20), None);
        assert_eq!(device_resources(usize::MAX), None);
    }

    #[test]
    fn the_low_structures_do_not_touch() {
        let places = [
            (GDT_START, 0x20),
            (IDT_START, 8),
            (PVH_INFO_START, PAGE_SIZE),
            (ZERO_PAGE_START, PAGE_SIZE),
            (PAGE_TABLES_START, crate::paging::TABLES_SIZE),
            (CMDLINE_START, CMDLINE_MAX as u64),
            (BASE_MEMORY_END, 0x400),
            (MPTABLE_START, MPTABLE_MAX as u64),
            (HIGH_MEMORY_START, PAGE_SIZE),
        ];
        for pair in places.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
        assert!((ZERO_PAGE_START + PAGE_SIZE..PAGE_TABLES_START).contains(&BOOT_STACK_TOP));
    }
}
