//! The registers that the driver reads, as memory of the host.
//!
//! A monitor can map the page into the guest, read-only, at the address of the device. A read is then a load without an
//! exit, and only writes reach the device, which puts the answer into the page before the vCPU goes on. So a register
//! that changes without a write must be stored when it changes: by [`Interrupt`](crate::Interrupt), by the queues' gate
//! at the end of a reset, and by a slot in which a device appears.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::*;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{MmapRegion, VolatileMemory};

/// Size of a device's registers, in bytes.
pub const MMIO_SIZE: u64 = 0x1000;
/// DeviceID of an empty slot (4.2.2).
const NO_DEVICE: u32 = 0;
/// Size of a configuration space in bytes. Those of all devices are smaller.
const CONFIG_LEN: usize = 0x100;

/// The register pages of a machine's devices, next to each other. Those that are not used take no memory.
#[derive(Clone, Debug)]
pub struct RegisterPages(Arc<MmapRegion>);

impl RegisterPages {
    /// Returns the pages of `count` devices. Fails if the host cannot reserve the address space.
    pub fn new(count: usize) -> Result<RegisterPages, MmapRegionError> {
        Ok(RegisterPages(Arc::new(MmapRegion::new(count * MMIO_SIZE as usize)?)))
    }

    /// Returns the page of device `index`, from 0. Panics if there are not so many.
    pub fn page(&self, index: usize) -> RegisterPage {
        let start = index * MMIO_SIZE as usize;
        assert!(start < self.0.size(), "page of device {index}");
        RegisterPage { pages: self.clone(), start }
    }

    /// The memory of the pages, for its mapping into the guest.
    pub fn region(&self) -> &MmapRegion {
        &self.0
    }
}

/// The registers of a device. Clones share them.
#[derive(Clone, Debug)]
pub struct RegisterPage {
    pages: RegisterPages,
    /// Offset within the pages in bytes.
    start: usize,
}

impl RegisterPage {
    /// Returns a page of its own, for a device whose registers are not mapped into a guest.
    pub fn unmapped() -> Result<RegisterPage, MmapRegionError> {
        Ok(RegisterPages::new(1)?.page(0))
    }

    /// Returns the value of `register`.
    pub fn load(&self, register: u32) -> u32 {
        self.word(register).load(Ordering::SeqCst)
    }

    /// Sets the value of `register`.
    pub fn store(&self, register: u32, value: u32) {
        self.word(register).store(value, Ordering::SeqCst);
    }

    /// Adds `bits` to the value of `register`.
    pub fn add(&self, register: u32, bits: u32) {
        self.word(register).fetch_or(bits, Ordering::SeqCst);
    }

    /// Removes `bits` from the value of `register`.
    pub fn remove(&self, register: u32, bits: u32) {
        self.word(register).fetch_and(!bits, Ordering::SeqCst);
    }

    /// Adds 1 to the value of `register`.
    pub fn count(&self, register: u32) {
        self.word(register).fetch_add(1, Ordering::SeqCst);
    }

    /// Adds `bits` to the value of `register` unless it is 0.
    pub fn add_unless_zero(&self, register: u32, bits: u32) {
        let added = |value| (value != 0).then_some(value | bits);
        // An error is the value 0.
        let _ = self.word(register).fetch_update(Ordering::SeqCst, Ordering::SeqCst, added);
    }

    /// Shows a device with its type and its configuration space, which `read_config` fills. Without a type there is none.
    pub fn show_device(&self, device_id: Option<u32>, read_config: impl Fn(u64, &mut [u8])) {
        let mut config = [0; CONFIG_LEN];
        read_config(0, &mut config);
        for (index, byte) in config.into_iter().enumerate() {
            self.byte(VIRTIO_MMIO_CONFIG as usize + index).store(byte, Ordering::SeqCst);
        }
        // A driver that finds the type finds the configuration space.
        self.store(VIRTIO_MMIO_DEVICE_ID, device_id.unwrap_or(NO_DEVICE));
    }

    /// Fills `data` from the page's bytes at `offset`. Bytes outside of it read as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in (offset..).zip(data) {
            let within = usize::try_from(offset).ok().filter(|_| offset < MMIO_SIZE);
            *byte = within.map_or(0, |offset| self.byte(offset).load(Ordering::SeqCst));
        }
    }

    fn word(&self, register: u32) -> &AtomicU32 {
        let offset = self.start + register as usize;
        self.pages.0.get_atomic_ref(offset).expect("registers are aligned and within the page")
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        self.pages.0.get_atomic_ref(self.start + offset).expect("the offset is within the page")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_do_not_share_registers() {
        let pages = RegisterPages::new(2).unwrap();
        let (first, second) = (pages.page(0), pages.page(1));
        first.store(VIRTIO_MMIO_STATUS, 5);
        second.store(VIRTIO_MMIO_MAGIC_VALUE, 7);
        second.add(VIRTIO_MMIO_STATUS, 2);
        assert_eq!((first.load(VIRTIO_MMIO_STATUS), second.load(VIRTIO_MMIO_STATUS)), (5, 2));
        second.remove(VIRTIO_MMIO_STATUS, 2);
        second.add_unless_zero(VIRTIO_MMIO_STATUS, 64);
        first.add_unless_zero(VIRTIO_MMIO_STATUS, 64);
        assert_eq!((first.load(VIRTIO_MMIO_STATUS), second.load(VIRTIO_MMIO_STATUS)), (69, 0));
        let mut bytes = [1; 8];
        first.read(MMIO_SIZE - 4, &mut bytes);
        assert_eq!(bytes, [0; 8], "the second page begins with 7");
    }

    #[test]
    fn a_device_appears_with_its_configuration_and_disappears() {
        let page = RegisterPage::unmapped().unwrap();
        page.show_device(Some(3), |offset, data| super::super::super::copy_config(&[1, 2, 3], offset, data));
        let mut config = [9; 4];
        page.read(VIRTIO_MMIO_CONFIG.into(), &mut config);
        assert_eq!((page.load(VIRTIO_MMIO_DEVICE_ID), config), (3, [1, 2, 3, 0]));
        page.show_device(None, |_, data| data.fill(0));
        page.read(VIRTIO_MMIO_CONFIG.into(), &mut config);
        assert_eq!((page.load(VIRTIO_MMIO_DEVICE_ID), config), (0, [0; 4]));
    }
}
