//! The mark port: the guest writes a byte to report a milestone of its boot, and the host records the time.

use crate::{Action, BusDevice};

/// I/O port number. No device of a PC uses it. The agent contains the same number.
pub const MARK_PORT: u64 = 0x6e0;
/// Number of I/O ports.
pub const MARK_PORT_LEN: u64 = 1;

/// Calls a sink with each byte that the guest writes, on the vCPU's thread.
pub struct MarkPort {
    sink: Box<dyn FnMut(u8) + Send>,
}

impl MarkPort {
    /// Returns a port that calls `sink` for each mark. `sink` must not block.
    pub fn new(sink: Box<dyn FnMut(u8) + Send>) -> MarkPort {
        MarkPort { sink }
    }
}

impl BusDevice for MarkPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Action {
        if let [mark] = data {
            (self.sink)(*mark);
        }
        Action::None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn single_bytes_are_marks_and_nothing_else_is() {
        let (sender, marks) = channel();
        let mut port = MarkPort::new(Box::new(move |mark| sender.send(mark).unwrap()));
        for data in [&[7][..], &[1, 2], &[], &[8]] {
            assert_eq!(port.write(0, data), Action::None);
        }
        let mut read = [0xff];
        port.read(0, &mut read);
        assert_eq!(read, [0]);
        assert_eq!(marks.try_iter().collect::<Vec<_>>(), [7, 8]);
    }
}
