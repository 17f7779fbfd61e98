use std::fs::File;
use std::io::Write;

use super::*;
use crate::Image;
use crate::loader::Segment;

fn image(len: u64) -> Image {
    let mut file: File = tempfile::tempfile().unwrap();
    file.write_all(b"no kernel").unwrap();
    Image { file, offset: 0, len, name: "/boot/vmlinux".into() }
}

fn config(memory_mib: u32, vcpus: u8, initramfs_len: u64) -> VmConfig {
    VmConfig {
        memory_mib,
        vcpus,
        kernel: image(9),
        initramfs: Some(image(initramfs_len)),
        cmdline: String::new(),
        serial: None,
        timeline: None,
        entries: crate::Entries::default(),
    }
}

/// A kernel that ends at 32 MiB.
fn kernel() -> Kernel {
    let segment = Segment { at: 0, len: 9, addr: 0x100_0000, memory_len: 0x100_0000 };
    Kernel { entry: Entry::Linux64(0x100_0000), segments: vec![segment], end: 0x200_0000, setup: None }
}

fn plan(memory_mib: u32, initramfs_len: u64) -> Result<Option<RamRange>> {
    plan_initramfs(&config(memory_mib, 1, initramfs_len), &kernel(), &layout::ram_ranges(memory_mib))
}

#[test]
fn impossible_shapes_are_refused() {
    assert!(check_shape(&config(64, 1, 0)).is_ok());
    assert!(check_shape(&config(MEMORY_MIB_MAX, VCPUS_MAX, 0)).is_ok());
    assert!(matches!(check_shape(&config(64, 0, 0)), Err(Error::BadVcpus { vcpus: 0, max: 254 })));
    assert!(matches!(check_shape(&config(64, 255, 0)), Err(Error::BadVcpus { .. })));
    assert!(matches!(check_shape(&config(MEMORY_MIB_MAX + 1, 1, 0)), Err(Error::TooMuchMemory { .. })));
}

#[test]
fn too_little_memory_names_what_is_needed() {
    let need = |mib, len| match plan(mib, len) {
        Err(Error::TooLittleMemory { have_mib, need_mib, .. }) => Some((have_mib, need_mib)),
        Err(other) => panic!("{other}"),
        Ok(_) => None,
    };
    let working = WORKING_MEMORY >> 20;
    assert_eq!(need(32, 0), Some((32, 32 + working)));
    assert_eq!(need(0, 0), Some((0, 32 + working)));
    assert_eq!(need(32 + working as u32, 0), None);
    assert_eq!(need(32 + working as u32, 1), Some((32 + working as u32, 33 + working)));
    assert!(need(64, u64::MAX).is_some());
    let error = plan(32, 0).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("memory of 32 MiB is too small for /boot/vmlinux, which needs {} MiB", 32 + working)
    );
}

#[test]
fn an_initramfs_follows_the_kernel_and_an_empty_one_is_left_out() {
    assert_eq!(plan(256, 0x1800).unwrap(), Some(RamRange { start: 0x200_0000, len: 0x1800 }));
    assert_eq!(plan(256, 0).unwrap(), None);
}
