//! vCPU threads, and how another thread gets them out of the guest.
//!
//! `immediate_exit` (KVM API 5, `struct kvm_run`) makes the next KVM_RUN return at once; a signal ends the one that is
//! under way. Setting the first and then sending the second leaves no gap: a thread that has not entered KVM_RUN when
//! the signal comes finds the flag set when it does.

// UNSAFETY: a store into the kvm_run page that another thread's vCPU has mapped, and pthread_kill.
#![allow(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{Builder, JoinHandle};

use kvm_ioctls::VcpuFd;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

/// Does nothing: that it is there makes the signal end a KVM_RUN instead of the process.
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

/// A thread that runs a vCPU.
pub struct VcpuThread {
    thread: JoinHandle<VcpuFd>,
    immediate_exit: *mut u8,
}

// SAFETY: the pointer is only used by `kick`, whose access is atomic and whose target outlives it.
unsafe impl Send for VcpuThread {}
// SAFETY: as above.
unsafe impl Sync for VcpuThread {}

impl VcpuThread {
    /// Starts a thread called `name` that runs `body` with the vCPU.
    pub fn spawn(
        name: String,
        mut vcpu: VcpuFd,
        body: impl FnOnce(&mut VcpuFd) + Send + 'static,
    ) -> io::Result<VcpuThread> {
        install_handler()?;
        let immediate_exit = &raw mut vcpu.get_kvm_run().immediate_exit;
        // A panic in `body` must not unmap the page that `immediate_exit` is in.
        let mut vcpu = ManuallyDrop::new(vcpu);
        let thread = Builder::new().name(name).spawn(move || {
            // Threads inherit their maker's mask, which may hold every signal back.
            if let Err(error) = unblock_signal(SIGRTMIN()) {
                log::error!("vcpu: unblock the kick signal: {error}");
            }
            body(&mut vcpu);
            ManuallyDrop::into_inner(vcpu)
        })?;
        Ok(VcpuThread { thread, immediate_exit })
    }

    /// Gets the thread out of the guest, for good: every KVM_RUN of this vCPU returns EINTR from here on.
    pub fn kick(&self) {
        // SAFETY: the page is mapped as long as the VcpuFd lives, which the thread's result holds until `join`
        // consumes it; the kernel and this store are the only ones to access the byte while threads run.
        unsafe { AtomicU8::from_ptr(self.immediate_exit) }.store(1, Ordering::SeqCst);
        // SAFETY: the thread is not joined yet, so its id is valid; the signal has a handler. A thread that has ended
        // already needs no signal.
        unsafe { libc::pthread_kill(self.thread.as_pthread_t(), SIGRTMIN()) };
    }

    /// Waits for the thread's end and returns the vCPU, or `None` if the thread panicked.
    pub fn join(self) -> Option<VcpuFd> {
        self.thread.join().ok()
    }
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
