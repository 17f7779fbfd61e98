//! The reset port: the one command of the keyboard controller (i8042) that a machine without a keyboard needs.
//!
//! The guest kernel's `reboot=k` writes 0xfe to port 0x64. A status that always reads 0 says that the controller is
//! ready for a command, so the guest does not wait.
//!
//! Of the ports between the two, 0x61 tells how the PIT stands, which is not there: read as 0 it would say for ever that
//! the timer has not run down, and Linux waits for that where it looks for the TSC's rate (`pit_calibrate_tsc`).

use crate::{Action, BusDevice};

/// The first port: the controller's data port.
pub const RESET_PORT: u64 = 0x60;
/// How many ports the controller has: data at 0x60, command and status at 0x64.
pub const RESET_PORT_LEN: u64 = 5;

const DATA_OFFSET: u64 = 0;
const COMMAND_OFFSET: u64 = 4;
const PULSE_RESET_LINE: u8 = 0xfe;

/// Turns the guest's reset command into [`Action::Reset`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ResetPort;

impl BusDevice for ResetPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // What is not the controller's reads as where nothing is.
        data.fill(if matches!(offset, DATA_OFFSET | COMMAND_OFFSET) { 0 } else { 0xff });
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        match (offset, data) {
            (COMMAND_OFFSET, [PULSE_RESET_LINE]) => Action::Reset,
            _ => Action::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        for (offset, data, expected) in [
            (4, &[0xfe][..], Action::Reset),
            (4, &[0xff], Action::None),
            (4, &[0xfe, 0xfe], Action::None),
            (4, &[], Action::None),
            (0, &[0xfe], Action::None),
            (u64::MAX, &[0xfe], Action::None),
        ] {
            assert_eq!(ResetPort.write(offset, data), expected, "{offset:#x} {data:?}");
        }
    }

    #[test]
    fn status_says_ready() {
        let mut data = [0xff];
        ResetPort.read(4, &mut data);
        assert_eq!(data, [0]);
    }

    #[test]
    fn ports_of_other_devices_read_as_where_nothing_is() {
        for offset in 1..4 {
            let mut data = [0];
            ResetPort.read(offset, &mut data);
            assert_eq!(data, [0xff], "{offset}");
        }
    }
}
