//! bzImage: Linux's self-extracting kernel (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").
//!
//! It is entered at its 64-bit entry, at offset 0x200 of the protected-mode part. It unpacks itself inside the guest,
//! which takes much longer than loading a `vmlinux`.

use linux_loader::loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::{Entry, Kernel, Refusal, Segment};
use crate::Image;
use crate::layout::HIGH_MEMORY_START;

/// Offset of the setup header.
const SETUP_HEADER: u64 = 0x1f1;
/// Offset and value of the setup header's signature.
const SIGNATURE_AT: u64 = 0x202;
const SIGNATURE: [u8; 4] = *b"HdrS";
/// The first boot protocol version with xloadflags.
const VERSION_MIN: u16 = 0x020c;
/// xloadflags: the kernel has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64_OFFSET: u64 = 0x200;
const SECTOR: u64 = 512;
/// Number of setup sectors if the header says 0.
const SETUP_SECTORS_DEFAULT: u64 = 4;

/// Whether `image` has a bzImage's signature.
pub(super) fn is_one(image: &Image) -> Result<bool, Refusal> {
    if image.check(SIGNATURE_AT, 4).is_err() {
        return Ok(false);
    }
    let mut signature = [0; 4];
    image.read_exact_at(SIGNATURE_AT, &mut signature)?;
    Ok(signature == SIGNATURE)
}

/// Reads the setup header of a bzImage.
pub(super) fn parse(image: &Image) -> Result<Kernel, Refusal> {
    let mut setup = setup_header::default();
    image.read_exact_at(SETUP_HEADER, setup.as_mut_slice())?;
    let (version, flags) = (setup.version, setup.xloadflags);
    if version < VERSION_MIN || flags & XLF_KERNEL_64 == 0 {
        return Err(Refusal::Not("it is a bzImage without a 64-bit entry"));
    }
    let sectors = match u64::from(setup.setup_sects) {
        0 => SETUP_SECTORS_DEFAULT,
        sectors => sectors,
    };
    let at = (sectors + 1) * SECTOR;
    let len = image
        .len
        .checked_sub(at)
        .filter(|len| *len > ENTRY_64_OFFSET)
        .ok_or(Refusal::Not("it is truncated"))?;
    // The kernel unpacks itself to pref_address and needs init_size bytes there.
    let unpacked = { setup.pref_address }.saturating_add(u64::from(setup.init_size));
    Ok(Kernel {
        entry: Entry::Linux64(HIGH_MEMORY_START + ENTRY_64_OFFSET),
        segments: vec![Segment { at, len, addr: HIGH_MEMORY_START, memory_len: len }],
        end: unpacked.max(HIGH_MEMORY_START.saturating_add(len)),
        setup: Some(setup),
    })
}
