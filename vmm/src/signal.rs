//! vCPU threads, and how another thread makes them leave the guest.
//!
//! `immediate_exit` (KVM API 5, `struct kvm_run`) makes the next KVM_RUN return at once; a signal interrupts a KVM_RUN
//! in progress. Setting the flag before sending the signal leaves no gap: if the signal arrives before the thread
//! enters KVM_RUN, KVM_RUN sees the flag.

// UNSAFETY: a store into the kvm_run page of a vCPU that another thread runs, and pthread_kill.
#![allow(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

use kvm_ioctls::VcpuFd;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

/// Does nothing. With a handler the signal interrupts KVM_RUN; without one it would terminate the process.
extern "C" fn on_kick(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {}

fn install_handler() -> io::Result<()> {
    static INSTALLED: Once = Once::new();
    let mut result = Ok(());
    INSTALLED.call_once(|| {
        result = register_signal_handler(SIGRTMIN(), on_kick)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()));
    });
    result
}

/// What a thread does with its vCPU.
type Body = Box<dyn FnOnce(&mut VcpuFd) + Send>;

/// A thread that waits for the vCPU that it will run. If it is dropped before, the thread ends.
pub struct WaitingThread {
    work: Sender<(ManuallyDrop<VcpuFd>, Body)>,
    thread: JoinHandle<Option<VcpuFd>>,
}

impl WaitingThread {
    /// Starts a thread with the name `name`, which calls `enter` first.
    pub fn spawn(name: String, enter: fn()) -> io::Result<WaitingThread> {
        install_handler()?;
        let (work, given) = channel::<(ManuallyDrop<VcpuFd>, Body)>();
        let thread = Builder::new().name(name).spawn(move || {
            // A thread inherits its creator's signal mask, which may block every signal.
            if let Err(error) = unblock_signal(SIGRTMIN()) {
                log::error!("vcpu: unblock the kick signal: {error}");
            }
            enter();
            let (mut vcpu, body) = given.recv().ok()?;
            body(&mut vcpu);
            Some(ManuallyDrop::into_inner(vcpu))
        })?;
        Ok(WaitingThread { work, thread })
    }

    /// Runs `body` with `vcpu` in the thread.
    pub fn run(
        self,
        mut vcpu: VcpuFd,
        body: impl FnOnce(&mut VcpuFd) + Send + 'static,
    ) -> io::Result<VcpuThread> {
        let immediate_exit = &raw mut vcpu.get_kvm_run().immediate_exit;
        // A panic in `body` must not unmap the page that `immediate_exit` is in.
        let given = self.work.send((ManuallyDrop::new(vcpu), Box::new(body)));
        given.map_err(|_| io::Error::other("the thread has ended"))?;
        Ok(VcpuThread { thread: self.thread, immediate_exit })
    }
}

/// A thread that runs a vCPU.
pub struct VcpuThread {
    thread: JoinHandle<Option<VcpuFd>>,
    immediate_exit: *mut u8,
}

// SAFETY: only `kick` uses the pointer; its access is atomic, and the page outlives this value.
unsafe impl Send for VcpuThread {}
// SAFETY: as above.
unsafe impl Sync for VcpuThread {}

impl VcpuThread {
    /// Makes the thread leave the guest: every KVM_RUN of this vCPU returns EINTR until the thread has [noticed](forget_kick).
    pub fn kick(&self) {
        // SAFETY: the page is mapped while the VcpuFd exists, and the thread's result holds the VcpuFd until `join`
        // consumes it. While threads run, only the kernel and this store access the byte.
        unsafe { AtomicU8::from_ptr(self.immediate_exit) }.store(1, Ordering::SeqCst);
        // SAFETY: the thread has not been joined, so its id is valid, and the signal has a handler. A failure means
        // that the thread has already ended and needs no signal.
        unsafe { libc::pthread_kill(self.thread.as_pthread_t(), SIGRTMIN()) };
    }

    /// Waits until the thread ends. Returns the vCPU, or `None` if the thread panicked.
    pub fn join(self) -> Option<VcpuFd> {
        self.thread.join().ok().flatten()
    }
}

/// Lets a vCPU enter the guest again after a kick. To be called by its thread, before it looks what it was kicked for.
pub fn forget_kick(vcpu: &mut VcpuFd) {
    let immediate_exit = &raw mut vcpu.get_kvm_run().immediate_exit;
    // SAFETY: the page is mapped while `vcpu` exists; other accesses are the kernel's and the atomic one of `kick`.
    unsafe { AtomicU8::from_ptr(immediate_exit) }.store(0, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kick_without_a_vcpu_loop_is_harmless() {
        install_handler().unwrap();
        install_handler().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || receiver.recv());
        // SAFETY: the thread waits for the channel, so it exists; the signal's handler does nothing.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
        sender.send(()).unwrap();
        thread.join().unwrap().unwrap();
    }
}
