//! The first vCPU's initial page tables.
//!
//! Linux's 64-bit entry requires an identity mapping of the kernel, the zero page and the command line
//! (Documentation/arch/x86/boot.rst). These tables map the first 4 GiB in 2 MiB pages. The kernel builds its own tables
//! within its first thousand instructions.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::layout::{PAGE_SIZE, PAGE_TABLES_START};

/// Number of page directories. Each maps 1 GiB.
const DIRECTORIES: u64 = 4;
const ENTRIES: u64 = PAGE_SIZE / 8;
const LARGE_PAGE: u64 = 2 << 20;
/// Size in bytes of the tables at [`PAGE_TABLES_START`]: PML4, PDPT, and the directories.
pub const TABLES_SIZE: u64 = (2 + DIRECTORIES) * PAGE_SIZE;

/// Entry that points to a table: present, writable (Intel SDM 3A, 4.5).
const TABLE: u64 = 0b11;
/// Entry that maps a large page: present, writable, page size.
const LARGE: u64 = 0b1000_0011;

/// Returns the page tables, with the addresses they have at [`PAGE_TABLES_START`].
fn tables() -> Vec<u8> {
    let page = |n: u64| PAGE_TABLES_START + n * PAGE_SIZE;
    let mut words = vec![0u64; (TABLES_SIZE / 8) as usize];
    words[0] = page(1) | TABLE;
    for n in 0..DIRECTORIES {
        words[(ENTRIES + n) as usize] = page(2 + n) | TABLE;
    }
    for n in 0..DIRECTORIES * ENTRIES {
        words[(2 * ENTRIES + n) as usize] = (n * LARGE_PAGE) | LARGE;
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Writes the tables into guest memory and returns the value for CR3.
pub fn write(memory: &GuestMemoryMmap) -> Result<u64, GuestMemoryError> {
    memory.write_slice(&tables(), GuestAddress(PAGE_TABLES_START))?;
    Ok(PAGE_TABLES_START)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the tables as the CPU does.
    fn translate(memory: &GuestMemoryMmap, cr3: u64, virt: u64) -> Option<u64> {
        let mut table = cr3;
        for shift in [39, 30, 21] {
            let entry: u64 = memory.read_obj(GuestAddress(table + (virt >> shift & 0x1ff) * 8)).ok()?;
            if entry & 1 == 0 {
                return None;
            }
            let next = entry & 0x000f_ffff_ffff_f000;
            if entry & 1 << 7 != 0 {
                let mask = (1 << shift) - 1;
                return Some(next & !mask | virt & mask);
            }
            table = next;
        }
        None
    }

    #[test]
    fn the_first_4_gib_map_to_themselves_and_nothing_else_does() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let cr3 = write(&memory).unwrap();
        for addr in [0, 0x7000, 0x20_0000 - 1, 0x100_0000, 0x3fff_ffff, 0x4000_0000, 0xffff_ffff] {
            assert_eq!(translate(&memory, cr3, addr), Some(addr), "{addr:#x}");
        }
        for addr in [0x1_0000_0000, 1 << 39, 0xffff_ffff_8100_0000] {
            assert_eq!(translate(&memory, cr3, addr), None, "{addr:#x}");
        }
    }
}
