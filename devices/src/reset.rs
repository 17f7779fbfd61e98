//! The reset port: the keyboard controller (i8042), reduced to its reset command.
//!
//! With `reboot=k` the guest kernel writes 0xfe to port 0x64. The status register always reads 0, which means that the
//! controller is ready for a command, so the guest does not wait.
//!
//! Ports 0x61 to 0x63 lie between the controller's two ports and read as all ones, like ports without a device. Port
//! 0x61 shows the PIT's output, and this machine has no PIT. If the port read as 0, Linux would wait forever for the
//! timer to expire when it calibrates the TSC (`pit_calibrate_tsc`).

use crate::{Action, BusDevice};

/// First I/O port: the controller's data port.
pub const RESET_PORT: u64 = 0x60;
/// Length of the range: data at 0x60, command and status at 0x64.
pub const RESET_PORT_LEN: u64 = 5;

const DATA_OFFSET: u64 = 0;
const COMMAND_OFFSET: u64 = 4;
const PULSE_RESET_LINE: u8 = 0xfe;

/// Answers the guest's reset command with [`Action::Reset`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ResetPort;

impl BusDevice for ResetPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // The ports that do not belong to the controller read like ports without a device.
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
    fn ports_of_other_devices_read_as_ones() {
        for offset in 1..4 {
            let mut data = [0];
            ResetPort.read(offset, &mut data);
            assert_eq!(data, [0xff], "{offset}");
        }
    }
}
