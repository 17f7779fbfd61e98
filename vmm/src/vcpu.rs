//! The vCPU loop: each exit from the guest becomes an access to a bus, and the device's answer decides whether the
//! machine continues.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use devices::{Action, Bus};
use kvm_bindings::KVM_EXIT_X86_BUS_LOCK;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::end::VmEnd;
use crate::pause_order::Pause;
use crate::{kvm, signal};

/// KVM_SYSTEM_EVENT_* (KVM API 5, `struct kvm_run`).
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;
/// KVM_INTERNAL_ERROR_EMULATION.
const EMULATION: u32 = 1;
/// Pause of a vCPU after a bus lock, so that it makes at most 1,000 of them a second. A bus lock stops the memory accesses
/// of all CPUs of the host for about a thousand cycles. Programs make them only by mistake: an atomic operation across two
/// cache lines.
const BUS_LOCK_PAUSE: Duration = Duration::from_millis(1);
/// Length of the longest x86 instruction, in bytes.
const INSTRUCTION_MAX: usize = 15;

/// What the vCPUs share. It is not changed once they run, so finding a device takes no lock.
pub struct Board {
    /// I/O ports.
    pub pio: Bus,
    /// Device registers in memory.
    pub mmio: Bus,
    /// Guest memory, from which the failing instruction is read for the error text.
    pub memory: GuestMemoryMmap,
    /// Set when vCPUs must leave their loops at the next interruption.
    pub stopping: AtomicBool,
    /// Where the vCPUs wait while the machine is saved.
    pub pause: Pause,
}

/// Why an exit from the guest ends the loop.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    Action(Action),
    SystemEvent(u32),
    TripleFault,
    FailEntry { reason: u64, cpu: u32 },
    InternalError,
    MemoryFault { addr: u64 },
    Unexpected(String),
}

/// Runs `vcpu`, which is number `index`, until the machine ends, and returns how it ended.
pub fn run(vcpu: &mut VcpuFd, index: usize, board: &Board) -> VmEnd {
    loop {
        let stop = match vcpu.run() {
            Ok(exit) => handle(exit, board),
            // EINTR: `VcpuThread::kick`, or a signal to the process. EAGAIN: the guest has just started this vCPU.
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {
                signal::forget_kick(vcpu);
                if board.stopping.load(Ordering::SeqCst) {
                    return VmEnd::Stopped;
                }
                board.pause.obey(index, vcpu);
                None
            }
            Err(error) => Some(Stop::Unexpected(format!("KVM_RUN: {error}"))),
        };
        if let Some(stop) = stop {
            return end(stop, vcpu, board);
        }
    }
}

/// Handles one exit. Returns `None` if the guest continues.
fn handle(exit: VcpuExit, board: &Board) -> Option<Stop> {
    let action = match exit {
        VcpuExit::IoOut(port, data) => board.pio.write(port.into(), data),
        VcpuExit::MmioWrite(addr, data) => board.mmio.write(addr, data),
        VcpuExit::IoIn(port, data) => {
            board.pio.read(port.into(), data);
            Action::None
        }
        VcpuExit::MmioRead(addr, data) => {
            board.mmio.read(addr, data);
            Action::None
        }
        VcpuExit::Unsupported(KVM_EXIT_X86_BUS_LOCK) => {
            thread::sleep(BUS_LOCK_PAUSE);
            Action::None
        }
        VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen => Action::None,
        VcpuExit::Shutdown => return Some(Stop::TripleFault),
        VcpuExit::SystemEvent(event, _) => return Some(Stop::SystemEvent(event)),
        VcpuExit::FailEntry(reason, cpu) => return Some(Stop::FailEntry { reason, cpu }),
        VcpuExit::InternalError => return Some(Stop::InternalError),
        VcpuExit::MemoryFault { gpa, .. } => return Some(Stop::MemoryFault { addr: gpa }),
        other => return Some(Stop::Unexpected(format!("unexpected exit {other:?}"))),
    };
    (action != Action::None).then_some(Stop::Action(action))
}

/// Converts the reason into the machine's end. A failure includes the vCPU's position.
fn end(stop: Stop, vcpu: &mut VcpuFd, board: &Board) -> VmEnd {
    let what = match stop {
        Stop::Action(Action::Shutdown) | Stop::SystemEvent(SYSTEM_EVENT_SHUTDOWN) => return VmEnd::Shutdown,
        Stop::Action(_) | Stop::SystemEvent(SYSTEM_EVENT_RESET) => return VmEnd::Reset,
        Stop::SystemEvent(event) => format!("system event {event}"),
        Stop::TripleFault => "triple fault".to_owned(),
        Stop::FailEntry { reason, cpu } => format!("the host's cpu {cpu} refused entry, reason {reason:#x}"),
        Stop::InternalError => describe(&kvm::internal_error(vcpu.get_kvm_run())),
        Stop::MemoryFault { addr } => format!("no memory behind guest address {addr:#x}"),
        Stop::Unexpected(what) => what,
    };
    VmEnd::Failed(format!("{what}{}", position(vcpu, &board.memory)))
}

/// Describes the cause of a KVM_EXIT_INTERNAL_ERROR.
fn describe(error: &kvm::InternalError) -> String {
    match error.suberror {
        EMULATION => "kvm could not emulate an instruction".to_owned(),
        other => format!("kvm internal error {other}, data {:x?}", error.data),
    }
}

/// Describes the vCPU's registers and, if it can be read, the instruction at the instruction pointer.
fn position(vcpu: &VcpuFd, memory: &GuestMemoryMmap) -> String {
    let Ok(regs) = vcpu.get_regs() else { return String::new() };
    let mut text = format!(" at rip {:#x}", regs.rip);
    let cr = vcpu
        .get_sregs()
        .map(|s| format!(", cr0 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}", s.cr0, s.cr3, s.cr4, s.efer));
    let physical = vcpu.translate_gva(regs.rip).ok().filter(|t| t.valid != 0).map(|t| t.physical_address);
    let mut code = [0; INSTRUCTION_MAX];
    let read = physical.map(|addr| memory.read(&mut code, GuestAddress(addr)));
    if let Some(Ok(len)) = read {
        let hex: Vec<_> = code[..len].iter().map(|byte| format!("{byte:02x}")).collect();
        text += &format!(", code {}", hex.join(" "));
    }
    text + &format!(", rsp {:#x}", regs.rsp) + &cr.unwrap_or_default()
}

#[cfg(test)]
mod tests;
