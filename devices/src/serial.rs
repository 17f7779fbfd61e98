//! A 16550A serial port for early kernel messages. Only its transmitter is connected; the guest never receives input.

use std::io;

use vm_superio::Trigger;
use vmm_sys_util::eventfd::EventFd;

use crate::faults::GuestFaults;
use crate::{Action, BusDevice, StateError};

/// First I/O port of a PC's first serial port.
pub const SERIAL_PORT: u64 = 0x3f8;
/// Number of I/O ports.
pub const SERIAL_PORT_LEN: u64 = 8;
/// Interrupt of a PC's first serial port.
pub const SERIAL_IRQ: u32 = 4;

struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The serial port. It passes what the guest sends to a writer, byte by byte, on the vCPU's thread.
pub struct Serial {
    registers: vm_superio::Serial<Line, vm_superio::serial::NoEvents, Box<dyn io::Write + Send>>,
    faults: GuestFaults,
}

impl Serial {
    /// Returns a serial port that writes to `out` and raises `irq`.
    pub fn new(irq: EventFd, out: Box<dyn io::Write + Send>) -> Serial {
        Serial { registers: vm_superio::Serial::new(Line(irq), out), faults: GuestFaults::default() }
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.registers.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset))
            && let Err(error) = self.registers.write(offset, *byte)
        {
            // If the writer fails, the byte is lost, as on an unplugged cable.
            self.faults.note("serial port", format_args!("byte lost: {error:?}"));
        }
        Action::None
    }

    fn save(&mut self) -> Result<Vec<u8>, StateError> {
        Err(StateError::Busy("a serial port cannot be saved"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    struct Sink(Sender<u8>);

    impl Write for Sink {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            for byte in data {
                self.0.send(*byte).map_err(io::Error::other)?;
            }
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn serial() -> (Serial, EventFd, std::sync::mpsc::Receiver<u8>) {
        let irq = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (sender, bytes) = channel();
        (Serial::new(irq.try_clone().unwrap(), Box::new(Sink(sender))), irq, bytes)
    }

    #[test]
    fn bytes_reach_the_writer_and_interrupt_if_enabled() {
        let (mut serial, irq, bytes) = serial();
        for byte in b"ok\n" {
            serial.write(0, &[*byte]);
        }
        assert!(irq.read().is_err());
        serial.write(1, &[2]);
        assert_eq!(irq.read().unwrap(), 1);
        assert_eq!(bytes.try_iter().collect::<Vec<_>>(), b"ok\n");
    }

    #[test]
    fn the_transmitter_is_always_empty() {
        let (mut serial, ..) = serial();
        let mut status = [0];
        serial.read(5, &mut status);
        assert_eq!(status[0] & 0x60, 0x60);
    }

    #[test]
    fn odd_accesses_and_a_lost_reader_do_no_harm() {
        let (mut serial, _irq, bytes) = serial();
        drop(bytes);
        for offset in [0, 7, 8, 0x100, u64::MAX] {
            for data in [&[1][..], &[], &[1, 2, 3, 4]] {
                assert_eq!(serial.write(offset, data), Action::None);
                let mut read = vec![0xff; data.len()];
                serial.read(offset, &mut read);
                assert!(data.len() == 1 || read.iter().all(|b| *b == 0));
            }
        }
    }
}
