//! Makes untrusted text safe for logs, errors and terminals.
//!
//! A guest chooses the bytes of its kernel log, of its agent's errors and of its processes' names. Printed unchanged, a
//! newline forges a line of the log, an escape sequence controls the terminal, and a bidirectional control displays a
//! line in another order than its bytes.

use std::fmt::Write as _;
use std::io::{self, Write};

/// Maximum number of characters of a guest's text in one message.
const SHOWN_MAX: usize = 4096;
/// Maximum length of a character in UTF-8, in bytes.
const CHARACTER_MAX: usize = 4;

/// Returns `text` on one line: escapes all characters that are not visible or a space, and truncates text that is too
/// long for a message.
pub fn printable(text: &str) -> String {
    let mut shown = String::new();
    escape(&mut shown, text.chars().take(SHOWN_MAX), is_unseen);
    shown
}

/// Like [`printable`], but keeps newlines and tabs, and does not truncate. For messages of several lines, as a second
/// line of defence after [`printable`] of their parts.
pub fn lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    escape(&mut shown, text.chars(), |c| is_unseen(c) && c != '\n' && c != '\t');
    shown
}

/// Returns a JSON text in which the characters that [`printable`] escapes are escaped in JSON's notation.
pub fn json(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unseen(c) && c != '\n' {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| shown += &format!("\\u{unit:04x}"));
        } else {
            shown.push(c);
        }
    }
    shown
}

fn escape(shown: &mut String, text: impl Iterator<Item = char>, unseen: impl Fn(char) -> bool) {
    for c in text {
        if unseen(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
}

/// Whether a terminal interprets `c` as a command, or a reader cannot see it: control characters (C0 and C1), line and
/// paragraph separators, bidirectional controls, and characters without a shape or width.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// A writer that passes a guest's bytes to a terminal, with escapes like those of [`lines`].
pub struct Lines<W> {
    to: W,
    /// Beginning of a character whose end has not arrived.
    begun: Vec<u8>,
}

impl<W: Write> Lines<W> {
    pub fn new(to: W) -> Lines<W> {
        Lines { to, begun: Vec::new() }
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.begun.extend_from_slice(data);
        let mut shown = String::with_capacity(self.begun.len());
        let mut taken = 0;
        for chunk in self.begun.utf8_chunks() {
            shown += &lines(&chunk.valid().replace("\r\n", "\n"));
            taken += chunk.valid().len();
            let rest = self.begun.len() - taken;
            if chunk.invalid().is_empty() || rest < CHARACTER_MAX && chunk.invalid().len() == rest {
                break;
            }
            taken += chunk.invalid().len();
            chunk
                .invalid()
                .iter()
                .try_for_each(|byte| write!(shown, "\\x{byte:02x}"))
                .map_err(io::Error::other)?;
        }
        self.begun.drain(..taken);
        self.to.write_all(shown.as_bytes()).map(|()| data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The module's documentation describes their effects on terminals and readers.
    const ORDERS: &str = "\0\u{7}\u{8}\t\n\u{b}\r\u{1b}[2J\u{7f}\u{85}\u{9b}2J\u{ad}\u{61c}\u{200b}\u{200e}\u{200f}\
                          \u{2028}\u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\
                          \u{2060}\u{2066}\u{2067}\u{2068}\u{2069}\u{feff}\u{e0041}";

    #[test]
    fn a_guest_s_text_is_one_line_without_orders() {
        let shown = printable(ORDERS);
        assert!(shown.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{shown}");
        let wanted = r"\u{0}\u{7}\u{8}\t\n\u{b}\r\u{1b}[2J\u{7f}\u{85}\u{9b}2J";
        assert!(shown.starts_with(wanted), "{shown}");
        assert!(shown.ends_with(r"\u{2069}\u{feff}\u{e0041}"), "{shown}");
        assert_eq!(printable("open /x: zażółć 日本"), "open /x: zażółć 日本");
        assert_eq!(printable(&"x".repeat(SHOWN_MAX + 1)).len(), SHOWN_MAX);
    }

    #[test]
    fn a_message_keeps_its_lines_and_no_control_characters() {
        assert_eq!(lines("one\n\ttwo \u{1b}[2J\u{202e}"), "one\n\ttwo \\u{1b}[2J\\u{202e}");
    }

    #[test]
    fn json_stays_what_it_is() {
        let text = serde_json::to_string(ORDERS).unwrap();
        let shown = json(&text);
        assert!(shown.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{shown}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), ORDERS);
    }

    #[test]
    fn a_stream_is_made_harmless_however_it_is_cut() {
        let bytes = "[0.1] a\r\nzażółć \u{1b}[2J\u{202e}x\n".as_bytes();
        let all = [bytes, b"\xff\xc3", b"(\xe2\x80"].concat();
        for piece in 1..all.len() {
            let mut shown = Vec::new();
            let mut writer = Lines::new(&mut shown);
            all.chunks(piece).for_each(|piece| writer.write_all(piece).unwrap());
            assert_eq!(writer.begun, b"\xe2\x80");
            // A line end that is split between two writes is shown as an escape, which is harmless.
            let shown = String::from_utf8(shown).unwrap().replace("\\r", "");
            assert_eq!(shown, "[0.1] a\nzażółć \\u{1b}[2J\\u{202e}x\n\\xff\\xc3(", "{piece}");
        }
    }
}
