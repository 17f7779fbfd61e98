use super::*;
use crate::layout;
use crate::memory::GuestRam;
use crate::snapshot::WorkingSet;

const MIB: u64 = 1 << 20;

fn ram(mib: u32) -> (GuestRam, Vec<RamRange>) {
    let ranges = layout::ram_ranges(mib);
    (GuestRam::new(&ranges).unwrap(), ranges)
}

fn put_byte(ram: &GuestRam, addr: u64, byte: u8) {
    ram.memory().write_obj(byte, GuestAddress(addr)).unwrap();
}

fn byte(ram: &GuestRam, addr: u64) -> u8 {
    ram.memory().read_obj(GuestAddress(addr)).unwrap()
}

#[test]
fn only_pages_that_are_not_zero_are_stored_and_they_come_back() {
    let (source, ranges) = ram(3330);
    let high = layout::HOLE_END + MIB;
    for (addr, value) in [(5, 1), (3 * PAGE_SIZE, 2), (64 * MIB + 4095, 3), (high, 4)] {
        put_byte(&source, addr, value);
    }
    // Touched, but zero.
    put_byte(&source, 128 * MIB, 0);
    let file = tempfile::tempfile().unwrap();
    let (extents, sum) = write(source.memory(), &[], (&file, None)).unwrap();
    let extent = |start, pages, before| Extent { start, len: pages * PAGE_SIZE, offset: before * PAGE_SIZE };
    // Each at the same place of a large page as in memory.
    assert_eq!(extents, [extent(0, 4, 0), extent(64 * MIB, 1, 512), extent(high, 1, 2 * 512 + 256)]);
    assert_eq!(checksum(&file).unwrap(), ((2 * 512 + 257) * PAGE_SIZE, sum));

    let first = GuestRam::restored(&ranges, &file, &extents, &WorkingSet::default()).unwrap();
    let second = GuestRam::restored(&ranges, &file, &extents, &WorkingSet::default()).unwrap();
    for (addr, value) in [(5, 1), (3 * PAGE_SIZE, 2), (64 * MIB + 4095, 3), (high, 4), (128 * MIB, 0), (7, 0)]
    {
        assert_eq!(byte(&first, addr), value, "{addr:#x}");
    }
    // What one machine writes neither another one sees nor the file.
    put_byte(&first, 5, 9);
    put_byte(&first, 200 * MIB, 9);
    assert_eq!((byte(&first, 5), byte(&second, 5), byte(&second, 200 * MIB)), (9, 1, 0));
    assert_eq!(checksum(&file).unwrap().1, sum);

    // Pages of the file that nobody has touched are saved again.
    let third = GuestRam::restored(&ranges, &file, &extents, &WorkingSet::default()).unwrap();
    put_byte(&third, 3 * PAGE_SIZE, 7);
    let again = tempfile::tempfile().unwrap();
    let (extents, _) = write(third.memory(), &extents, (&again, None)).unwrap();
    let fourth = GuestRam::restored(&ranges, &again, &extents, &WorkingSet::default()).unwrap();
    for (addr, value) in [(5, 1), (3 * PAGE_SIZE, 7), (64 * MIB + 4095, 3), (high, 4)] {
        assert_eq!(byte(&fourth, addr), value, "{addr:#x}");
    }
}

#[test]
fn a_changed_file_has_another_checksum() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[7; 3 * PAGE_SIZE as usize], 0).unwrap();
    let (len, sum) = checksum(&file).unwrap();
    file.write_all_at(&[6], 2 * PAGE_SIZE + 3).unwrap();
    assert_ne!(checksum(&file).unwrap(), (len, sum));
}

#[test]
fn parts_outside_of_memory_or_file_are_refused() {
    let ranges = layout::ram_ranges(64);
    let taken = |extents: &[(u64, u64, u64)]| {
        let mut state = Encoder::default();
        let extents: Vec<_> = extents
            .iter()
            .map(|(start, len, offset)| Extent { start: *start, len: *len, offset: *offset })
            .collect();
        put(&extents, &mut state);
        take(&mut Decoder::new(&state.finish()), &ranges, 4 * MIB).map(|taken| taken == extents)
    };
    let end = 64 * MIB;
    assert_eq!(taken(&[(0x3000, 0x1000, 0x3000), (end - 0x2000, 0x2000, 4 * MIB - 0x2000)]), Ok(true));
    for bad in [
        (end, 0x1000, 0),
        (end - 0x1000, 0x2000, 2 * MIB - 0x1000),
        (0, 0x1000, 4 * MIB),
        (0x1f_f000, 0x2000, 4 * MIB - 0x1000),
        (1, 0x1000, 1),
        (0, 0x1001, 0),
        (0, 0x1000, 8),
        // At another place of a large page than in memory.
        (0, 0x1000, 0x1000),
        (0, 0, 0),
        (u64::MAX - 0xfff, 0x1000, 2 * MIB - 0x1000),
        (0x1000, u64::MAX - 0xfff, 0x1000),
    ] {
        assert!(taken(&[bad]).is_err(), "{bad:x?}");
    }
    assert!(taken(&[(0x2000, 0x1000, 0x2000), (0x1000, 0x1000, 0x1000)]).is_err());
    assert!(taken(&[(0x1000, 0x2000, 0x1000), (0x2000, 0x1000, 0x2000)]).is_err());
    assert!(take(&mut Decoder::new(&u32::MAX.to_le_bytes()), &ranges, 0x4000).is_err());
}
