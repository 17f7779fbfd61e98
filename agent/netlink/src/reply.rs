//! The kernel's replies to a request (linux/netlink.h).

use core::iter;

use crate::attributes::number;
use crate::message::HEADER;

/// NLMSG_ALIGNTO.
const ALIGNMENT: usize = 4;
/// NLMSG_ERROR: an error, or with number 0 an acknowledgement.
const ERROR: u16 = 2;
/// NLMSG_DONE: the end of a list, with number 0 or the error that ended it.
const DONE: u16 = 3;
/// NLMSG_MIN_TYPE: types below it belong to netlink itself.
const OBJECT_MIN: u16 = 16;

/// The largest error number that a system call returns.
const ERRNO_MAX: i32 = 4095;
/// EPROTO: the error for a malformed reply.
const PROTOCOL: i32 = 71;

/// One part of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// An object of a list: its fixed part and attributes.
    Entry(&'a [u8]),
    /// The request has succeeded, or the list is complete.
    Done,
    /// The request has failed, or its answer is malformed: a positive error number of errno(3).
    Failed(i32),
}

/// Iterates over the replies to request number `sequence` in the bytes of one read from the socket. [`Reply::Done`] and
/// [`Reply::Failed`] are the last reply to a request; without one of them, the rest of the answer must still be read.
///
/// Malformed bytes become [`Reply::Failed`], so that the caller does not wait for the rest of a malformed answer.
pub fn replies(answer: &[u8], sequence: u32) -> impl Iterator<Item = Reply<'_>> {
    let mut rest = answer;
    iter::from_fn(move || {
        while !rest.is_empty() {
            let Some((kind, number, body)) = next(&mut rest) else {
                rest = &[];
                return Some(Reply::Failed(PROTOCOL));
            };
            if number == sequence
                && let Some(reply) = reply(kind, body)
            {
                return Some(reply);
            }
        }
        None
    })
}

/// Removes the next message from the front of `rest`. Returns its type, sequence number and body.
fn next<'a>(rest: &mut &'a [u8]) -> Option<(u16, u32, &'a [u8])> {
    let header: [u8; HEADER] = *rest.first_chunk()?;
    let length = number(&header) as usize;
    let body = rest.get(HEADER..length)?;
    *rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    Some((u16::from_ne_bytes([header[4], header[5]]), number(&header[8..]), body))
}

fn reply(kind: u16, body: &[u8]) -> Option<Reply<'_>> {
    match kind {
        ERROR | DONE => Some(match body.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
            Some(0) => Reply::Done,
            // The end of a list may come without a number.
            None if kind == DONE => Reply::Done,
            Some(error) if (-ERRNO_MAX..0).contains(&error) => Reply::Failed(-error),
            _ => Reply::Failed(PROTOCOL),
        }),
        _ if kind < OBJECT_MIN => None,
        _ => Some(Reply::Entry(body)),
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;

    fn message(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut message = vec![0; HEADER];
        message[..4].copy_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[8..12].copy_from_slice(&sequence.to_ne_bytes());
        message.extend_from_slice(body);
        message.resize(message.len().next_multiple_of(ALIGNMENT), 0);
        message
    }

    fn all(answer: &[u8]) -> Vec<Reply<'_>> {
        replies(answer, 7).collect()
    }

    #[test]
    fn a_list_is_its_entries_and_its_end() {
        let answer = [message(16, 7, b"abcde"), message(16, 7, b"f"), message(DONE, 7, &[0; 4])].concat();
        assert_eq!(all(&answer), [Reply::Entry(b"abcde"), Reply::Entry(b"f"), Reply::Done]);
    }

    #[test]
    fn replies_to_other_requests_are_skipped() {
        let answer = [message(ERROR, 6, &[0; 4]), message(16, 8, b"x"), message(ERROR, 7, &[0; 4])].concat();
        assert_eq!(all(&answer), [Reply::Done]);
        // NLMSG_NOOP.
        assert_eq!(all(&message(1, 7, b"")), []);
    }

    #[test]
    fn errors_have_the_numbers_of_errno() {
        let error = |kind, number: i32| message(kind, 7, &number.to_ne_bytes());
        assert_eq!(all(&error(ERROR, -17)), [Reply::Failed(17)]);
        // A list that the kernel could not finish is not a short list.
        assert_eq!(all(&error(DONE, -12)), [Reply::Failed(12)]);
        for odd in [i32::MIN, -4096, 1] {
            assert_eq!(all(&error(ERROR, odd)), [Reply::Failed(PROTOCOL)], "{odd}");
        }
        assert_eq!(all(&message(ERROR, 7, &[0; 3])), [Reply::Failed(PROTOCOL)]);
        assert_eq!(all(&message(DONE, 7, &[])), [Reply::Done]);
    }

    #[test]
    fn a_malformed_answer_fails_at_once() {
        for length in 1..HEADER {
            assert_eq!(all(&vec![0; length]), [Reply::Failed(PROTOCOL)]);
        }
        for length in [0, 3, 15, 255] {
            let mut short = [0; HEADER];
            short[0] = length;
            assert_eq!(all(&short), [Reply::Failed(PROTOCOL)]);
        }
        assert_eq!(all(&[]), []);
    }
}
