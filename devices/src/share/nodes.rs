//! The policy for device nodes that a guest may create in a share.
//!
//! A hostile guest may request any node, and a node in a directory of the host is a device of the host to every process
//! that opens it there. The policy belongs to the bind; by default no nodes are allowed. Sockets, FIFOs and overlayfs
//! whiteouts are not devices and always allowed.

use super::errno::{Errno, Result};

/// Type of a device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// Character device (S_IFCHR).
    Character,
    /// Block device (S_IFBLK).
    Block,
}

/// A rule for the nodes that match its type and numbers. `None` matches all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRule {
    /// Whether matching nodes may be created.
    pub allow: bool,
    /// Type to match.
    pub kind: Option<NodeKind>,
    /// Major number to match.
    pub major: Option<u32>,
    /// Minor number to match.
    pub minor: Option<u32>,
}

/// The device nodes that may be created. The last matching rule decides; a node without a matching rule is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePolicy(pub Vec<NodeRule>);

impl NodePolicy {
    /// Refuses a node that may not be created. `mode` and `rdev` are the arguments of mknod(2).
    pub fn check(&self, mode: u32, rdev: u32) -> Result<()> {
        let kind = match mode & libc::S_IFMT {
            // A whiteout, by which an overlayfs in the guest hides a file.
            libc::S_IFCHR if rdev == 0 => return Ok(()),
            libc::S_IFCHR => NodeKind::Character,
            libc::S_IFBLK => NodeKind::Block,
            _ => return Ok(()),
        };
        let (major, minor) = (libc::major(rdev.into()), libc::minor(rdev.into()));
        let last = self.0.iter().rfind(|rule| rule.names(kind, major, minor));
        if last.is_some_and(|rule| rule.allow) { Ok(()) } else { Err(Errno(libc::EPERM)) }
    }
}

impl NodeRule {
    fn names(&self, kind: NodeKind, major: u32, minor: u32) -> bool {
        self.kind.is_none_or(|own| own == kind)
            && self.major.is_none_or(|own| own == major)
            && self.minor.is_none_or(|own| own == minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, kind: Option<NodeKind>, major: Option<u32>, minor: Option<u32>) -> NodeRule {
        NodeRule { allow, kind, major, minor }
    }

    #[test]
    fn without_a_rule_no_device_may_be_created() {
        let none = NodePolicy::default();
        let whiteout = (libc::S_IFCHR, 0);
        for (mode, rdev) in
            [(libc::S_IFREG, 0x103), (0, 7), (libc::S_IFIFO, 1), (libc::S_IFSOCK, 1), whiteout]
        {
            assert_eq!(none.check(mode | 0o644, rdev), Ok(()), "{mode:o} {rdev}");
        }
        for (mode, rdev) in
            [(libc::S_IFBLK, 0), (libc::S_IFCHR, 1), (libc::S_IFCHR, 0x103), (libc::S_IFBLK, 0x800)]
        {
            assert_eq!(none.check(mode | 0o644, rdev), Err(Errno(libc::EPERM)), "{mode:o} {rdev}");
        }
    }

    #[test]
    fn the_last_rule_about_a_node_holds() {
        let policy = NodePolicy(vec![
            rule(true, Some(NodeKind::Character), Some(1), None),
            rule(false, None, Some(1), Some(3)),
            rule(true, Some(NodeKind::Block), Some(1), Some(3)),
            rule(true, Some(NodeKind::Block), Some(259), Some(0x12345)),
        ]);
        for (mode, rdev, allowed) in [
            (libc::S_IFCHR, 0x105, true),
            (libc::S_IFCHR, 0x103, false),
            (libc::S_IFBLK, 0x103, true),
            (libc::S_IFBLK, 0x105, false),
            (libc::S_IFCHR, 0x203, false),
            (libc::S_IFBLK, 0x1231_0345, true),
            (libc::S_IFBLK, 0x1230_0345, false),
        ] {
            assert_eq!(policy.check(mode, rdev).is_ok(), allowed, "{mode:o} {rdev:x}");
        }
    }
}
