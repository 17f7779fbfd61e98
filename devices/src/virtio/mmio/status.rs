//! State machine of the device status field (VIRTIO 1.2, 2.1 and 3.1.1).

use virtio_bindings::virtio_config::*;

/// The driver's status bits in the order in which they must be set. FAILED may be set at any time.
const STEPS: [u32; 4] = [
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_DRIVER_OK,
];

/// Returns the bits that a write of `written` adds to `current`, or why the write is refused. `written` is not 0, which
/// is a reset.
///
/// NEEDS_RESET belongs to the device. It is accepted and ignored, because a driver may write back what it read.
pub(super) fn added(current: u32, written: u32) -> Result<u32, &'static str> {
    let known = STEPS.iter().fold(VIRTIO_CONFIG_S_FAILED, |all, step| all | step);
    if written & !(known | VIRTIO_CONFIG_S_NEEDS_RESET) != 0 {
        return Err("unknown status bit");
    }
    if current & !written != 0 {
        return Err("status bit cleared without a reset");
    }
    let added = written & known & !current;
    if added != 0 && current & VIRTIO_CONFIG_S_FAILED != 0 {
        return Err("status bit added after FAILED");
    }
    let steps = written & !VIRTIO_CONFIG_S_FAILED;
    let out_of_order = STEPS.windows(2).any(|pair| steps & pair[1] != 0 && steps & pair[0] == 0);
    if out_of_order { Err("status bit out of order") } else { Ok(added) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_in_order_and_stay_set() {
        for (current, written, expected) in [
            (0, 1, Ok(1)),
            (1, 3, Ok(2)),
            (0, 3, Ok(3)),
            (3, 11, Ok(8)),
            (11, 15, Ok(4)),
            (3, 15, Ok(12)),
            (11, 11, Ok(0)),
            (3, 3 | 64, Ok(0)),
            (3, 3 | 128, Ok(128)),
            (0, 128, Ok(128)),
            (0, 2, Err("status bit out of order")),
            (3, 7, Err("status bit out of order")),
            (3, 1, Err("status bit cleared without a reset")),
            (131, 139, Err("status bit added after FAILED")),
            (0, 16, Err("unknown status bit")),
            (0, 0x101, Err("unknown status bit")),
        ] {
            assert_eq!(added(current, written), expected, "{current} <- {written}");
        }
    }
}
