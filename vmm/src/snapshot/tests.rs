use std::os::unix::fs::FileExt;

use super::*;
use crate::layout::PAGE_SIZE;

fn snapshot() -> (Snapshot, File) {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[7; PAGE_SIZE as usize], 0).unwrap();
    let (_, memory_sum) = memory::checksum(&file).unwrap();
    let parts = Parts {
        label: b"label".to_vec(),
        memory_mib: 64,
        vcpus: 2,
        extents: vec![Extent { start: 0x20_0000, len: PAGE_SIZE, offset: 0 }],
        memory_sum,
        processors: vec![1, 2, 3],
        devices: vec![(0xd000_0000, vec![4]), (0xd000_1000, Vec::new())],
    };
    (Snapshot::new(parts, &file).unwrap(), file)
}

#[test]
fn a_state_comes_back_as_it_was() {
    let (saved, file) = snapshot();
    let read = Snapshot::decode(&saved.encode()).unwrap();
    assert_eq!(format!("{read:?}"), format!("{saved:?}"));
    read.owns(&file).unwrap();
    read.verify(&file).unwrap();
    assert_eq!(read.memory_len(), PAGE_SIZE);
}

#[test]
fn no_damage_of_a_state_is_overlooked() {
    let bytes = snapshot().0.encode();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        assert!(Snapshot::decode(&changed).is_err(), "byte {at}");
        assert!(Snapshot::decode(&bytes[..at]).is_err(), "{at} bytes");
    }
    assert!(Snapshot::decode(&[bytes, vec![0]].concat()).is_err());
}

#[test]
fn another_format_is_named() {
    let mut bytes = snapshot().0.encode();
    bytes[8] += 1;
    let error = Snapshot::decode(&bytes).unwrap_err();
    assert_eq!(error.to_string(), "the state is that of another device: it has another format");
}

#[test]
fn a_file_that_changed_is_refused() {
    let (saved, file) = snapshot();
    file.write_all_at(&[8], 9).unwrap();
    assert!(matches!(saved.verify(&file), Err(SnapshotError::Changed)));
    file.set_len(1).unwrap();
    assert!(matches!(saved.owns(&file), Err(SnapshotError::Changed)));
    let other = snapshot().1;
    assert!(matches!(saved.owns(&other), Err(SnapshotError::Changed)));
}
