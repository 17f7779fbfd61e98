//! REVIVE: what the guest of a saved machine must be told when another machine continues from it: `u64 realtime, [u8; 32]
//! entropy`, big-endian.

use alloc::vec::Vec;

/// Bytes of entropy: the size of the kernel's key.
pub const ENTROPY_LEN: usize = 32;

/// What is new in a machine that continues from a saved one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revival {
    /// The host's CLOCK_REALTIME in nanoseconds.
    pub realtime: u64,
    /// Bytes that no other machine has.
    pub entropy: [u8; ENTROPY_LEN],
}

impl Revival {
    /// Returns the payload.
    pub fn encode(&self) -> Vec<u8> {
        [&self.realtime.to_be_bytes()[..], &self.entropy].concat()
    }

    /// Reads a payload; `None` if its length is wrong.
    pub fn decode(payload: &[u8]) -> Option<Revival> {
        let (realtime, entropy) = payload.split_first_chunk()?;
        Some(Revival { realtime: u64::from_be_bytes(*realtime), entropy: entropy.try_into().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_has_exactly_time_and_entropy() {
        let revival = Revival { realtime: 0x0102_0304_0506_0708, entropy: [9; ENTROPY_LEN] };
        let payload = revival.encode();
        assert_eq!(payload[..9], [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(Revival::decode(&payload), Some(revival));
        assert_eq!(Revival::decode(&payload[1..]), None);
        assert_eq!(Revival::decode(&[&payload[..], &[0]].concat()), None);
        assert_eq!(Revival::decode(&[]), None);
    }
}
