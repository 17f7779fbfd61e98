//! What vCPUs are told when the machine pauses, and where they wait.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kvm_ioctls::VcpuFd;

use crate::kvm::KvmError;
use crate::snapshot::vcpu;

/// A vCPU's number and state.
pub type Saved = (usize, Result<Vec<u8>, KvmError>);

/// An order to the vCPUs.
#[derive(Clone)]
pub struct Order {
    /// The model-specific registers of a state.
    pub listed: Arc<[u32]>,
    pub states: Sender<Saved>,
    /// Set when the vCPUs are to go on.
    pub gate: Arc<OnceLock<()>>,
}

/// Where vCPUs wait.
#[derive(Default)]
pub struct Pause(Mutex<Option<Order>>);

impl Pause {
    /// The order that the vCPUs have.
    pub fn order(&self) -> MutexGuard<'_, Option<Order>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the state of a vCPU and waits, if that was ordered. Its thread has just left the guest.
    pub fn obey(&self, index: usize, vcpu: &VcpuFd) {
        let Some(Order { listed, states, gate }) = self.order().clone() else { return };
        if states.send((index, vcpu::state(vcpu, &listed))).is_ok() {
            gate.wait();
        }
    }

    /// Lets the vCPUs go on.
    pub fn end(&self) {
        if let Some(order) = self.order().take() {
            // Nobody else opens it.
            let _ = order.gate.set(());
        }
    }
}
