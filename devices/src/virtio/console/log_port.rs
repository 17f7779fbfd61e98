//! A port for the guest's log. It keeps the last bytes, which explain why a guest died.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use vmm_sys_util::epoll::EventSet;

use super::ports::{PortBackend, PortEvents};

/// Number of bytes that are kept.
pub const LOG_TAIL_MAX: usize = 64 * 1024;

/// Reads the bytes that a [`LogPort`] keeps, from any thread. Clones read the same port.
#[derive(Clone, Debug, Default)]
pub struct LogTail(Arc<Mutex<VecDeque<u8>>>);

impl LogTail {
    /// Returns the last [`LOG_TAIL_MAX`] bytes. Invalid UTF-8 becomes replacement characters.
    pub fn tail(&self) -> String {
        let mut kept = self.0.lock().unwrap();
        String::from_utf8_lossy(kept.make_contiguous()).into_owned()
    }

    fn append(&self, data: &[u8]) {
        let data = &data[data.len().saturating_sub(LOG_TAIL_MAX)..];
        let mut kept = self.0.lock().unwrap();
        let surplus = (kept.len() + data.len()).saturating_sub(LOG_TAIL_MAX);
        kept.drain(..surplus);
        kept.extend(data);
    }
}

/// Keeps the last [`LOG_TAIL_MAX`] bytes that the guest sent, and copies all bytes to an optional writer.
pub struct LogPort {
    tail: LogTail,
    copy: Option<Box<dyn Write + Send>>,
}

impl LogPort {
    /// Returns a port that copies its bytes to `copy`, and its reader. `copy` must not block: it would block all
    /// devices of the loop.
    pub fn new(copy: Option<Box<dyn Write + Send>>) -> (LogPort, LogTail) {
        let tail = LogTail::default();
        (LogPort { tail: tail.clone(), copy }, tail)
    }
}

impl PortBackend for LogPort {
    fn start(&mut self, _events: &mut PortEvents) -> io::Result<()> {
        Ok(())
    }

    fn output(&mut self, data: &[u8], _events: &mut PortEvents) {
        self.tail.append(data);
        if let Some(copy) = &mut self.copy
            && let Err(error) = copy.write_all(data).and_then(|()| copy.flush())
        {
            log::warn!("console log: stop copying: {error}");
            self.copy = None;
        }
    }

    fn input(&mut self, _buffer: &mut [u8]) -> usize {
        0
    }

    fn ready(&mut self, _token: u16, _ready: EventSet, _events: &mut PortEvents) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_bounded_and_ends_with_the_last_byte() {
        let tail = LogTail::default();
        tail.append(b"first\n");
        assert_eq!(tail.tail(), "first\n");
        tail.append(&vec![b'x'; LOG_TAIL_MAX - 3]);
        tail.append(b"end");
        assert_eq!(tail.tail().len(), LOG_TAIL_MAX);
        assert!(tail.tail().starts_with('x') && tail.tail().ends_with("xend"));
        tail.append(&[vec![b'a'; LOG_TAIL_MAX], vec![b'b'; LOG_TAIL_MAX]].concat());
        assert_eq!(tail.tail(), "b".repeat(LOG_TAIL_MAX));
    }

    #[test]
    fn invalid_utf_8_becomes_replacement_characters() {
        let tail = LogTail::default();
        tail.append(&[b'a', 0xff, b'b']);
        assert_eq!(tail.tail(), "a\u{fffd}b");
    }
}
