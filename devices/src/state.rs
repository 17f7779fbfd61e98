//! The state of a device as plain data, which a machine saves and from which another one continues.
//!
//! A device writes its fields one after the other with an [`Encoder`], and reads them in the same order with a
//! [`Decoder`]. The data have no version of their own: the snapshot that contains them has one.
//!
//! A decoder trusts nothing. Whatever the bytes are, it returns an error or values, and allocates no more than they are
//! long.

/// Why a device cannot be saved, or cannot continue from a state.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The device is in the middle of something that a state does not contain.
    #[error("{0}")]
    Busy(&'static str),
    /// The device has something that a state does not contain, with its name.
    #[error("{0}")]
    Refused(String),
    /// The state is that of another device.
    #[error("the state is that of another device: {0}")]
    Foreign(&'static str),
    /// The bytes are not a state.
    #[error("the state is damaged: {0}")]
    Damaged(&'static str),
}

/// Writes fields, little-endian.
#[derive(Debug, Default)]
pub struct Encoder(Vec<u8>);

impl Encoder {
    /// Appends a byte.
    pub fn u8(&mut self, value: u8) -> &mut Encoder {
        self.raw(&[value])
    }

    /// Appends a 16-bit number.
    pub fn u16(&mut self, value: u16) -> &mut Encoder {
        self.raw(&value.to_le_bytes())
    }

    /// Appends a 32-bit number.
    pub fn u32(&mut self, value: u32) -> &mut Encoder {
        self.raw(&value.to_le_bytes())
    }

    /// Appends a 64-bit number.
    pub fn u64(&mut self, value: u64) -> &mut Encoder {
        self.raw(&value.to_le_bytes())
    }

    /// Appends bytes with their length. Panics if they are longer than 4 GiB.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Encoder {
        self.u32(u32::try_from(bytes.len()).expect("a state is short")).raw(bytes)
    }

    /// Returns what was written.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Encoder {
        self.0.extend_from_slice(bytes);
        self
    }
}

/// Reads fields in the order in which they were written.
#[derive(Debug)]
pub struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    /// Returns a reader of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Decoder<'a> {
        Decoder(bytes)
    }

    /// Reads a byte.
    pub fn u8(&mut self) -> Result<u8, StateError> {
        self.array().map(u8::from_le_bytes)
    }

    /// Reads a 16-bit number.
    pub fn u16(&mut self) -> Result<u16, StateError> {
        self.array().map(u16::from_le_bytes)
    }

    /// Reads a 32-bit number.
    pub fn u32(&mut self) -> Result<u32, StateError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Reads a 64-bit number.
    pub fn u64(&mut self) -> Result<u64, StateError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reads bytes with their length.
    pub fn bytes(&mut self) -> Result<&'a [u8], StateError> {
        let len = self.u32()? as usize;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(ENDS_EARLY)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Refuses bytes after the last field.
    pub fn end(self) -> Result<(), StateError> {
        if self.0.is_empty() { Ok(()) } else { Err(StateError::Damaged("bytes after its end")) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(ENDS_EARLY)?;
        self.0 = rest;
        Ok(*bytes)
    }
}

const ENDS_EARLY: StateError = StateError::Damaged("it ends early");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_in_their_order() {
        let mut state = Encoder::default();
        state.u8(1).u16(0x203).u32(0x405_0607).bytes(b"name").u64(u64::MAX).bytes(b"");
        let bytes = state.finish();
        let mut state = Decoder::new(&bytes);
        assert_eq!((state.u8(), state.u16(), state.u32()), (Ok(1), Ok(0x203), Ok(0x405_0607)));
        assert_eq!((state.bytes(), state.u64()), (Ok(&b"name"[..]), Ok(u64::MAX)));
        assert_eq!(state.bytes(), Ok(&b""[..]));
        assert_eq!(state.end(), Ok(()));
    }

    #[test]
    fn a_state_that_ends_early_or_late_is_damaged() {
        assert_eq!(Decoder::new(&[1]).u16(), Err(ENDS_EARLY));
        assert_eq!(Decoder::new(&[5, 0, 0, 0, 1]).bytes(), Err(ENDS_EARLY));
        assert_eq!(Decoder::new(&[255; 8]).bytes(), Err(ENDS_EARLY));
        assert_eq!(Decoder::new(&[1]).end(), Err(StateError::Damaged("bytes after its end")));
    }
}
