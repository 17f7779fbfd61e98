//! A device's interrupt: an eventfd that KVM turns into an edge, and the state that the driver reads from registers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_STATUS,
};
use vmm_sys_util::eventfd::EventFd;

use crate::faults::GuestFaults;
use crate::virtio::mmio::page::RegisterPage;

/// Raises a virtio-mmio device's interrupt (VIRTIO 1.2, 4.2.2, InterruptStatus). Clones share one line.
///
/// InterruptStatus contains "used buffers" from DRIVER_OK to the next reset, acknowledged or not: the line is an edge and
/// is the device's own, so that each interrupt may be one for used buffers. A driver then never waits for this bit, the
/// host's kernel can raise the line by itself (vhost), and our guest kernel does not acknowledge it, which is an exit.
///
/// It exists as long as the device, across resets, so it also counts the faults of the device's driver. A session is
/// the time from one reset to the next. A clone belongs to the session in which it was made: a thread that reports a
/// failure late, after a reset, does not affect the next session.
#[derive(Clone, Debug)]
pub struct Interrupt {
    session: u64,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// The device's registers: InterruptStatus, ConfigGeneration and one bit of Status are this interrupt's.
    page: RegisterPage,
    /// Number of the current session.
    session: AtomicU64,
    /// Number of the last session that needed a reset; 0 if none did.
    broken: AtomicU64,
    line: Arc<EventFd>,
    device_id: u32,
    faults: GuestFaults,
    breakdowns: GuestFaults,
}

impl Interrupt {
    /// Returns an interrupt that raises `line`, for a device without a type, whose registers nobody reads.
    pub fn new(line: Arc<EventFd>) -> Interrupt {
        Interrupt::of_device(0, line, RegisterPage::unmapped().expect("reserve a page"))
    }

    /// Returns the interrupt of a device of type `device_id` (VIRTIO 1.2, 5) with these registers. Log lines contain that
    /// number.
    pub fn of_device(device_id: u32, line: Arc<EventFd>, page: RegisterPage) -> Interrupt {
        Interrupt {
            session: 1,
            shared: Arc::new(Shared {
                page,
                session: AtomicU64::new(1),
                broken: AtomicU64::new(0),
                line,
                device_id,
                faults: GuestFaults::default(),
                breakdowns: GuestFaults::default(),
            }),
        }
    }

    /// Begins the work of the device, at DRIVER_OK.
    pub fn begin(&self) {
        self.shared.page.add(VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_INT_VRING);
    }

    /// Tells the driver that a queue has used buffers.
    pub fn used_buffers(&self) {
        self.raise();
    }

    /// Tells the driver that the configuration space has changed. Must be called after the change.
    pub fn config_changed(&self) {
        self.shared.page.count(VIRTIO_MMIO_CONFIG_GENERATION);
        self.tell_of_configuration();
    }

    /// Tells the driver that the device does not work until it is reset (VIRTIO 1.2, 2.1.2, DEVICE_NEEDS_RESET), and
    /// logs `why` at a limited rate.
    pub fn needs_reset(&self, why: fmt::Arguments<'_>) {
        self.shared
            .breakdowns
            .note(format_args!("virtio device {} needs a reset", self.shared.device_id), why);
        self.shared.broken.fetch_max(self.session, Ordering::SeqCst);
        if self.is_broken() {
            self.show_broken();
            self.tell_of_configuration();
        }
    }

    /// Adds DEVICE_NEEDS_RESET to Status if the device needs a reset and a driver uses it.
    pub fn show_broken(&self) {
        if self.is_broken() {
            self.shared.page.add_unless_zero(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_NEEDS_RESET);
        }
    }

    /// The eventfd, for a kernel thread that uses buffers (vhost).
    pub fn line(&self) -> &EventFd {
        &self.shared.line
    }

    /// Counts a fault of the driver and logs it at a limited rate.
    pub fn fault(&self, what: fmt::Arguments<'_>) {
        self.shared.faults.note(format_args!("virtio device {}", self.shared.device_id), what);
    }

