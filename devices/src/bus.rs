//! The bus: maps address ranges to devices, for port I/O and for MMIO.
//!
//! The map is filled before the vCPUs start and does not change afterwards, so finding a device takes no lock.

use std::sync::Mutex;

use crate::StateError;

/// What a device requests from the machine after a write by the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The machine continues.
    None,
    /// The guest requested a reset.
    Reset,
    /// The guest requested power-off.
    Shutdown,
}

/// A device's registers on a bus. The guest chooses offset, size and value; no combination may make the host fail.
pub trait BusDevice: Send {
    /// Handles a read of `data.len()` bytes at `offset` bytes from the device's base.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Handles a write of `data` at `offset` bytes from the device's base.
    fn write(&mut self, offset: u64, data: &[u8]) -> Action;
    /// Returns what the device must know to continue in another machine. Called while no vCPU and no other thread uses the
    /// device. Most devices without queues know nothing.
    fn save(&mut self) -> Result<Vec<u8>, StateError> {
        Ok(Vec::new())
    }
    /// Continues from what [`save`](Self::save) returned, before the first vCPU runs. The device has not been used.
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        if state.is_empty() { Ok(()) } else { Err(StateError::Foreign("this one has no state")) }
    }
    /// Goes on after [`save`](Self::save), which may have made a thread of the device wait. The machine continues itself.
    fn go_on(&mut self) {}
}

