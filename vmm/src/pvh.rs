//! The parameters of a PVH kernel: start info, memory map, module list (Xen public/arch-x86/hvm/start_info.h).

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::boot_params;
use crate::layout::{CMDLINE_START, PVH_INFO_START, RamRange};

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const INFO_LEN: u64 = 56;
const MODULE_LEN: u64 = 32;
const MEMORY_RAM: u32 = 1;

/// Returns the start info, one module entry and the memory map, with the addresses they have at [`PVH_INFO_START`].
fn start_info(ranges: &[RamRange], initramfs: Option<RamRange>) -> Vec<u8> {
    let map = boot_params::memory_map(ranges);
    let modules = PVH_INFO_START + INFO_LEN;
    let mut bytes = Vec::new();
    for word in [MAGIC, VERSION, 0, u32::from(initramfs.is_some())] {
        bytes.extend(word.to_le_bytes());
    }
    for address in [modules, CMDLINE_START, 0, modules + MODULE_LEN] {
        bytes.extend(address.to_le_bytes());
    }
    bytes.extend((map.len() as u32).to_le_bytes());
    bytes.extend([0; 4]);
    let module = initramfs.unwrap_or(RamRange { start: 0, len: 0 });
    for word in [module.start, module.len, 0, 0] {
        bytes.extend(word.to_le_bytes());
    }
    for range in map {
        bytes.extend(range.start.to_le_bytes());
        bytes.extend(range.len.to_le_bytes());
        bytes.extend(MEMORY_RAM.to_le_bytes());
        bytes.extend([0; 4]);
    }
    bytes
}

/// Writes the command line and the start info into guest memory.
pub fn write(
    memory: &GuestMemoryMmap,
    cmdline: &str,
    ranges: &[RamRange],
    initramfs: Option<RamRange>,
) -> Result<(), GuestMemoryError> {
    boot_params::write_cmdline(memory, cmdline)?;
    memory.write_slice(&start_info(ranges, initramfs), GuestAddress(PVH_INFO_START))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::ram_ranges;

    #[test]
    fn the_start_info_points_at_its_parts() {
        let bytes = start_info(&ram_ranges(4096), Some(RamRange { start: 0x700_0000, len: 77 }));
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!((u32_at(0), u32_at(4), u32_at(12)), (0x336e_c578, 1, 1));
        assert_eq!(
            (u64_at(16), u64_at(24), u64_at(40)),
            (PVH_INFO_START + 56, CMDLINE_START, PVH_INFO_START + 88)
        );
        assert_eq!((u64_at(56), u64_at(64)), (0x700_0000, 77));
        assert_eq!(u32_at(48), 3);
        assert_eq!(
            (u64_at(88 + 24), u64_at(88 + 32), u32_at(88 + 40)),
            (0x10_0000, 0xd000_0000 - 0x10_0000, 1)
        );
        assert_eq!(bytes.len(), 88 + 3 * 24);
    }
}
