//! The control channel as plain data. Nothing is under way in it but a part of a frame of the agent: every command was
//! answered, and every event was taken.

use std::os::unix::net::UnixStream;

use agent_proto::command::{API_VERSION, CONTROL_FRAME_MAX, EXTENSION_VERSION, STREAM_WINDOW};
use agent_proto::payload::Ready;
use agent_proto::revival::ENTROPY_LEN;
use devices::{Decoder, Encoder, StateError};

use super::{AgentLink, CommandId, Opening, Reader};

impl AgentLink {
    /// Opens the channel to the agent of a machine that continues from a saved one, from what [`save`](Self::save) returned
    /// there. The first frame is REVIVE, as for [`revived`](Self::revived).
    pub fn continued(
        socket: UnixStream,
        state: &[u8],
        entropy: [u8; ENTROPY_LEN],
        clock: fn() -> u64,
    ) -> super::Result<AgentLink> {
        let mut link = AgentLink::silent(socket)?;
        restore(&mut link, state)?;
        let id = CommandId(link.next_id);
        link.next_id = link.next_id.checked_add(1).unwrap_or(1);
        link.await_reply(id, "make the machine one of its own", Reader::Revive)?;
        link.opening = Some(Opening { at: 0, id, entropy, clock });
        Ok(link)
    }

    /// Whether the channel can be saved: nothing is under way.
    pub fn is_quiet(&self) -> bool {
        self.outgoing.is_empty()
            && self.commands.is_empty()
            && self.events.is_empty()
            && self.opening.is_none()
    }

    /// Returns the state of the channel.
    pub fn save(&self) -> Result<Vec<u8>, StateError> {
        let ready = self.ready.as_ref().filter(|_| self.is_quiet() && !self.is_api4244());
        let ready = ready.ok_or(StateError::Busy("a command of the agent is under way"))?;
        let mut state = Encoder::default();
        state.u32(self.next_id).u32(ready.window).bytes(self.codec.pending());
        Ok(state.finish())
    }
}

/// Makes a link without commands continue from a state.
pub(super) fn restore(link: &mut AgentLink, state: &[u8]) -> Result<(), StateError> {
    let mut state = Decoder::new(state);
    let (next_id, window, pending) = (state.u32()?, state.u32()?, state.bytes()?);
    state.end()?;
    let fits = pending.len() < CONTROL_FRAME_MAX && (1..=STREAM_WINDOW).contains(&window);
    if next_id == 0 || !fits {
        return Err(StateError::Damaged("the control channel"));
    }
    link.next_id = next_id;
    link.ready = Some(Ready { api: API_VERSION, extension: EXTENSION_VERSION, window });
    link.codec.set_extended(true);
    link.codec.push(pending);
    Ok(())
}
