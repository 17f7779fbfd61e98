//! Parsing of arbitrary bytes, as if the kernel had sent them.

use alloc::vec::Vec;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::attributes::Nest;
use crate::traffic::Filter;

fn parse_as_everything(body: &[u8]) {
    let _ = Link::parse(body);
    let _ = Address::parse(body);
    let _ = Route::parse(body);
    let _ = Neighbour::parse(body);
    let _ = Filter::parse(body);
}

/// A message with random bytes, and in half of the cases a correct length.
fn message() -> impl Strategy<Value = Vec<u8>> {
    (any::<[u8; 16]>(), vec(any::<u8>(), 0..80), any::<bool>()).prop_map(|(mut header, body, honest)| {
        if honest {
            header[..4].copy_from_slice(&(16 + body.len() as u32).to_ne_bytes());
            header[8..12].copy_from_slice(&1u32.to_ne_bytes());
        }
        [&header[..], &body].concat()
    })
}

proptest! {
    #[test]
    fn no_answer_panics_and_every_one_ends(answer in vec(message(), 0..4)) {
        let answer = answer.concat();
        // A message is at least as long as its header, and malformed bytes give one reply.
        prop_assert!(replies(&answer, 1).count() <= answer.len() / 16 + 1);
        for reply in replies(&answer, 1) {
            match reply {
                Reply::Entry(body) => parse_as_everything(body),
                Reply::Done => {}
                Reply::Failed(error) => prop_assert!((1..4096).contains(&error)),
            }
        }
    }

    #[test]
    fn no_entry_panics(body in vec(any::<u8>(), 0..200)) {
        parse_as_everything(&body);
    }

    #[test]
    fn no_attributes_panic_behind_a_good_fixed_part(
        fixed in prop_oneof![Just(8usize), Just(12), Just(16), Just(20)],
        attributes in vec((0u16..30, vec(any::<u8>(), 0..20)), 0..8),
        cut in 0usize..12,
    ) {
        let nest = attributes.iter().fold(Nest::default(), |nest, (kind, data)| nest.with(*kind, data));
        let mut body = [&fixed_part(fixed)[..], nest.bytes()].concat();
        let read: Vec<_> = Attributes::new(&body[fixed..]).map(|(kind, data)| (kind, data.to_vec())).collect();
        prop_assert_eq!(read, attributes);
        body.truncate(body.len().saturating_sub(cut));
        parse_as_everything(&body);
    }
}

/// Returns a fixed part with an address family, the main table and a permanent state, so that parsers read the
/// attributes.
fn fixed_part(length: usize) -> Vec<u8> {
    let mut fixed = Vec::from([2, 24, 0, 0, 254, 3, 0, 1, 0x80, 0, 0, 0]);
    fixed.resize(length, 0);
    fixed
}
