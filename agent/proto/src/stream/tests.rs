use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

fn frames(codec: &mut StreamCodec, bytes: &[u8], step: usize) -> Result<Vec<StreamFrame>, FrameError> {
    let mut frames = Vec::new();
    for chunk in bytes.chunks(step) {
        codec.push(chunk);
        while let Some(frame) = codec.next()? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

#[test]
fn frame_has_the_bytes_of_api_4244() {
    let mut out = Vec::new();
    StreamFrame { seq: 1, data: b"hi".to_vec() }.encode(&mut out);
    assert_eq!(out, [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 14, b'h', b'i']);
}

#[test]
fn piece_is_returned_as_soon_as_it_arrives() {
    let mut out = Vec::new();
    StreamFrame { seq: 5, data: b"abcdef".to_vec() }.encode(&mut out);
    let mut splitter = StreamSplitter::new();
    let mut input = &out[..15];
    assert_eq!(splitter.split(&mut input), Ok(Some(Piece { seq: 5, data: b"abc", end: false })));
    assert_eq!(splitter.split(&mut input), Ok(None));
    let mut input = &out[15..];
    assert_eq!(splitter.split(&mut input), Ok(Some(Piece { seq: 5, data: b"def", end: true })));
    assert_eq!(splitter.split(&mut input), Ok(None));
}

#[test]
fn empty_frame_is_an_empty_piece() {
    let mut splitter = StreamSplitter::new();
    let header = encode_header(9, 0);
    let mut input = &header[..];
    assert_eq!(splitter.split(&mut input), Ok(Some(Piece { seq: 9, data: b"", end: true })));
    assert_eq!(splitter.split(&mut input), Ok(None));
}

#[test]
fn length_above_the_maximum_is_refused_permanently() {
    let error = FrameError::TooLong { length: STREAM_FRAME_MAX as u32 + 1, max: STREAM_FRAME_MAX };
    let mut splitter = StreamSplitter::new();
    let header = encode_header(1, STREAM_FRAME_MAX - STREAM_HEADER + 1);
    assert_eq!(splitter.split(&mut &header[..]), Err(error));
    assert_eq!(splitter.split(&mut &[0; 100][..]), Err(error));
}

#[test]
fn length_below_the_header_is_refused() {
    let mut codec = StreamCodec::new();
    codec.push(&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 11]);
    assert_eq!(codec.next(), Err(FrameError::TooShort { length: 11, header: 12 }));
}

#[test]
fn no_credit_gives_no_frame() {
    let mut out = Vec::new();
    Credit::encode(&[], &mut out);
    assert!(out.is_empty());
}

#[test]
fn incomplete_record_at_the_end_of_a_frame_is_dropped() {
    let mut decoder = CreditDecoder::default();
    assert_eq!(decoder.next(&mut &[1; 5][..], true), None);
    let mut record = Vec::new();
    Credit::encode(&[Credit { seq: 3, bytes: 4 }], &mut record);
    assert_eq!(decoder.next(&mut &record[STREAM_HEADER..], true), Some(Credit { seq: 3, bytes: 4 }));
}

proptest! {
    #[test]
    fn frames_survive_any_split(
        list in prop::collection::vec((any::<u64>(), prop::collection::vec(any::<u8>(), 0..300)), 0..8),
        step in 1usize..100,
    ) {
        let list: Vec<StreamFrame> = list.into_iter().map(|(seq, data)| StreamFrame { seq, data }).collect();
        let mut bytes = Vec::new();
        list.iter().for_each(|frame| frame.encode(&mut bytes));
        prop_assert_eq!(frames(&mut StreamCodec::new(), &bytes, step), Ok(list));
    }

    #[test]
    fn hostile_bytes_never_panic_and_pieces_never_exceed_a_frame(
        bytes in prop::collection::vec(prop_oneof![4 => Just(0u8), 1 => any::<u8>()], 0..4096), step in 1usize..512,
    ) {
        let mut splitter = StreamSplitter::new();
        'input: for chunk in bytes.chunks(step) {
            let mut input = chunk;
            loop {
                match splitter.split(&mut input) {
                    Ok(Some(piece)) => prop_assert!(piece.data.len() <= STREAM_FRAME_MAX - STREAM_HEADER),
                    Ok(None) => break,
                    Err(_) => break 'input,
                }
            }
            prop_assert!(input.is_empty());
        }
    }

    #[test]
    fn credit_survives_any_split(
        records in prop::collection::vec((any::<u64>(), any::<u32>()), 1..50), step in 1usize..30,
    ) {
        let records: Vec<Credit> = records.into_iter().map(|(seq, bytes)| Credit { seq, bytes }).collect();
        let mut bytes = Vec::new();
        Credit::encode(&records, &mut bytes);
        let mut splitter = StreamSplitter::new();
        let mut decoder = CreditDecoder::default();
        let mut seen = vec![];
        for mut input in bytes.chunks(step) {
            while let Some(piece) = splitter.split(&mut input).unwrap() {
                prop_assert_eq!(piece.seq, CREDIT_SEQ);
                let mut data = piece.data;
                while let Some(credit) = decoder.next(&mut data, piece.end) {
                    seen.push(credit);
                }
            }
        }
        prop_assert_eq!(seen, records);
    }
}
