//! A device's interrupt line: an eventfd that the hypervisor turns into an edge, and what the driver may read about it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

use crate::faults::GuestFaults;

/// Raises a virtio-mmio device's interrupt (VIRTIO 1.2, 4.2.2, InterruptStatus). Clones share one line.
///
/// It lives as long as the device, across resets, and so it also counts what the device's driver does wrong. A clone belongs
/// to the session in which it was made: the time from one reset to the next. What a thread says of a session that is over
/// by then is not taken for the next one's.
#[derive(Clone, Debug)]
pub struct Interrupt {
    session: u64,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    reasons: AtomicU32,
    generation: AtomicU32,
    /// The session that there is.
    session: AtomicU64,
    /// The last one that asked for a reset; 0 if none has.
    broken: AtomicU64,
    fired_elsewhere: AtomicBool,
    line: Arc<EventFd>,
    device_id: u32,
    faults: GuestFaults,
    breakdowns: GuestFaults,
}

impl Interrupt {
    /// Returns an interrupt that fires `line`.
    pub fn new(line: Arc<EventFd>) -> Interrupt {
        Interrupt::of_device(0, line)
    }

    /// Returns the interrupt of a device of type `device_id` (VIRTIO 1.2, 5), which its log lines name.
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

    /// Tells the driver that the configuration has changed. To be called after the change.
    pub fn config_changed(&self) {
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// Tells the driver that the device is of no use until a reset (VIRTIO 1.2, 2.1.2, DEVICE_NEEDS_RESET), and the
    /// log why.
    pub fn needs_reset(&self, why: fmt::Arguments<'_>) {
        self.shared
            .breakdowns
            .note(format_args!("virtio device {} needs a reset", self.shared.device_id), why);
        self.shared.broken.fetch_max(self.session, Ordering::SeqCst);
        if self.is_broken() {
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    /// The line, for somebody outside of this process who uses buffers; [`Self::share`] goes with it.
    pub fn line(&self) -> &EventFd {
        &self.shared.line
    }

    /// Says whether somebody else fires the line for used buffers, who cannot write InterruptStatus: as long as it is
    /// shared, that always has this reason.
    pub fn share(&self, shared: bool) {
        self.shared.fired_elsewhere.store(shared, Ordering::SeqCst);
    }

    /// Counts something that the driver did wrong, and logs it now and then.
    pub fn fault(&self, what: fmt::Arguments<'_>) {
        self.shared.faults.note(format_args!("virtio device {}", self.shared.device_id), what);
    }

    /// The pending reasons, as the InterruptStatus register shows them.
    pub fn status(&self) -> u32 {
        let shared = self.shared.fired_elsewhere.load(Ordering::SeqCst);
        self.shared.reasons.load(Ordering::SeqCst) | if shared { VIRTIO_MMIO_INT_VRING } else { 0 }
    }

    /// Takes back the reasons that the driver acknowledged.
    pub fn acknowledge(&self, reasons: u32) {
        self.shared.reasons.fetch_and(!reasons, Ordering::SeqCst);
    }

    /// How often the configuration has changed, as the ConfigGeneration register shows it.
    pub fn generation(&self) -> u32 {
        self.shared.generation.load(Ordering::SeqCst)
    }

    /// The device has asked for a reset.
    pub fn is_broken(&self) -> bool {
        self.shared.broken.load(Ordering::SeqCst) == self.shared.session.load(Ordering::SeqCst)
    }

    /// Forgets what is pending, as a reset does, and begins a new session: this clone's and that of those made from it.
    pub fn reset(&mut self) {
        self.session = self.shared.session.fetch_add(1, Ordering::SeqCst) + 1;
        self.shared.reasons.store(0, Ordering::SeqCst);
        self.share(false);
    }

    fn raise(&self, reason: u32) {
        self.shared.reasons.fetch_or(reason, Ordering::SeqCst);
        // The counter cannot overflow before the irqfd drains it; a full counter is a pending interrupt all the same.
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
    fn a_session_that_is_over_breaks_no_other() {
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
    fn a_shared_line_always_says_that_there_are_used_buffers() {
        let mut interrupt = Interrupt::new(Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()));
        interrupt.share(true);
        interrupt.acknowledge(VIRTIO_MMIO_INT_VRING);
        assert_eq!(interrupt.status(), VIRTIO_MMIO_INT_VRING);
        interrupt.reset();
        assert_eq!(interrupt.status(), 0);
    }
}
