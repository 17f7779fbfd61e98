//! The MP table: the CPUs, the IOAPIC, and the IOAPIC pin of each interrupt.
//!
//! Intel MultiProcessor Specification 1.4, chapter 4: a floating pointer that the kernel searches for, then the table's
//! header and entries. A machine without ACPI describes its CPUs and interrupts this way.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::layout::{IOAPIC_START, LOCAL_APIC_START, MPTABLE_MAX, MPTABLE_START, VCPUS_MAX};

/// Version 1.4.
const SPEC: u8 = 4;
/// Version numbers of KVM's local APICs and of its IOAPIC.
const APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
/// Entry types (4.3).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IOAPIC: u8 = 2;
const INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;
/// Interrupt types (table 4-10).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;
/// Processor flags: usable, and bootstrap processor.
const ENABLED: u8 = 1;
const BOOTSTRAP: u8 = 2;

const POINTER_LEN: u64 = 16;
const HEADER_LEN: usize = 44;

/// The APIC id of the IOAPIC: the first after those of the vCPUs, which start at 0.
fn ioapic_id(vcpus: u8) -> u8 {
    vcpus
}

/// Returns the byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

fn floating_pointer(table: u64) -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    bytes.extend((table as u32).to_le_bytes());
    bytes.extend([1, SPEC, 0, 0, 0, 0, 0, 0]); // one paragraph long; not a default configuration, but a table
    bytes[10] = checksum(&bytes);
    bytes
}

/// Appends the entries and returns their number.
fn entries(bytes: &mut Vec<u8>, vcpus: u8, gsis: &[u32]) -> u16 {
    let mut count = 0;
    let mut add = |entry: &[u8]| {
        bytes.extend(entry);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = ENABLED | if id == 0 { BOOTSTRAP } else { 0 };
        // Signature 0x600 and features APIC | FPU are placeholders: kernels use CPUID instead.
        let mut entry = vec![PROCESSOR, id, APIC_VERSION, flags];
        entry.extend(0x600u32.to_le_bytes());
        entry.extend(0x201u32.to_le_bytes());
        entry.extend([0; 8]);
        add(&entry);
    }
    add(&[&[BUS, 0][..], b"ISA   "].concat());
    let mut ioapic = vec![IOAPIC, ioapic_id(vcpus), IOAPIC_VERSION, ENABLED];
    ioapic.extend(IOAPIC_START.to_le_bytes());
    add(&ioapic);
    // Interrupts of the ISA bus are edge-triggered and active high, like those that an irqfd raises.
    for gsi in gsis {
        add(&[INTERRUPT, INT, 0, 0, 0, *gsi as u8, ioapic_id(vcpus), *gsi as u8]);
    }
    add(&[LOCAL_INTERRUPT, EXTINT, 0, 0, 0, 0, 0, 0]);
    add(&[LOCAL_INTERRUPT, NMI, 0, 0, 0, 0, 0xff, 1]);
    count
}

/// Returns the floating pointer followed by the table, with the addresses they have at [`MPTABLE_START`].
fn table(vcpus: u8, gsis: &[u32]) -> Vec<u8> {
    assert!((1..=VCPUS_MAX).contains(&vcpus), "vCPU counts are checked when the machine is planned");
    let mut table = b"PCMP".to_vec();
    table.resize(HEADER_LEN, 0);
    let count = entries(&mut table, vcpus, gsis);
    let len = table.len() as u16;
    table[4..6].copy_from_slice(&len.to_le_bytes());
    table[6] = SPEC;
    table[8..16].copy_from_slice(b"VMM     ");
    table[16..28].copy_from_slice(b"MICROVM     ");
    table[34..36].copy_from_slice(&count.to_le_bytes());
    table[36..40].copy_from_slice(&LOCAL_APIC_START.to_le_bytes());
    table[7] = checksum(&table);
    let mut bytes = floating_pointer(MPTABLE_START + POINTER_LEN);
    bytes.extend(table);
    debug_assert!(bytes.len() <= MPTABLE_MAX);
    bytes
}

/// Writes the table for `vcpus` vCPUs (1 to [`VCPUS_MAX`]) and the interrupts `gsis` into guest memory.
///
/// The table lists only pins that are connected: a kernel programs every pin in the table, and each access to the
/// IOAPIC is an exit from the guest.
pub fn write(memory: &GuestMemoryMmap, vcpus: u8, gsis: &[u32]) -> Result<(), GuestMemoryError> {
    memory.write_slice(&table(vcpus, gsis), GuestAddress(MPTABLE_START))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::LAST_GSI;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte))
    }

    fn check(vcpus: u8) {
        let gsis: Vec<u32> = (0..=LAST_GSI).collect();
        let bytes = table(vcpus, &gsis);
        let (pointer, table) = bytes.split_at(16);
        assert_eq!(&pointer[..4], b"_MP_");
        assert_eq!(pointer[4..8], 0xf_0010u32.to_le_bytes());
        assert_eq!(sum(pointer), 0);
        assert_eq!(&table[..4], b"PCMP");
        assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        assert_eq!(sum(table), 0);
        assert!(bytes.len() <= MPTABLE_MAX);

        let mut at = HEADER_LEN;
        let mut counts = [0u16; 5];
        while at < table.len() {
            counts[usize::from(table[at])] += 1;
            at += if table[at] == PROCESSOR { 20 } else { 8 };
        }
        assert_eq!(at, table.len());
        assert_eq!(counts, [u16::from(vcpus), 1, 1, 24, 2]);
        assert_eq!(u16::from_le_bytes([table[34], table[35]]), counts.iter().sum::<u16>());
    }

    #[test]
    fn tables_of_all_sizes_are_well_formed() {
        for vcpus in [1, 2, 3, 64, VCPUS_MAX] {
            check(vcpus);
        }
    }

    #[test]
    fn only_the_first_cpu_boots_and_a_pin_has_its_interrupt() {
        let table = &table(2, &[0, 5])[16..];
        let cpu = |n: usize| &table[HEADER_LEN + n * 20..][..4];
        assert_eq!(cpu(0), [PROCESSOR, 0, APIC_VERSION, ENABLED | BOOTSTRAP]);
        assert_eq!(cpu(1), [PROCESSOR, 1, APIC_VERSION, ENABLED]);
        let bus = HEADER_LEN + 2 * 20;
        assert_eq!(&table[bus..bus + 8], [&[BUS, 0][..], b"ISA   "].concat());
        assert_eq!(table[bus + 8..bus + 12], [IOAPIC, 2, IOAPIC_VERSION, ENABLED]);
        let pin5 = bus + 16 + 8;
        assert_eq!(table[pin5..pin5 + 8], [INTERRUPT, INT, 0, 0, 0, 5, 2, 5]);
    }
}
