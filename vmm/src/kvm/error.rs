//! Errors of KVM.

use std::io;

use devices::StateError;

/// Why KVM could not create or configure a machine.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// /dev/kvm cannot be opened.
    #[error("open /dev/kvm")]
    Open(#[source] io::Error),
    /// This KVM runs only guest kernels that were modified for it.
    #[error("/dev/kvm is {kind}")]
    Foreign {
        /// Description of this KVM, from `module::foreign_kind`.
        kind: &'static str,
    },
    /// An ioctl failed.
    #[error("kvm: {step}")]
    Call {
        /// Purpose of the ioctl.
        step: &'static str,
        /// The error that KVM returned.
        source: io::Error,
    },
    /// KVM refused a model-specific register.
    #[error("kvm: set model-specific register {index:#x}")]
    Msr {
        /// Index of the first refused register.
        index: u32,
    },
    /// The thread that creates the machine could not be started, or it panicked.
    #[error("kvm: start a thread")]
    Thread(#[source] io::Error),
}

/// Returns a function that converts an ioctl's error into [`KvmError::Call`] with `step`.
pub(crate) fn call(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |error| KvmError::Call { step, source: io::Error::from_raw_os_error(error.errno()) }
}

/// Why a part of the machine that KVM has cannot continue from a state.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The bytes are not its state.
    #[error(transparent)]
    State(#[from] StateError),
    /// KVM refuses it.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}
