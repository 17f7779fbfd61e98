//! The streams of a machine as plain data, and a table that continues from them with descriptors of other clients.
//!
//! While the machine is saved the table is frozen: it takes no output, which stays in the port's queue, and gives no input.
//! What is on the way is part of the state: output that a client has not accepted, and frames that the guest has not got.

use std::sync::mpsc::Sender;

use agent_proto::command::{STREAM_FRAME_MAX, STREAM_HEADER};
use agent_proto::stream::{Credit, CreditDecoder, StreamSplitter};
use devices::{Decoder, Encoder, StateError};

use super::descriptor::Descriptor;
use super::{SINK, SOURCE, StreamHandle, StreamSpec, StreamTable, Watch, Watcher, streams, token};

/// Limit of streams in a state, each of which has a descriptor of its own.
const STREAMS_MAX: usize = 2048;
/// Limit of bytes that are on the way to the guest: a frame of input, and a record of each stream in a frame of credits.
const UNSENT_MAX: usize = 2 * STREAM_FRAME_MAX + STREAMS_MAX * (STREAM_HEADER + 16);

impl StreamTable {
    /// Freezes the table and sends its state.
    pub(super) fn freeze(&mut self, saved: &Sender<Result<Vec<u8>, StateError>>) {
        self.frozen = true;
        // The main thread may have given up, and then thaws the table.
        let _ = saved.send(self.save());
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        if self.lost || self.base {
            return Err(StateError::Busy("the streams cannot be saved"));
        }
        let mut state = Encoder::default();
        let (header, left) = self.splitter.state();
        state.bytes(header).u32(left as u32).bytes(self.credits.state()).u64(self.newest);
        let mut unsent = self.pending.input[self.pending.left.clone()].to_vec();
        unsent.extend_from_slice(&self.pending.credits);
        self.owed.chunks(Credit::FRAME_MAX).for_each(|owed| Credit::encode(owed, &mut unsent));
        state.bytes(&unsent);
        let all: Vec<_> = self.streams.iter().flatten().collect();
        state.u32(all.len() as u32);
        for stream in all {
            let (received, delivered, ended) = stream.state.counts();
            state.u64(stream.seq).u64(received).u64(delivered).u8(ended.into());
            state.u8(stream.source.is_some().into()).u8(stream.sink.is_some().into());
            stream.source.iter().for_each(|source| source.save(&mut state));
            stream.sink.iter().for_each(|sink| sink.save(&mut state));
        }
        Ok(state.finish())
    }

    /// Lets everything go on after a freeze.
    pub(super) fn thaw(&mut self, watch: &mut Watcher<'_>) {
        self.frozen = false;
        self.flush_all(watch);
    }

    /// Watches the descriptors of streams that continue, and writes the output that waits.
    pub(super) fn begin_saved(&mut self, watch: &mut Watcher<'_>) {
        for (index, stream) in self.streams.iter_mut().enumerate() {
            let Some(stream) = stream else { continue };
            let Some(source) = stream.source.as_ref().filter(|source| source.is_started()) else { continue };
            match watch(source.descriptor().raw(), token(index, SOURCE), Watch::In) {
                Ok(()) => stream.watched = true,
                // A file or /dev/null, which is always ready.
                Err(error) => log::debug!("stdin is not watched: {error}"),
            }
        }
        // None of them is watched yet.
        let blocked: Vec<_> = (0..self.streams.len()).filter_map(|index| self.blocked(index)).collect();
        for (index, fd) in blocked {
            if let Err(error) = watch(fd, token(index, SINK), Watch::Out) {
                log::debug!("output is not watched: {error}");
            }
        }
        self.flush_all(watch);
    }

    fn blocked(&self, index: usize) -> Option<(usize, i32)> {
        let sink = self.streams.get(index)?.as_ref()?.sink.as_ref()?;
        Some((index, sink.blocked()?.raw()))
    }

    fn flush_all(&mut self, watch: &mut Watcher<'_>) {
        for index in 0..self.streams.len() {
            let Some(sink) = self.streams[index].as_mut().and_then(|stream| stream.sink.as_mut()) else {
                continue;
            };
            let watched = sink.blocked().map(Descriptor::raw);
            if watched.is_some() {
                sink.flush();
            }
            self.after_write(index, watched, watch);
        }
    }
}

/// Creates a table and its handle that continue from a state. `specs` have the descriptors of the same streams.
pub fn continued(specs: &[StreamSpec], state: &[u8]) -> Result<(StreamTable, StreamHandle), StateError> {
    let open = |_| StateError::Busy("a stream cannot be opened");
    let (mut table, handle) = streams(specs, None).map_err(open)?;
    let mut state = Decoder::new(state);
    let (header, left) = (state.bytes()?, state.u32()? as usize);
    table.splitter = StreamSplitter::of_state(header, left).ok_or(StateError::Damaged("a frame"))?;
    table.credits = CreditDecoder::of_state(state.bytes()?).ok_or(StateError::Damaged("a credit"))?;
    table.newest = state.u64()?;
    let unsent = state.bytes()?;
    if unsent.len() > UNSENT_MAX {
        return Err(StateError::Damaged("frames for the guest"));
    }
    table.pending.credits = unsent.to_vec();
    if state.u32()? as usize != table.streams.len() {
        return Err(StateError::Foreign("another number of streams"));
    }
    for _ in 0..table.streams.len() {
        let (seq, counts) = (state.u64()?, (state.u64()?, state.u64()?, state.u8()? != 0));
        let ends = (state.u8()? != 0, state.u8()? != 0);
        let (_, stream) = table.find(seq).ok_or(StateError::Foreign("another stream"))?;
        if ends != (stream.source.is_some(), stream.sink.is_some()) || counts.1 > counts.0 {
            return Err(StateError::Damaged("the ends of a stream"));
        }
        stream.state.set_counts(counts);
        if let Some(source) = &mut stream.source {
            source.restore(&mut state)?;
        }
        if let Some(sink) = &mut stream.sink {
            sink.restore(&mut state)?;
        }
    }
    state.end()?;
    Ok((table, handle))
}

#[cfg(test)]
mod tests;
