//! The parameters of Linux's 64-bit entry: zero page, memory map, command line, initramfs.
//!
//! Linux Documentation/arch/x86/boot.rst and zero-page.rst.

use std::fmt::Write;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::layout::{
    BASE_MEMORY_END, CMDLINE_MAX, CMDLINE_START, DeviceResources, HIGH_MEMORY_START, HOLE_START, PAGE_SIZE,
    RamRange, ZERO_PAGE_START,
};

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// type_of_loader: a boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// loadflags: the protected-mode part is above 1 MiB.
const LOADED_HIGH: u8 = 1;
/// Boot protocol 2.15, which defines the fields that are set here.
const PROTOCOL: u16 = 0x020f;
/// vid_mode: leave the display as it is.
const VID_MODE_NORMAL: u16 = 0xffff;
const E820_RAM: u32 = 1;

/// Why a command line is refused: the kernel would truncate or misread it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CmdlineError {
    /// Longer than Linux's COMMAND_LINE_SIZE.
    #[error("the kernel command line has {len} bytes; the limit is {max}")]
    TooLong {
        /// Length in bytes, including the machine's own parameters.
        len: usize,
        /// Longest possible command line, in bytes.
        max: usize,
    },
    /// A byte that is not a printable ASCII character.
    #[error("the kernel command line has the byte {byte:#04x} at {at}")]
    BadByte {
        /// Value of the byte.
        byte: u8,
        /// Offset of the byte in the command line.
        at: usize,
    },
}

/// Adds the machine's virtio-mmio devices to the kernel parameters of `cmdline`. They are inserted before ` -- `,
/// because the rest are arguments of init.
pub fn command_line(cmdline: &str, devices: &[DeviceResources]) -> Result<String, CmdlineError> {
    if let Some((at, byte)) = cmdline.bytes().enumerate().find(|(_, byte)| !(b' '..=b'~').contains(byte)) {
        return Err(CmdlineError::BadByte { byte, at });
    }
    let (kernel, init) = match cmdline.find(" -- ") {
        Some(at) => cmdline.split_at(at),
        None => (cmdline, ""),
    };
    let mut whole = kernel.to_owned();
    for device in devices {
        let separator = if whole.is_empty() { "" } else { " " };
        write!(whole, "{separator}virtio_mmio.device=4K@{:#x}:{}", device.base, device.gsi)
            .expect("a String takes every write");
    }
    whole.push_str(init);
    let max = CMDLINE_MAX - 1;
    if whole.len() > max { Err(CmdlineError::TooLong { len: whole.len(), max }) } else { Ok(whole) }
}

/// Returns the memory map: `ranges` without the BIOS area, which contains the machine's tables.
pub fn memory_map(ranges: &[RamRange]) -> Vec<RamRange> {
    let mut map = vec![RamRange { start: 0, len: BASE_MEMORY_END }];
    for range in ranges {
        let start = range.start.max(HIGH_MEMORY_START);
        if range.end() > start {
            map.push(RamRange { start, len: range.end() - start });
        }
    }
    map
}

/// Returns the page-aligned address of an initramfs of `len` bytes: the page after the kernel, which the kernel touches
/// in any case. At the end of memory it would have a huge page of the host for itself. `None` if it does not fit there
/// into low memory, or beyond `reach`, the last address that it may occupy.
pub fn initramfs_address(ranges: &[RamRange], reach: u64, kernel_end: u64, len: u64) -> Option<u64> {
    let low_end = ranges.iter().map(RamRange::end).find(|end| *end <= HOLE_START)?;
    let start = kernel_end.checked_next_multiple_of(PAGE_SIZE)?;
    let end = start.checked_add(len)?;
    (end <= low_end.min(reach.saturating_add(1))).then_some(start)
}

/// Returns the zero page. `setup` is the setup header of a bzImage; a `vmlinux` has none.
fn zero_page(
    setup: Option<setup_header>,
    cmdline_len: usize,
    ranges: &[RamRange],
    initramfs: RamRange,
) -> boot_params {
    let mut params = boot_params { hdr: setup.unwrap_or_default(), ..Default::default() };
    let hdr = &mut params.hdr;
    if setup.is_none() {
        hdr.boot_flag = BOOT_FLAG;
        hdr.header = HEADER_MAGIC;
        hdr.version = PROTOCOL;
        hdr.loadflags = LOADED_HIGH;
    }
    hdr.type_of_loader = LOADER_UNDEFINED;
    hdr.vid_mode = VID_MODE_NORMAL;
    hdr.cmd_line_ptr = CMDLINE_START as u32;
    hdr.cmdline_size = cmdline_len as u32;
    hdr.ramdisk_image = initramfs.start as u32;
    hdr.ramdisk_size = initramfs.len as u32;
    for (slot, range) in params.e820_table.iter_mut().zip(memory_map(ranges)) {
        *slot = boot_e820_entry { addr: range.start, size: range.len, type_: E820_RAM };
        params.e820_entries += 1;
    }
    params
}

/// Writes the command line (from [`command_line`]) and the zero page into guest memory.
pub fn write(
    memory: &GuestMemoryMmap,
    setup: Option<setup_header>,
    cmdline: &str,
    ranges: &[RamRange],
    initramfs: Option<RamRange>,
) -> Result<(), GuestMemoryError> {
    write_cmdline(memory, cmdline)?;
    let initramfs = initramfs.unwrap_or(RamRange { start: 0, len: 0 });
    memory.write_obj(zero_page(setup, cmdline.len(), ranges, initramfs), GuestAddress(ZERO_PAGE_START))
}

/// Writes the command line and its terminating NUL.
pub fn write_cmdline(memory: &GuestMemoryMmap, cmdline: &str) -> Result<(), GuestMemoryError> {
    memory.write_slice(&[cmdline.as_bytes(), &[0]].concat(), GuestAddress(CMDLINE_START))
}

#[cfg(test)]
mod tests;
