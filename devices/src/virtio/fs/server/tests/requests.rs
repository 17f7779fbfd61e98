//! Malformed requests.

use super::*;

#[test]
fn unsupported_requests_are_answered() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    for opcode in [op::FLUSH, op::ACCESS, op::SETLKW, op::BMAP, op::POLL] {
        assert_eq!(guest.call(opcode, rootfs, &[0; 64]), Err(libc::ENOSYS));
    }
    for opcode in [0, 7, 19, 52, 4096, u32::MAX] {
        assert_eq!(guest.call(opcode, rootfs, &[0; 64]), Err(libc::ENOSYS));
    }
}

#[test]
fn of_ioctls_only_those_of_chattr_are_known() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    let ioctl = |cmd, out_size| body(|b| IoctlIn { fh, cmd, out_size, ..Default::default() }.put(b));
    for cmd in [0, 0x5401, 0x8008_6602, u32::MAX] {
        assert_eq!(guest.call(op::IOCTL, node, &ioctl(cmd, 64)), Err(libc::ENOTTY), "{cmd:x}");
    }
    let flags = guest.call(op::IOCTL, node, &ioctl(0x8008_6601, 4));
    // The file system of the temporary directory may have no flags.
    if !matches!(flags, Err(libc::ENOTTY | libc::EOPNOTSUPP)) {
        assert_eq!(flags.unwrap().len(), IoctlOut::SIZE + 4);
        assert_eq!(guest.call(op::IOCTL, node, &ioctl(0x8008_6601, 3)), Err(libc::EINVAL));
    }
    // Without the flags to set.
    assert_eq!(guest.call(op::IOCTL, node, &ioctl(0x4008_6602, 0)), Err(libc::EINVAL));
    let other = body(|b| IoctlIn { fh: 99, cmd: 0x8008_6601, out_size: 4, ..Default::default() }.put(b));
    assert_eq!(guest.call(op::IOCTL, node, &other), Err(libc::EBADF));
}

#[test]
fn short_and_lying_requests_are_refused() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    for len in [0, 1, 39] {
        assert_eq!(guest.send(&vec![1; len], 100), None);
    }
    for len in [0, 39, 41, u32::MAX] {
        let header = body(|b| InHeader { len, opcode: op::LOOKUP, ..Default::default() }.put(b));
        assert_eq!(guest.send(&header, 100), None, "{len}");
    }
    // Too little space for an error.
    let header = body(|b| InHeader { len: 40, opcode: op::STATFS, nodeid: 1, ..Default::default() }.put(b));
    assert_eq!(guest.send(&header, 15), None);
    // Space for an error, but not for the reply.
    let reply = guest.send(&header, 40).unwrap();
    assert_eq!(OutHeader::parse(&reply).unwrap().error, -libc::ERANGE);
    // Bodies too short for their opcode.
    for opcode in 1..=51 {
        if !matches!(opcode, op::FORGET | op::BATCH_FORGET | op::INTERRUPT | op::NOTIFY_REPLY) {
            let _ = guest.call(opcode, rootfs, &[]);
            let _ = guest.call(opcode, node, &[0xff; 7]);
        }
    }
    // The calls above include DESTROY, which removes the handle.
    let rootfs = guest.rootfs();
    let node = guest.lookup(rootfs, "a").unwrap().0.nodeid;
    assert_eq!(guest.read(node, fh, 0, 1), Err(libc::EBADF));
    let fh = guest.open(node, libc::O_RDWR).unwrap().fh;
    // WRITE whose size exceeds its data, READ of more than the reply has space for.
    let lie = body(|b| WriteIn { fh, size: 100, ..Default::default() }.put(b));
    assert_eq!(guest.call(op::WRITE, node, &lie), Err(libc::EINVAL));
    assert_eq!(guest.read(node, fh, u64::MAX, 1), Err(libc::EINVAL));
    assert_eq!(guest.read(node, fh, 0, u32::MAX), Ok(vec![]));
    assert_eq!(guest.call(op::LOOKUP, rootfs, &vec![b'a'; MAX_BODY + 1]), Err(libc::E2BIG));
    // Batches whose count exceeds their entries.
    let batch = body(|b| {
        BatchForgetIn { count: u32::MAX, dummy: 0 }.put(b);
        ForgetOne { nodeid: node, nlookup: u64::MAX }.put(b);
    });
    let header = InHeader { len: 40 + batch.len() as u32, opcode: op::BATCH_FORGET, ..Default::default() };
    let bytes = [body(|b| header.put(b)), batch].concat();
    assert_eq!(guest.send(&bytes, 0), Some(vec![]));
    assert_eq!(guest.call(op::GETATTR, node, &[0; 16]), Err(libc::ESTALE));
}

#[test]
fn numbers_of_other_objects_are_refused() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    let (other, _) = guest.make(rootfs, "b");
    for nodeid in [0, 999, u64::MAX, 1 << 63, other, ROOT_ID] {
        assert!(guest.read(nodeid, fh, 0, 1).is_err(), "{nodeid}");
        assert!(guest.write(nodeid, WriteIn { fh, ..Default::default() }, b"x").is_err());
    }
    assert_eq!(guest.read(node, fh + 99, 0, 1), Err(libc::EBADF));
    for nodeid in [0, 999, u64::MAX] {
        assert_eq!(guest.call(op::GETATTR, nodeid, &[0; 16]), Err(libc::ESTALE));
        assert_eq!(guest.lookup(nodeid, "a"), Err(libc::ESTALE));
        guest.forget(nodeid, 1);
    }
    guest.forget(ROOT_ID, u64::MAX);
    guest.attr(ROOT_ID);
}

/// A mixture of bytes and small numbers; the numbers are often existing handles and valid lengths.
fn random_body() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        (0u64..9).prop_map(|n| n.to_le_bytes().to_vec()),
        proptest::collection::vec(any::<u8>(), 8),
        Just(b"a\0b\0user.".to_vec()),
    ];
    (proptest::collection::vec(word, 0..24), 0usize..8).prop_map(|(words, cut)| {
        let mut bytes = words.concat();
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    // The random requests may create files in this scratch directory.
    #[test]
    fn random_requests_never_panic(
        requests in proptest::collection::vec(
            (0u32..56, 0u64..6, random_body(), 0usize..300), 1..40)
    ) {
        let mut guest = Guest::new();
        guest.tree.set_host_sync(false);
        let rootfs = guest.rootfs();
        let (node, _) = guest.make(rootfs, "a");
        let nodes = [0, 1, rootfs, node, 1 << 63 | 2, u64::MAX];
        for (opcode, nodeid, body, room) in requests {
            let mut bytes = Vec::new();
            let len = (InHeader::SIZE + body.len()) as u32;
            InHeader { len, opcode, nodeid: nodes[nodeid as usize], ..Default::default() }.put(&mut bytes);
            bytes.extend_from_slice(&body);
            guest.send(&bytes, room);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), room in 0usize..300) {
        Guest::new().send(&bytes, room);
    }
}
