//! Writes a cpio archive in `newc` format, as for an initramfs (Linux,
//! Documentation/driver-api/early-userspace/buffer-format.rst).

/// Appends a file or folder to `archive`, with owner root and time 0. `mode` is type and permissions as in stat(2).
pub fn append(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    entry(archive, name, mode, (0, 0), data);
}

/// Appends a device node with the major and minor numbers `device`.
pub fn append_node(archive: &mut Vec<u8>, name: &str, mode: u32, device: (usize, usize)) {
    entry(archive, name, mode, device, &[]);
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, device: (usize, usize), data: &[u8]) {
    let inode = archive.len();
    let links = if mode & 0o170000 == 0o040000 { 2 } else { 1 };
    let fields =
        [inode, mode as usize, 0, 0, links, 0, data.len(), 0, 0, device.0, device.1, name.len() + 1, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(data);
    pad(archive);
}

/// Appends the trailer of `archive`.
pub fn finish(archive: &mut Vec<u8>) {
    append(archive, "TRAILER!!!", 0, &[]);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_to_four_bytes() {
        let mut archive = Vec::new();
        append(&mut archive, "init", 0o100755, b"abc");
        // 110 bytes of header, "init\0" ends at 115, padded to 116; "abc" ends at 119, padded to 120.
        assert_eq!(archive.len(), 120);
        assert_eq!(&archive[..14], b"07070100000000");
        assert_eq!(&archive[14..22], b"000081ed");
        assert_eq!(&archive[54..62], b"00000003");
        assert_eq!(&archive[110..120], b"init\0\0abc\0");
        finish(&mut archive);
        assert_eq!(archive.len() % 4, 0);
        assert!(archive.windows(11).any(|window| window == b"TRAILER!!!\0"));
    }
}
