//! Extras of API 4244 without the extension: pacing of commands and of process input, and the texts of errors.

use agent_proto::command::Code;
use agent_proto::payload::ErrorCode;

use super::streams::StreamHandle;
use super::{AgentLink, CommandId, LinkError, Result};
use host::text::printable;

/// Maximum number of unacknowledged command bytes. The host waits until NEXT has acknowledged all of them.
pub const CHUNK: usize = 512;
/// Maximum number of input bytes that are in flight to a process. hyperstart buffers as many for each process and
/// silently drops the rest.
pub const INPUT_WINDOW: u32 = 512;
/// Number of answered PINGs after which earlier input counts as taken. The agent's loop may handle a PING before
/// earlier input, and passes input on in the turn after it has read it; a third PING is answered after that.
const ROUNDS: u32 = 3;

/// Limits the number of command bytes that may be written.
#[derive(Debug, Default)]
pub struct Pace {
    /// Written bytes of the current chunk.
    written: usize,
    /// Bytes of the current chunk that NEXT has acknowledged.
    taken: usize,
}

impl Pace {
    /// Returns how many bytes may be written now.
    pub fn room(&self) -> usize {
        CHUNK - self.written
    }

    /// Records that `count` bytes were written.
    pub fn wrote(&mut self, count: usize) {
        self.written += count;
    }

    /// Handles the payload of NEXT. Returns whether it acknowledges any bytes. The next chunk begins once the current
    /// one is acknowledged completely.
    pub fn next(&mut self, payload: &[u8]) -> Result<bool> {
        let count = payload.try_into().map(u32::from_be_bytes);
        let count = count.map_err(|_| LinkError::Protocol("NEXT without a number".to_owned()))?;
        self.taken = self.taken.saturating_add(count as usize);
        if self.taken > self.written {
            return Err(LinkError::Protocol(format!(
                "NEXT acknowledges {count} bytes, more than were written"
            )));
        }
        if self.taken == self.written {
            *self = Pace::default();
        }
        Ok(count > 0)
    }
}

/// Returns the error for an ERROR reply to `step`. Only replies to KILLCONTAINER have a text.
pub fn refusal(step: &'static str, payload: &[u8]) -> LinkError {
    let text = String::from_utf8_lossy(payload.strip_suffix(&[0]).unwrap_or(payload));
    let code = match &*text {
        "no such container" | "no such process" => ErrorCode::NotFound,
        "invalid signal" => ErrorCode::BadRequest,
        _ => ErrorCode::Failed,
    };
    let message = match &*text {
        "" => "refused; API 4244 gives no reason".to_owned(),
        text => printable(text),
    };
    LinkError::Refused { step, code, message }
}

/// Returns credit for a process's input. An agent of API 4244 does not report consumed input, so that the host sends
/// PINGs and concludes from the answers that the agent's loop has handled the input.
///
/// The original agent drops input of a process that leaves more unread than its pipe and the agent's 512 bytes hold.
/// The host cannot detect that.
#[derive(Debug)]
pub struct InputPace {
    seq: u64,
    /// Bytes that count as taken.
    taken: u64,
    ping: Option<Ping>,
}

#[derive(Clone, Copy, Debug)]
struct Ping {
    command: CommandId,
    /// Input bytes that were sent before the PING.
    sent: u64,
    /// Number of outstanding answers to PINGs, including this one.
    rounds: u32,
}

impl InputPace {
    pub fn new(seq: u64) -> InputPace {
        InputPace { seq, taken: 0, ping: None }
    }

    /// Sends PINGs and handles their answers. The owner calls it in every turn of its loop.
    pub fn turn(&mut self, link: &mut AgentLink, streams: &StreamHandle) -> Result<()> {
        let mut next = (streams.sent(self.seq), ROUNDS);
        if let Some(Ping { command, sent, rounds }) = self.ping {
            match link.reply(command) {
                None => return Ok(()),
                Some(reply) => drop(reply?),
            }
            self.ping = None;
            if rounds > 1 {
                next = (sent, rounds - 1);
            } else {
                // At most the window, because more was not sent.
                streams.give(self.seq, u32::try_from(sent - self.taken).unwrap_or(INPUT_WINDOW));
                self.taken = sent;
            }
        }
        let (sent, rounds) = next;
        if sent > self.taken {
            let command = link.send_bare(Code::Ping, "pace the input")?;
            self.ping = Some(Ping { command, sent, rounds });
            link.flush()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod pair_tests;