    /// Removes the reasons that the driver acknowledged, but not "used buffers".
    pub fn acknowledge(&self, reasons: u32) {
        self.shared.page.remove(VIRTIO_MMIO_INTERRUPT_STATUS, reasons & !VIRTIO_MMIO_INT_VRING);
    }

    /// Whether the device needs a reset in the current session.
    pub fn is_broken(&self) -> bool {
        self.shared.broken.load(Ordering::SeqCst) == self.shared.session.load(Ordering::SeqCst)
    }

    /// Clears the pending reasons, as a reset requires, and starts a new session. This clone, and clones made from it
    /// later, belong to the new session.
    pub fn reset(&mut self) {
        self.session = self.shared.session.fetch_add(1, Ordering::SeqCst) + 1;
        self.shared.page.store(VIRTIO_MMIO_INTERRUPT_STATUS, 0);
    }

    /// InterruptStatus and ConfigGeneration, for [`resume`](Self::resume).
    pub fn registers(&self) -> [u32; 2] {
        [VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_CONFIG_GENERATION].map(|at| self.shared.page.load(at))
    }

    /// Continues with these [`registers`](Self::registers) of a machine that was saved. If there is a reason for an
    /// interrupt, raises the line: an interrupt that the saved machine did not see yet is not in its state.
    pub fn resume(&self, [status, generation]: [u32; 2]) {
        self.shared.page.store(VIRTIO_MMIO_INTERRUPT_STATUS, status);
        self.shared.page.store(VIRTIO_MMIO_CONFIG_GENERATION, generation);
        if status != 0 {
            self.raise();
        }
    }

    fn tell_of_configuration(&self) {
        self.shared.page.add(VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_INT_CONFIG);
        self.raise();
    }

    fn raise(&self) {
        // The irqfd drains the counter before it can overflow, and a full counter would still be a pending interrupt.
        let _ = self.shared.line.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An interrupt with its line and its registers.
    fn interrupt() -> (Interrupt, Arc<EventFd>, RegisterPage) {
        let line = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let page = RegisterPage::unmapped().unwrap();
        (Interrupt::of_device(1, line.clone(), page.clone()), line, page)
    }

    #[test]
    fn a_configuration_change_is_shown_until_it_is_acknowledged() {
        let (mut interrupt, line, page) = interrupt();
        let status = || page.load(VIRTIO_MMIO_INTERRUPT_STATUS);
        assert_eq!(status(), 0);
        interrupt.begin();
        interrupt.used_buffers();
        interrupt.clone().config_changed();
        assert_eq!((status(), page.load(VIRTIO_MMIO_CONFIG_GENERATION)), (3, 1));
        assert_eq!(line.read().unwrap(), 2);
        interrupt.acknowledge(VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG);
        assert_eq!(status(), VIRTIO_MMIO_INT_VRING);
        interrupt.reset();
        assert_eq!((status(), page.load(VIRTIO_MMIO_CONFIG_GENERATION)), (0, 1));
    }

    #[test]
    fn a_device_that_needs_a_reset_says_so_while_a_driver_uses_it() {
        let (interrupt, _line, page) = interrupt();
        interrupt.needs_reset(format_args!("test"));
        assert_eq!(page.load(VIRTIO_MMIO_STATUS), 0);
        page.store(VIRTIO_MMIO_STATUS, 7);
        interrupt.show_broken();
        assert_eq!(page.load(VIRTIO_MMIO_STATUS), 7 | VIRTIO_CONFIG_S_NEEDS_RESET);
    }

    #[test]
    fn a_failure_of_an_earlier_session_does_not_break_the_current_one() {
        let mut interrupt = Interrupt::new(Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()));
        let late = interrupt.clone();
        interrupt.reset();
        late.needs_reset(format_args!("test"));
        assert!(!interrupt.is_broken());
        let current = interrupt.clone();
        current.needs_reset(format_args!("test"));
        late.needs_reset(format_args!("test"));
        assert!(interrupt.is_broken());
        interrupt.reset();
        assert!(!interrupt.is_broken());
    }
}
