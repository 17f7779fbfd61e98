//! A device's interrupt: an eventfd that KVM turns into an edge, and the state that the driver reads from registers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

use crate::faults::GuestFaults;

/// Raises a virtio-mmio device's interrupt (VIRTIO 1.2, 4.2.2, InterruptStatus). Clones share one line.
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
    reasons: AtomicU32,
    generation: AtomicU32,
    /// Number of the current session.
    session: AtomicU64,
    /// Number of the last session that needed a reset; 0 if none did.
    broken: AtomicU64,
    fired_elsewhere: AtomicBool,
    line: Arc<EventFd>,
    device_id: u32,
    faults: GuestFaults,
    breakdowns: GuestFaults,
}

impl Interrupt {
    /// Returns an interrupt that raises `line`, for a device without a type.
    pub fn new(line: Arc<EventFd>) -> Interrupt {
        Interrupt::of_device(0, line)
    }

    /// Returns the interrupt of a device of type `device_id` (VIRTIO 1.2, 5). Log lines contain that number.
    pub fn of_device(device_id: u32, line: Arc<EventFd>) -> Interrupt {
        Interrupt {
            session: 1,
            shared: Arc::new(Shared {
                reasons: AtomicU32::new(0),
                generation: AtomicU32::new(0),
                session: AtomicU64::new(1),
                broken: AtomicU64::new(0),
                fired_elsewhere: AtomicBool::new(false),
                line,
                device_id,
                faults: GuestFaults::default(),
                breakdowns: GuestFaults::default(),
            }),
        }
    }

    /// Tells the driver that a queue has used buffers.
    pub fn used_buffers(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// Tells the driver that the configuration space has changed. Must be called after the change.
    pub fn config_changed(&self) {
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// Tells the driver that the device does not work until it is reset (VIRTIO 1.2, 2.1.2, DEVICE_NEEDS_RESET), and
    /// logs `why` at a limited rate.
    pub fn needs_reset(&self, why: fmt::Arguments<'_>) {
        self.shared
            .breakdowns
            .note(format_args!("virtio device {} needs a reset", self.shared.device_id), why);
        self.shared.broken.fetch_max(self.session, Ordering::SeqCst);
        if self.is_broken() {
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    /// The eventfd, for a kernel thread that uses buffers (vhost). [`Self::share`] must be called for that time.
    pub fn line(&self) -> &EventFd {
        &self.shared.line
    }

    /// Sets whether the host's kernel raises the line for used buffers. The kernel cannot set InterruptStatus, so while
    /// the line is shared that register always contains "used buffers".
    pub fn share(&self, shared: bool) {
        self.shared.fired_elsewhere.store(shared, Ordering::SeqCst);
    }

    /// Counts a fault of the driver and logs it at a limited rate.
    pub fn fault(&self, what: fmt::Arguments<'_>) {
        self.shared.faults.note(format_args!("virtio device {}", self.shared.device_id), what);
    }

    /// The pending reasons: the value of the InterruptStatus register.
    pub fn status(&self) -> u32 {
        let shared = self.shared.fired_elsewhere.load(Ordering::SeqCst);
        self.shared.reasons.load(Ordering::SeqCst) | if shared { VIRTIO_MMIO_INT_VRING } else { 0 }
    }

    /// Clears the reasons that the driver acknowledged.
    pub fn acknowledge(&self, reasons: u32) {
        self.shared.reasons.fetch_and(!reasons, Ordering::SeqCst);
    }

    /// Number of configuration changes: the value of the ConfigGeneration register.
    pub fn generation(&self) -> u32 {
        self.shared.generation.load(Ordering::SeqCst)
    }

    /// Whether the device needs a reset in the current session.
    pub fn is_broken(&self) -> bool {
        self.shared.broken.load(Ordering::SeqCst) == self.shared.session.load(Ordering::SeqCst)
    }

    /// Clears the pending reasons, as a reset requires, and starts a new session. This clone, and clones made from it
    /// later, belong to the new session.
    pub fn reset(&mut self) {
        self.session = self.shared.session.fetch_add(1, Ordering::SeqCst) + 1;
        self.shared.reasons.store(0, Ordering::SeqCst);
        self.share(false);
    }

    fn raise(&self, reason: u32) {
        self.shared.reasons.fetch_or(reason, Ordering::SeqCst);
        // The irqfd drains the counter before it can overflow, and a full counter would still be a pending interrupt.
        let _ = self.shared.line.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_add_up_until_they_are_acknowledged() {
        let line = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let mut interrupt = Interrupt::new(line.clone());
        interrupt.used_buffers();
        interrupt.clone().config_changed();
        assert_eq!((interrupt.status(), interrupt.generation()), (3, 1));
        assert_eq!(line.read().unwrap(), 2);
        interrupt.acknowledge(VIRTIO_MMIO_INT_VRING);
        assert_eq!(interrupt.status(), VIRTIO_MMIO_INT_CONFIG);
        interrupt.needs_reset(format_args!("test"));
        assert!(interrupt.is_broken());
        interrupt.reset();
        assert_eq!((interrupt.status(), interrupt.is_broken(), interrupt.generation()), (0, false, 1));
    }

    #[test]
    fn a_failure_of_an_earlier_session_does_not_break_the_current_one() {
        let mut interrupt = Interrupt::new(Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()));
        let late = interrupt.clone();
        interrupt.reset();
        late.needs_reset(format_args!("test"));
        assert_eq!((interrupt.is_broken(), interrupt.status()), (false, 0));
        let current = interrupt.clone();
        current.needs_reset(format_args!("test"));
        late.needs_reset(format_args!("test"));
        assert!(interrupt.is_broken());
        interrupt.reset();
        assert!(!interrupt.is_broken());
    }

    #[test]
    fn the_status_of_a_shared_line_always_has_used_buffers() {
        let mut interrupt = Interrupt::new(Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()));
        interrupt.share(true);
        interrupt.acknowledge(VIRTIO_MMIO_INT_VRING);
        assert_eq!(interrupt.status(), VIRTIO_MMIO_INT_VRING);
        interrupt.reset();
        assert_eq!(interrupt.status(), 0);
    }
}
