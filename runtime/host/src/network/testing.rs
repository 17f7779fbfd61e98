//! Fixtures for tests of this crate and, with the feature `testing`, of others.

use super::Link;

/// Returns an interface that is up.
pub fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.into(),
        mac: vec![2, 0, 0, 0, 0, index as u8],
        mtu: 1500,
        flags: libc::IFF_UP as u32,
        hardware: libc::ARPHRD_ETHER,
        driver: "veth".into(),
    }
}