/// Why a device could not be put on the bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or extends past the end of the address space.
    #[error("bus range {base:#x}+{len:#x} is empty or too long")]
    BadRange {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The range overlaps that of another device.
    #[error("bus range {base:#x}+{len:#x} is in use")]
    Overlap {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
}

struct Mapping {
    base: u64,
    last: u64,
    device: Mutex<Box<dyn BusDevice>>,
}

/// Sorted, disjoint address ranges, each with its device.
#[derive(Default)]
pub struct Bus {
    mappings: Vec<Mapping>,
}

impl Bus {
    /// Returns an empty bus.
    pub fn new() -> Bus {
        Bus::default()
    }

    /// Puts `device` at `base..base + len`.
    pub fn insert(&mut self, base: u64, len: u64, device: Box<dyn BusDevice>) -> Result<(), BusError> {
        let last =
            len.checked_sub(1).and_then(|n| base.checked_add(n)).ok_or(BusError::BadRange { base, len })?;
        if self.mappings.iter().any(|m| m.base <= last && base <= m.last) {
            return Err(BusError::Overlap { base, len });
        }
        let at = self.mappings.partition_point(|m| m.base < base);
        self.mappings.insert(at, Mapping { base, last, device: Mutex::new(device) });
        Ok(())
    }

    /// Reads from the device at `addr`. Without a device all bits read as 1, as on hardware.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        match self.mapping(addr, data.len()) {
            Some(m) => m.device.lock().unwrap().read(addr - m.base, data),
            None => data.fill(0xff),
        }
    }

    /// Writes to the device at `addr`. Without a device the write is ignored, as on hardware.
    pub fn write(&self, addr: u64, data: &[u8]) -> Action {
        match self.mapping(addr, data.len()) {
            Some(m) => m.device.lock().unwrap().write(addr - m.base, data),
            None => Action::None,
        }
    }

    /// Lets all devices go on that [`save`](Self::save) has stopped.
    pub fn go_on(&self) {
        self.mappings.iter().for_each(|m| m.device.lock().unwrap().go_on());
    }

    /// Returns the states of all devices, in the order of their addresses, each with its first address.
    pub fn save(&self) -> Result<Vec<(u64, Vec<u8>)>, StateError> {
        self.mappings.iter().map(|m| Ok((m.base, m.device.lock().unwrap().save()?))).collect()
    }

    /// Makes all devices continue from `states`, which [`save`](Self::save) of a bus with the same devices returned.
    pub fn restore<'a>(&self, states: impl IntoIterator<Item = (u64, &'a [u8])>) -> Result<(), StateError> {
        let mut states = states.into_iter();
        for mapping in &self.mappings {
            let (base, state) = states.next().ok_or(StateError::Foreign("a device is missing"))?;
            if base != mapping.base {
                return Err(StateError::Foreign("a device has another address"));
            }
            mapping.device.lock().unwrap().restore(state)?;
        }
        match states.next() {
            None => Ok(()),
            Some(_) => Err(StateError::Foreign("it has more devices")),
        }
    }

    /// Returns the mapping that contains the whole access, or `None` if there is none or the access crosses its end.
    fn mapping(&self, addr: u64, len: usize) -> Option<&Mapping> {
        let mapping = &self.mappings[self.mappings.partition_point(|m| m.base <= addr).checked_sub(1)?];
        let last = addr.checked_add((len as u64).checked_sub(1)?)?;
        (last <= mapping.last).then_some(mapping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);
    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&mut self, _offset: u64, _data: &[u8]) -> Action {
            Action::Reset
        }
    }

    fn bus() -> Bus {
        let mut bus = Bus::new();
        bus.insert(0x2000, 0x10, Box::new(Echo(2))).unwrap();
        bus.insert(0x1000, 0x10, Box::new(Echo(1))).unwrap();
        bus
    }

    #[test]
    fn an_access_reaches_the_device_with_its_offset() {
        let mut data = [0; 2];
        bus().read(0x1004, &mut data);
        assert_eq!(data, [5, 5]);
        assert_eq!(bus().write(0x200f, &[0]), Action::Reset);
    }

    #[test]
    fn an_access_outside_or_across_an_end_reads_ones() {
        for addr in [0, 0xfff, 0x1010, 0x100f, u64::MAX] {
            let mut data = [0; 2];
            bus().read(addr, &mut data);
            assert_eq!(data, [0xff, 0xff], "{addr:#x}");
            assert_eq!(bus().write(addr, &data), Action::None, "{addr:#x}");
        }
    }

    /// A device whose state is one byte.
    struct Byte(u8);
    impl BusDevice for Byte {
        fn read(&mut self, _offset: u64, data: &mut [u8]) {
            data.fill(self.0);
        }
        fn write(&mut self, _offset: u64, _data: &[u8]) -> Action {
            Action::None
        }
        fn save(&mut self) -> Result<Vec<u8>, StateError> {
            if self.0 == 0 { Err(StateError::Busy("zero")) } else { Ok(vec![self.0]) }
        }
        fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
            let [byte] = state else { return Err(StateError::Damaged("not one byte")) };
            self.0 = *byte;
            Ok(())
        }
    }

    #[test]
    fn devices_continue_from_their_states_on_the_same_bus() {
        let with = |byte| {
            let mut bus = bus();
            bus.insert(0x1800, 1, Box::new(Byte(byte))).unwrap();
            bus
        };
        let saved = with(7).save().unwrap();
        let states = || saved.iter().map(|(base, state)| (*base, &state[..]));
        let other = with(1);
        other.restore(states()).unwrap();
        let mut data = [0];
        other.read(0x1800, &mut data);
        assert_eq!(data, [7]);
        assert_eq!(with(0).save(), Err(StateError::Busy("zero")));
        assert_eq!(bus().restore(states()), Err(StateError::Foreign("a device has another address")));
        assert_eq!(other.restore(states().take(2)), Err(StateError::Foreign("a device is missing")));
        assert_eq!(Bus::new().restore(states()), Err(StateError::Foreign("it has more devices")));
        assert_eq!(
            bus().restore([(0x1000, &b"x"[..]), (0x2000, b"")]),
            Err(StateError::Foreign("this one has no state"))
        );
    }

    #[test]
    fn overlap_and_bad_ranges_are_refused() {
        let mut bus = bus();
        assert_eq!(bus.insert(0x100f, 1, Box::new(Echo(0))), Err(BusError::Overlap { base: 0x100f, len: 1 }));
        assert_eq!(bus.insert(5, 0, Box::new(Echo(0))), Err(BusError::BadRange { base: 5, len: 0 }));
        assert_eq!(
            bus.insert(u64::MAX, 2, Box::new(Echo(0))),
            Err(BusError::BadRange { base: u64::MAX, len: 2 })
        );
    }
}
