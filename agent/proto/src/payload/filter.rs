//! A compiled seccomp filter. The agent passes it to its kernel without interpreting it.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The kernel's limit of instructions (linux/bpf_common.h, BPF_MAXINSNS).
pub const FILTER_MAX: usize = 4096;
/// Number of hexadecimal digits of one instruction.
const DIGITS: usize = 16;

/// A seccomp filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// The BPF program.
    pub program: Program,
    /// SECCOMP_FILTER_FLAG_*.
    #[serde(default)]
    pub flags: u32,
}

/// A program for the kernel's classic BPF machine, at most [`FILTER_MAX`] instructions. On the wire each instruction is
/// sixteen hexadecimal digits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program(pub Vec<u64>);

/// Returns an instruction in the layout of `struct sock_filter`: `u16 code, u8 jt, u8 jf, u32 k`.
pub const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> u64 {
    code as u64 | (jt as u64) << 16 | (jf as u64) << 24 | (k as u64) << 32
}

impl Serialize for Program {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(self.0.len() * DIGITS);
        for word in &self.0 {
            // Writing to a String cannot fail.
            let _ = write!(text, "{word:016x}");
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Program {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Program, D::Error> {
        deserializer.deserialize_str(ProgramVisitor)
    }
}

struct ProgramVisitor;

impl Visitor<'_> for ProgramVisitor {
    type Value = Program;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a seccomp filter with 16 hexadecimal digits for each instruction")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Program, E> {
        let (words, rest) = text.as_bytes().as_chunks::<DIGITS>();
        if !rest.is_empty() {
            return Err(E::custom("seccomp filter ends with an incomplete instruction"));
        }
        if words.len() > FILTER_MAX {
            return Err(E::custom(format_args!("limit of {FILTER_MAX} seccomp instructions exceeded")));
        }
        words
            .iter()
            .map(word)
            .collect::<Option<_>>()
            .map(Program)
            .ok_or_else(|| E::custom("seccomp filter contains a character that is not a hexadecimal digit"))
    }
}

fn word(digits: &[u8; DIGITS]) -> Option<u64> {
    digits.iter().try_fold(0, |word, digit| Some(word << 4 | u64::from(char::from(*digit).to_digit(16)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::vec;

    #[test]
    fn instructions_are_digits_on_the_wire() {
        let program = Program(vec![instruction(0x20, 0, 0, 4), instruction(0x15, 1, 0xfe, 0xc000_003e)]);
        let text = r#""0000000400000020c000003efe010015""#;
        assert_eq!(serde_json::to_string(&program).unwrap(), text);
        assert_eq!(serde_json::from_str::<Program>(text).unwrap(), program);
    }

    #[test]
    fn other_texts_are_refused() {
        let parse = |text: &str| serde_json::from_str::<Program>(&format!("{text:?}"));
        assert!(parse("").is_ok_and(|program| program.0.is_empty()));
        assert!(parse(&"0123456789abcdeF".repeat(FILTER_MAX)).is_ok());
        assert!(parse(&"0".repeat((FILTER_MAX + 1) * DIGITS)).is_err());
        for text in ["0", "000000040000002", "+000000400000020", "00000004000000200", "ééééåååå"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
