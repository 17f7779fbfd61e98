//! Why a pod's machine cannot be made or changed.

use host::HostError;
use link::LinkError;
use vmm::devices::share::ShareError;

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error(transparent)]
    Vm(#[from] vmm::Error),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("a running machine is limited to {count} network interfaces")]
    NoSlot { count: usize },
}

pub type Result<T, E = SandboxError> = std::result::Result<T, E>;
