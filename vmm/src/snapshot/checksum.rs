//! A checksum against accidents: FNV-1a over 64-bit words instead of bytes, with the length at its end. Whoever can change
//! a file on purpose can also change its checksum: files are protected by their owner and mode.

const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// The checksum of bytes that arrive in pieces.
#[derive(Debug)]
pub struct Checksum {
    sum: u64,
    /// Bytes that do not fill a word yet, and their number.
    rest: ([u8; 8], usize),
    len: u64,
}

impl Default for Checksum {
    fn default() -> Checksum {
        Checksum { sum: BASIS, rest: ([0; 8], 0), len: 0 }
    }
}

impl Checksum {
    /// Adds bytes. How they are divided into pieces makes no difference.
    pub fn add(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len() as u64;
        while self.rest.1 > 0 && self.rest.1 < 8 {
            let Some((byte, others)) = bytes.split_first() else { return };
            self.rest.0[self.rest.1] = *byte;
            self.rest.1 += 1;
            bytes = others;
        }
        if self.rest.1 == 8 {
            self.word(u64::from_le_bytes(self.rest.0));
            self.rest = ([0; 8], 0);
        }
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.word(u64::from_le_bytes(*word)));
        self.rest.0[..rest.len()].copy_from_slice(rest);
        self.rest.1 = rest.len();
    }

    /// Returns the checksum of all bytes.
    pub fn finish(mut self) -> u64 {
        let (rest, len) = (u64::from_le_bytes(self.rest.0), self.len);
        self.word(rest);
        self.word(len);
        self.sum
    }

    fn word(&mut self, word: u64) {
        // The rotation brings the upper bits, which a product does not pass on, to the lower ones.
        self.sum = (self.sum ^ word).wrapping_mul(PRIME).rotate_left(29);
    }
}

/// Returns the checksum of `bytes`.
pub fn of(bytes: &[u8]) -> u64 {
    let mut sum = Checksum::default();
    sum.add(bytes);
    sum.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_no_difference_and_every_bit_does() {
        let bytes: Vec<u8> = (0..100).collect();
        let whole = of(&bytes);
        for cut in 0..bytes.len() {
            let mut sum = Checksum::default();
            sum.add(&bytes[..cut]);
            sum.add(&bytes[cut..cut]);
            sum.add(&bytes[cut..]);
            assert_eq!(sum.finish(), whole, "{cut}");
        }
        for bit in 0..800 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(of(&changed), whole, "bit {bit}");
        }
        assert_ne!(of(&[0; 7]), of(&[0; 8]));
        assert_ne!(of(&bytes[..99]), whole);
    }
}
