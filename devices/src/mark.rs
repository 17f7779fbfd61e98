//! The mark port: a guest writes a byte to say how far it has come, and the host notes the time.

use crate::{Action, BusDevice};

/// The port. Free on a PC, and the guest's agent knows the same number.
pub const MARK_PORT: u64 = 0x6e0;
/// How many ports it has.
pub const MARK_PORT_LEN: u64 = 1;

/// Hands each byte that the guest writes to a sink, on the vCPU's thread.
pub struct MarkPort {
    sink: Box<dyn FnMut(u8) + Send>,
}

impl MarkPort {
    /// Returns a port that calls `sink` for each mark; it must not block.
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
