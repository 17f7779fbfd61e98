//! The control channel's codec: arbitrary bytes in pieces of any size, in both forms. Decoded frames encode to the
//! input.
#![no_main]

use agent_proto::control::ControlCodec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&seed, data)) = data.split_first() else { return };
    let extended = seed & 1 == 1;
    let step = usize::from(seed >> 1) + 1;
    let mut codec = ControlCodec::new();
    codec.set_extended(extended);
    let mut again = Vec::new();
    let mut whole = true;
    for chunk in data.chunks(step) {
        codec.push(chunk);
        loop {
            match codec.next() {
                Ok(Some(frame)) => frame.encode(extended, &mut again),
                Ok(None) => break,
                Err(_) => {
                    whole = false;
                    break;
                }
            }
        }
        if !whole {
            break;
        }
    }
    assert_eq!(again, data[..again.len()]);
});
