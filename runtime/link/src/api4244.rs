//! What API 4244 alone asks of a host: the pace of its commands and of a process's input, and what its errors say.

use agent_proto::command::Code;
use agent_proto::payload::ErrorCode;

use super::streams::StreamHandle;
use super::{AgentLink, CommandId, LinkError, Result};
use host::text::printable;

/// Bytes of commands that may be on their way: hosts of API 4244 wait here until NEXT has told of all of them.
pub const CHUNK: usize = 512;
/// Bytes of input that may be on their way to a process. hyperstart keeps as many for each process and drops what is over,
/// without a word.
pub const INPUT_WINDOW: u32 = 512;
/// PINGs that are answered after input was sent before it counts as taken: the agent's loop may look at a PING before the
/// input that came first, hands input on in the turn after it has read it, and answers a third PING after that.
const ROUNDS: u32 = 3;

/// How much of the commands may be written.
#[derive(Debug, Default)]
pub struct Pace {
    /// Bytes of this chunk that were written.
    written: usize,
    /// Those of them that NEXT has told of.
    taken: usize,
}

impl Pace {
    /// Returns how many bytes may be written now.
    pub fn room(&self) -> usize {
        CHUNK - self.written
    }

    /// Takes note that `count` bytes were written.
    pub fn wrote(&mut self, count: usize) {
        self.written += count;
    }

    /// Takes NEXT's payload; returns whether it tells of anything. The next chunk begins when all of this one has been taken.
    pub fn next(&mut self, payload: &[u8]) -> Result<bool> {
        let count = payload.try_into().map(u32::from_be_bytes);
        let count = count.map_err(|_| LinkError::Protocol("NEXT without a number".to_owned()))?;
        self.taken = self.taken.saturating_add(count as usize);
        if self.taken > self.written {
            return Err(LinkError::Protocol(format!("NEXT {count}, which is more than was written")));
        }
        if self.taken == self.written {
            *self = Pace::default();
        }
        Ok(count > 0)
    }
}

/// Returns what an ERROR means. It has a text only where it answers KILLCONTAINER.
pub fn refusal(step: &'static str, payload: &[u8]) -> LinkError {
    let text = String::from_utf8_lossy(payload.strip_suffix(&[0]).unwrap_or(payload));
    let code = match &*text {
        "no such container" | "no such process" => ErrorCode::NotFound,
        "invalid signal" => ErrorCode::BadRequest,
        _ => ErrorCode::Failed,
    };
    let message = match &*text {
        "" => "refused, without a reason: API 4244 gives none".to_owned(),
        text => printable(text),
    };
    LinkError::Refused { step, code, message }
}

/// Gives a process's input its credit back: API 4244's agent does not say what was taken, so that it is asked whether it
/// has been round its loop since.
///
/// A process that leaves more unread than its pipe and the agent's 512 bytes hold loses it with the original agent: there
/// is no way to see that from here.
#[derive(Debug)]
pub struct InputPace {
    seq: u64,
    /// Bytes that count as taken.
    taken: u64,
    asked: Option<Asked>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    command: CommandId,
    /// Bytes that had been sent before.
    sent: u64,
    /// PINGs that are still to be answered, this one included.
    rounds: u32,
}

impl InputPace {
    /// Returns the pace of stream `seq`.
    pub fn new(seq: u64) -> InputPace {
        InputPace { seq, taken: 0, asked: None }
    }

    /// Asks, and takes answers; to be called in every turn.
    pub fn turn(&mut self, link: &mut AgentLink, streams: &StreamHandle) -> Result<()> {
        let mut next = (streams.sent(self.seq), ROUNDS);
        if let Some(Asked { command, sent, rounds }) = self.asked {
            match link.reply(command) {
                None => return Ok(()),
                Some(reply) => drop(reply?),
            }
            self.asked = None;
            if rounds > 1 {
                next = (sent, rounds - 1);
            } else {
                // At most the window, or it would not have been sent.
                streams.give(self.seq, u32::try_from(sent - self.taken).unwrap_or(INPUT_WINDOW));
                self.taken = sent;
            }
        }
        let (sent, rounds) = next;
        if sent > self.taken {
            let command = link.send_bare(Code::Ping, "pace the input")?;
            self.asked = Some(Asked { command, sent, rounds });
            link.flush()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod pair_tests;
