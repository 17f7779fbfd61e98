use vm_memory::ByteValued;

use super::*;
use crate::layout::{device_resources, ram_ranges};

fn devices(count: usize) -> Vec<DeviceResources> {
    (0..count).map(|n| device_resources(n).unwrap()).collect()
}

#[test]
fn devices_are_added_to_the_command_line_in_order() {
    assert_eq!(
        command_line("console=hvc0 quiet", &devices(2)).unwrap(),
        "console=hvc0 quiet virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"
    );
    assert_eq!(command_line("", &devices(1)).unwrap(), "virtio_mmio.device=4K@0xd0000000:5");
    assert_eq!(command_line("", &[]).unwrap(), "");
}

#[test]
fn the_arguments_of_init_stay_behind_the_devices() {
    assert_eq!(
        command_line("quiet -- -x --", &devices(1)).unwrap(),
        "quiet virtio_mmio.device=4K@0xd0000000:5 -- -x --"
    );
}

#[test]
fn a_command_line_may_be_as_long_as_the_kernel_takes() {
    let longest = "x".repeat(2047);
    assert_eq!(command_line(&longest, &[]).unwrap(), longest);
    assert_eq!(command_line(&"x".repeat(2048), &[]), Err(CmdlineError::TooLong { len: 2048, max: 2047 }));
    let device_words = " virtio_mmio.device=4K@0xd0000000:5".len();
    assert!(command_line(&"x".repeat(2047 - device_words), &devices(1)).is_ok());
    assert!(command_line(&"x".repeat(2048 - device_words), &devices(1)).is_err());
}

#[test]
fn bytes_that_are_not_printable_ascii_are_refused() {
    assert_eq!(command_line("a\0b", &[]), Err(CmdlineError::BadByte { byte: 0, at: 1 }));
    assert_eq!(command_line("quiet\n", &[]), Err(CmdlineError::BadByte { byte: 10, at: 5 }));
    assert_eq!(command_line("é", &[]), Err(CmdlineError::BadByte { byte: 0xc3, at: 0 }));
}

#[test]
fn the_memory_map_leaves_out_the_bios_area_and_the_hole() {
    let map = |mib| memory_map(&ram_ranges(mib)).iter().map(|r| (r.start, r.end())).collect::<Vec<_>>();
    assert_eq!(map(256), [(0, 0x9_fc00), (0x10_0000, 0x1000_0000)]);
    assert_eq!(map(3328), [(0, 0x9_fc00), (0x10_0000, 0xd000_0000)]);
    assert_eq!(map(4096), [(0, 0x9_fc00), (0x10_0000, 0xd000_0000), (0x1_0000_0000, 0x1_3000_0000)]);
    assert_eq!(map(1), [(0, 0x9_fc00)]);
}

#[test]
fn the_initramfs_follows_the_kernel() {
    let check = |mib, reach, kernel_end, len, expected| {
        assert_eq!(initramfs_address(&ram_ranges(mib), reach, kernel_end, len), expected);
    };
    let all = u64::from(u32::MAX);
    check(256, all, 0x200_0000, 0x1000, Some(0x200_0000));
    check(256, all, 0x200_0001, 0x1001, Some(0x200_1000));
    check(8192, all, 0xcfff_f000, 0x1000, Some(0xcfff_f000));
    check(8192, all, 0xcfff_f000, 0x1001, None);
    check(4096, 0x200_1fff, 0x200_0000, 0x2000, Some(0x200_0000));
    check(4096, 0x200_1fff, 0x200_0000, 0x2001, None);
    check(64, all, 0x200_0000, 0x200_0000, Some(0x200_0000));
    check(64, all, 0x200_0000, 0x200_0001, None);
    check(64, all, 0x200_0000, u64::MAX, None);
    check(64, all, u64::MAX, 1, None);
}

#[test]
fn the_zero_page_says_where_everything_is() {
    let initramfs = RamRange { start: 0xff0_0000, len: 0xf_0123 };
    let params = zero_page(None, 17, &ram_ranges(4096), initramfs);
    let bytes = params.as_slice();
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    // Offsets from Documentation/arch/x86/zero-page.rst and boot.rst.
    assert_eq!(bytes.len(), 4096);
    assert_eq!(u32_at(0x202), 0x5372_6448);
    assert_eq!(bytes[0x210], 0xff);
    assert_eq!((u32_at(0x218), u32_at(0x21c)), (0xff0_0000, 0xf_0123));
    assert_eq!(u32_at(0x228), 0x2_0000);
    assert_eq!(bytes[0x1e8], 3);
    assert_eq!((u64_at(0x2d0), u64_at(0x2d8), u32_at(0x2e0)), (0, 0x9_fc00, 1));
    assert_eq!((u64_at(0x2f8), u64_at(0x300), u32_at(0x308)), (0x1_0000_0000, 0x3000_0000, 1));
}

#[test]
fn a_bzimage_keeps_its_own_header() {
    let setup = setup_header { version: 0x020d, kernel_alignment: 0x20_0000, ..Default::default() };
    let params = zero_page(Some(setup), 0, &ram_ranges(64), RamRange { start: 0, len: 0 });
    assert_eq!(({ params.hdr.version }, { params.hdr.kernel_alignment }), (0x020d, 0x20_0000));
    assert_eq!({ params.hdr.cmd_line_ptr }, 0x2_0000);
}
