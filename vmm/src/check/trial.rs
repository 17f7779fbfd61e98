//! The trial guest: it executes instructions that every Linux kernel executes in ring 0, in long mode.
//!
//! Before each step the guest writes the step's number to an I/O port, so the last number identifies the instruction
//! that the host could not execute. A KVM that emulates ring 0 fails here in the same way as with a kernel.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use devices::{Action, Bus, BusDevice};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::end::VmEnd;
use crate::kvm::{self, KvmError, KvmVm};
use crate::layout::{PAGE_SIZE, RamRange};
use crate::loader::Entry;
use crate::memory::{GuestRam, MemoryError};
use crate::pause_order::Pause;
use crate::signal::WaitingThread;
use crate::vcpu::{self, Board};
use crate::{paging, segments};

const MEMORY: u64 = 2 << 20;
const CODE: u64 = 0x1_0000;
const HANDLER: u64 = 0x1_1000;
const IDT: u64 = 0x1_2000;
/// Address of the operand of LIDT. The instruction in [`STEPS`] contains it.
const IDT_REGISTER: u64 = 0x1_3000;
/// Selector of the code segment in the GDT of `segments`.
const CODE_SELECTOR: u16 = 0x10;
/// Breakpoint, the vector of INT3.
const BREAKPOINT: u64 = 3;
/// A present 64-bit interrupt gate (Intel SDM 3A, 6.14.1).
const INTERRUPT_GATE: u64 = 0x8e00;
/// I/O port for step numbers: the port for POST codes on a PC.
const STEP_PORT: u8 = 0x80;
/// Time limit of the guest, which needs microseconds.
const DEADLINE: Duration = Duration::from_secs(5);

/// Name and machine code of a step. A step with a wrong result ends with UD2 (0f 0b), which becomes a triple fault.
type Step = (&'static str, &'static [u8]);

const STEPS: [Step; 8] = [
    ("entry in long mode", &[0x90]),
    // xor eax,eax; xor edx,edx; xor ebx,ebx; xor ecx,ecx; mov edi,0x14000; cmpxchg16b [rdi]; je +2; ud2
    (
        "cmpxchg16b",
        &[
            0x31, 0xc0, 0x31, 0xd2, 0x31, 0xdb, 0x31, 0xc9, 0xbf, 0x00, 0x40, 0x01, 0x00, 0x48, 0x0f, 0xc7,
            0x0f, 0x74, 0x02, 0x0f, 0x0b,
        ],
    ),
    // mov ecx,0xc0000102 (KERNEL_GS_BASE); mov eax,0x12345678; xor edx,edx; wrmsr; xor eax,eax; rdmsr;
    // cmp eax,0x12345678; je +2; ud2
    (
        "wrmsr and rdmsr",
        &[
            0xb9, 0x02, 0x01, 0x00, 0xc0, 0xb8, 0x78, 0x56, 0x34, 0x12, 0x31, 0xd2, 0x0f, 0x30, 0x31, 0xc0,
            0x0f, 0x32, 0x3d, 0x78, 0x56, 0x34, 0x12, 0x74, 0x02, 0x0f, 0x0b,
        ],
    ),
    ("swapgs", &[0x0f, 0x01, 0xf8, 0x0f, 0x01, 0xf8]),
    // mov rax,cr4; or eax,0x40600 (OSFXSR, OSXMMEXCPT, OSXSAVE); mov cr4,rax; xor ecx,ecx; xor edx,edx; mov eax,3;
    // xsetbv
    (
        "xsetbv",
        &[
            0x0f, 0x20, 0xe0, 0x0d, 0x00, 0x06, 0x04, 0x00, 0x0f, 0x22, 0xe0, 0x31, 0xc9, 0x31, 0xd2, 0xb8,
            0x03, 0x00, 0x00, 0x00, 0x0f, 0x01, 0xd1,
        ],
    ),
    // mov eax,3; xor edx,edx; mov edi,0x15000; xsave64 [rdi]; xrstor64 [rdi]
    (
        "xsave and xrstor",
        &[
            0xb8, 0x03, 0x00, 0x00, 0x00, 0x31, 0xd2, 0xbf, 0x00, 0x50, 0x01, 0x00, 0x48, 0x0f, 0xae, 0x27,
            0x48, 0x0f, 0xae, 0x2f,
        ],
    ),
    // lidt [0x13000]; mov rax,cr3; mov cr3,rax; invlpg [rdi]
    (
        "lidt, mov to cr3 and invlpg",
        &[
            0x0f, 0x01, 0x1c, 0x25, 0x00, 0x30, 0x01, 0x00, 0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0x0f, 0x01,
            0x3f,
        ],
    ),
    // xor ebx,ebx; int3; cmp ebx,0x33; je +2; ud2
    ("int3 through the idt, and iretq", &[0x31, 0xdb, 0xcc, 0x83, 0xfb, 0x33, 0x74, 0x02, 0x0f, 0x0b]),
];

/// The breakpoint handler: mov ebx,0x33; iretq.
const HANDLER_CODE: [u8; 7] = [0xbb, 0x33, 0x00, 0x00, 0x00, 0x48, 0xcf];
/// The number that the guest writes after the last step.
const DONE: u8 = STEPS.len() as u8;

