//! The stream channel's codecs: for arbitrary bytes in pieces of any size, the splitter and the whole-frame codec
//! return the same frames. Credit records are decoded from frames of any size.
#![no_main]

use agent_proto::command::CREDIT_SEQ;
use agent_proto::stream::{CreditDecoder, StreamCodec, StreamFrame, StreamSplitter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&step, data)) = data.split_first() else { return };
    let step = usize::from(step) + 1;
    let mut codec = StreamCodec::new();
    let mut splitter = StreamSplitter::new();
    let mut credits = CreditDecoder::default();
    let (mut whole, mut gathered, mut part) = (Vec::new(), Vec::new(), Vec::new());
    for chunk in data.chunks(step) {
        codec.push(chunk);
        while let Ok(Some(frame)) = codec.next() {
            whole.push(frame);
        }
        let mut input = chunk;
        while let Ok(Some(piece)) = splitter.split(&mut input) {
            if piece.seq == CREDIT_SEQ {
                let mut records = piece.data;
                while credits.next(&mut records, piece.end).is_some() {}
            }
            part.extend_from_slice(piece.data);
            if piece.end {
                gathered.push(StreamFrame { seq: piece.seq, data: std::mem::take(&mut part) });
            }
        }
    }
    assert_eq!(whole, gathered);
});
