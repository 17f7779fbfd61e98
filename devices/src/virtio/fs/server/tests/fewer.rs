//! What our guest's kernel leaves out: replies to RELEASE.

use super::*;

impl Guest {
    /// Sends a request without space for a reply.
    fn post(&mut self, opcode: u32, nodeid: u64, body: &[u8]) {
        let mut bytes = Vec::new();
        let len = (InHeader::SIZE + body.len()) as u32;
        InHeader { len, opcode, nodeid, ..Default::default() }.put(&mut bytes);
        bytes.extend_from_slice(body);
        assert_eq!(self.send(&bytes, 0), Some(vec![]));
    }
}

#[test]
fn a_release_without_space_for_a_reply_closes_the_file() {
    let mut guest = Guest::new();
    let rootfs = guest.rootfs();
    let (node, fh) = guest.make(rootfs, "a");
    let release = body(|b| ReleaseIn { fh, ..Default::default() }.put(b));
    assert_eq!(guest.tree.counts().1, 1);
    guest.post(op::RELEASE, node, &release);
    assert_eq!(guest.tree.counts().1, 0);
    // Of an unknown file nobody hears.
    guest.post(op::RELEASEDIR, node, &release);
    guest.post(op::RELEASE, 999, &[]);
    // FORGET may come first: its queue is another one.
    let (node, fh) = guest.make(rootfs, "b");
    guest.forget(node, 1);
    guest.post(op::RELEASE, node, &body(|b| ReleaseIn { fh, ..Default::default() }.put(b)));
    assert_eq!(guest.tree.counts().1, 0);
}
