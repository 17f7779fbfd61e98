//! Name queries and their answers on the resolver's port: arbitrary bytes in pieces of any size become the same
//! datagrams as the whole, and encode to the input.
#![no_main]

use agent_proto::datagram::{DATAGRAM_HEADER, DATAGRAM_MAX, drain, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&step, data)) = data.split_first() else { return };
    let (mut whole, mut input, mut again) = (Vec::new(), data.to_vec(), Vec::new());
    drain(&mut input, |program, data| {
        assert!(data.len() <= DATAGRAM_MAX);
        encode(program, data, &mut again);
        whole.push((program, data.to_vec()));
    });
    assert_eq!(again, data[..again.len()]);
    assert!(input.len() < DATAGRAM_HEADER + DATAGRAM_MAX, "an incomplete datagram is bounded");
    let (mut pieces, mut input) = (Vec::new(), Vec::new());
    for chunk in data.chunks(usize::from(step) + 1) {
        input.extend_from_slice(chunk);
        drain(&mut input, |program, data| pieces.push((program, data.to_vec())));
    }
    assert_eq!(pieces, whole);
});
