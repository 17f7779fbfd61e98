//! Messages of rtnetlink(7) and their attributes, in the kernel's byte order.

/// Bytes of a message's header.
pub const HEADER: usize = 16;

/// It asks for something.
const REQUEST: u16 = 0x1;
/// It wants an answer where it is done.
const ACK: u16 = 0x4;
/// It asks for a list.
const DUMP: u16 = 0x300;
/// Make it, unless it is there.
const CREATE: u16 = 0x600;

/// A message under construction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// Asks for everything of a kind.
    pub fn list(kind: u16, body: &[u8]) -> Message {
        Message::begin(kind, REQUEST | DUMP, body)
    }

    /// Has the kernel change something.
    pub fn change(kind: u16, body: &[u8]) -> Message {
        Message::begin(kind, REQUEST | ACK, body)
    }

    /// Has the kernel make something that is not there.
    pub fn create(kind: u16, body: &[u8]) -> Message {
        Message::begin(kind, REQUEST | ACK | CREATE, body)
    }

    fn begin(kind: u16, flags: u16, body: &[u8]) -> Message {
        let mut message = vec![0; HEADER];
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[6..8].copy_from_slice(&flags.to_ne_bytes());
        message.extend(body);
        Message(message)
    }

    /// Adds an attribute.
    pub fn with(mut self, kind: u16, data: &[u8]) -> Message {
        push(&mut self.0, kind, data);
        self
    }

    /// Adds an attribute that holds others.
    pub fn nest(self, kind: u16, inner: Nest) -> Message {
        self.with(kind, &inner.0)
    }

    /// Returns the bytes to send as the `sequence`-th.
    pub fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// Attributes that lie in another one.
#[derive(Clone, Debug, Default)]
pub struct Nest(Vec<u8>);

impl Nest {
    /// Adds an attribute.
    pub fn with(mut self, kind: u16, data: &[u8]) -> Nest {
        push(&mut self.0, kind, data);
        self
    }

    /// Adds an attribute that holds others.
    pub fn nest(self, kind: u16, inner: Nest) -> Nest {
        self.with(kind, &inner.0)
    }
}

fn push(message: &mut Vec<u8>, kind: u16, data: &[u8]) {
    // What we send is far shorter than an attribute can be.
    message.extend((4 + data.len() as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(data);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The attributes in `bytes`: kind and data. What is cut off ends them.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let data = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The upper two bits say how it is written (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
        Some((u16::from_ne_bytes([c, d]) & 0x3fff, data))
    })
}

/// Takes the next message off the front of `rest`: its kind, sequence number and body.
pub fn next<'a>(rest: &mut &'a [u8]) -> Option<(u16, u32, &'a [u8])> {
    let header: [u8; HEADER] = *rest.first_chunk()?;
    let length = number(&header) as usize;
    let body = rest.get(HEADER..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes([header[4], header[5]]), number(&header[8..]), body))
}

/// The number of 32 bits at the front of `data`; 0 where there is none.
pub fn number(data: &[u8]) -> u32 {
    data.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// The text in `data`, without the NUL at its end.
pub fn text(data: &[u8]) -> String {
    String::from_utf8_lossy(data.strip_suffix(&[0]).unwrap_or(data)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nest() {
        let inner = Nest::default().with(2, b"ab").nest(3, Nest::default().with(1, &[9]));
        let message = Message::create(36, &[7; 4]).with(1, b"x\0").nest(2, inner).finish(5);
        #[rustfmt::skip]
        assert_eq!(message, [
            52, 0, 0, 0, 36, 0, 5, 6, 5, 0, 0, 0, 0, 0, 0, 0,
            7, 7, 7, 7,
            6, 0, 1, 0, b'x', 0, 0, 0,
            24, 0, 2, 0, 6, 0, 2, 0, b'a', b'b', 0, 0, 12, 0, 3, 0, 5, 0, 1, 0, 9, 0, 0, 0,
        ]);
        let read: Vec<_> = attributes(&message[20..]).collect();
        assert_eq!(read[0], (1, &b"x\0"[..]));
        assert_eq!(attributes(read[1].1).next(), Some((2, &b"ab"[..])));
    }

    #[test]
    fn broken_answers_end_and_do_not_panic() {
        for length in 0..HEADER {
            assert_eq!(next(&mut vec![0; length].as_slice()), None);
        }
        for length in [3, 255] {
            let mut short = [0; HEADER];
            short[0] = length;
            assert_eq!(next(&mut short.as_slice()), None);
        }
        assert_eq!(attributes(&[2, 0, 3, 0]).next(), None);
        assert_eq!(attributes(&[9, 0, 3, 0, 1]).next(), None);
        assert_eq!((number(&[1, 2]), text(b"lo\0"), text(b"")), (0, "lo".into(), String::new()));
    }
}