/// Why the trial guest did not complete all steps.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The trial machine could not be created.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory could not be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Guest memory could not be written.
    #[error("write the trial guest's memory")]
    Write(#[from] GuestMemoryError),
    /// The vCPU thread could not be started.
    #[error("start the trial guest's thread")]
    Thread(#[source] io::Error),
    /// The guest failed in the middle of its code.
    #[error("{instruction} failed: {why}")]
    Failed {
        /// Name of the step that failed.
        instruction: &'static str,
        /// How the machine ended.
        why: String,
    },
}

/// Returns the guest's code: each step follows `mov al, number; out 0x80, al`.
fn code() -> Vec<u8> {
    let announce = |number: u8| [0xb0, number, 0xe6, STEP_PORT];
    let mut code = Vec::new();
    for (number, (_, bytes)) in STEPS.iter().enumerate() {
        code.extend(announce(number as u8));
        code.extend_from_slice(bytes);
    }
    code.extend(announce(DONE));
    code
}

/// Writes the guest's tables, code and breakpoint handler into its memory.
fn write(memory: &GuestMemoryMmap, entry: Entry) -> Result<(), GuestMemoryError> {
    paging::write(memory)?;
    segments::write_tables(memory, entry)?;
    memory.write_slice(&code(), GuestAddress(CODE))?;
    memory.write_slice(&HANDLER_CODE, GuestAddress(HANDLER))?;
    let gate =
        HANDLER & 0xffff | u64::from(CODE_SELECTOR) << 16 | INTERRUPT_GATE << 32 | (HANDLER >> 16) << 48;
    memory.write_obj(gate, GuestAddress(IDT + BREAKPOINT * 16))?;
    memory.write_obj(PAGE_SIZE as u16 - 1, GuestAddress(IDT_REGISTER))?;
    memory.write_obj(IDT, GuestAddress(IDT_REGISTER + 2))
}

/// The device at [`STEP_PORT`]. The last number shuts the machine down.
struct StepPort(Sender<u8>);

impl BusDevice for StepPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Action {
        let number = data.first().copied().unwrap_or(0);
        // The receiver outlives the machine.
        let _ = self.0.send(number);
        if number >= DONE { Action::Shutdown } else { Action::None }
    }
}

/// Runs the trial guest to its end, for at most [`DEADLINE`].
pub fn run() -> Result<(), TrialError> {
    let entry = Entry::Linux64(CODE);
    let ram = GuestRam::new(&[RamRange { start: 0, len: MEMORY }])?;
    write(ram.memory(), entry)?;
    let vm = KvmVm::create(kvm::open()?)?;
    vm.set_memory(ram.memory())?;
    let vcpu = vm.create_vcpu(0, &mut vm.cpuid(1)?)?;
    kvm::set_entry(&vcpu, entry)?;

    let (steps, seen) = channel();
    let (ended, end) = channel();
    let mut pio = Bus::new();
    pio.insert(STEP_PORT.into(), 1, Box::new(StepPort(steps))).expect("the bus is empty");
    let memory = ram.memory().clone();
    let board = Arc::new(Board {
        pio,
        mmio: Bus::new(),
        memory,
        stopping: AtomicBool::new(false),
        pause: Pause::default(),
    });
    let in_thread = board.clone();
    let thread = WaitingThread::spawn("trial".into(), || {}).map_err(TrialError::Thread)?;
    let body = move |vcpu: &mut VcpuFd| {
        // The receiver waits until the thread is joined.
        let _ = ended.send(vcpu::run(vcpu, 0, &in_thread));
    };
    let thread = thread.run(vcpu, body).map_err(TrialError::Thread)?;
    let end = end.recv_timeout(DEADLINE);
    board.stopping.store(true, Ordering::SeqCst);
    thread.kick();
    thread.join();
    let why = match end {
        Ok(VmEnd::Shutdown) => return Ok(()),
        Ok(VmEnd::Failed(why)) => why,
        Ok(end) => format!("the guest ended with {end:?}"),
        Err(_) => format!("no end within {} s", DEADLINE.as_secs()),
    };
    Err(TrialError::Failed { instruction: step_name(seen.try_iter().last()), why })
}

/// Returns the name of step `number`, the last one announced. `None` means that the guest failed at its entry.
fn step_name(number: Option<u8>) -> &'static str {
    STEPS[usize::from(number.unwrap_or(0)).min(STEPS.len() - 1)].0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_announces_every_step() {
        let code = code();
        let announced: Vec<u8> =
            code.windows(4).filter(|w| w[0] == 0xb0 && w[2..] == [0xe6, 0x80]).map(|w| w[1]).collect();
        assert_eq!(announced, (0..=DONE).collect::<Vec<_>>());
        assert!(code.len() < PAGE_SIZE as usize);
    }

    #[test]
    fn the_guest_and_its_gate_are_in_memory() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        write(&memory, Entry::Linux64(CODE)).unwrap();
        let gate: [u16; 4] = memory.read_obj(GuestAddress(IDT + 48)).unwrap();
        assert_eq!(gate, [0x1000, 0x10, 0x8e00, 0x0001]);
        let byte: u8 = memory.read_obj(GuestAddress(HANDLER)).unwrap();
        assert_eq!(byte, 0xbb);
    }

    #[test]
    fn the_last_number_names_the_step() {
        assert_eq!(step_name(None), "entry in long mode");
        assert_eq!(step_name(Some(1)), "cmpxchg16b");
        assert_eq!(step_name(Some(200)), "int3 through the idt, and iretq");
    }

    #[test]
    fn only_the_last_number_ends_the_guest() {
        let (sender, receiver) = channel();
        let mut port = StepPort(sender);
        assert_eq!(port.write(0, &[1]), Action::None);
        assert_eq!(port.write(0, &[DONE]), Action::Shutdown);
        assert_eq!(port.write(0, &[]), Action::None);
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [1, DONE, 0]);
    }
}
