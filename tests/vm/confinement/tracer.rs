// UNSAFETY: ptrace(2) and waitpid(2) for single threads, whose arguments are addresses.
#![allow(unsafe_code)]
//! Makes system calls in the threads of a running process, as an attacker would who controls a thread.
//!
//! The calls are made by the product's own threads, in the product's own program: a tracer stops a thread, sets its
//! registers to a `syscall` instruction of the program, executes it, and restores the registers.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use libc::{c_int, c_long, c_uint, c_void, pid_t, user_regs_struct};

/// The x86-64 instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Where a call's text is written: below the thread's stack pointer, and below its red zone.
const BELOW: u64 = 2048;

/// What became of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The thread's filter forbids the call: the kernel raised SIGSYS.
    Forbidden,
    /// The kernel executed the call, which failed with this error.
    Failed(i32),
    /// The call succeeded.
    Returned(u64),
}

/// A stopped thread of another process.
pub struct Thread {
    id: pid_t,
    /// The process's memory.
    memory: File,
    /// Registers with which the thread continues.
    saved: user_regs_struct,
    /// Address of a `syscall` instruction.
    instruction: u64,
}

impl Thread {
    /// Stops thread `id` of process `pid`.
    pub fn stop(pid: u32, id: u32) -> Thread {
        let (id, none) = (id as pid_t, std::ptr::null_mut());
        trace(libc::PTRACE_SEIZE, id, none, none).expect("seize a thread");
        trace(libc::PTRACE_INTERRUPT, id, none, none).expect("interrupt a thread");
        wait(id);
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"));
        let memory = memory.expect("open a process's memory");
        let instruction = find_instruction(pid, &memory);
        Thread { id, memory, saved: registers(id), instruction }
    }

    /// Makes a system call. `text` is written to the thread's memory; an argument of `None` is its address.
    pub fn call(&self, number: c_long, args: &[Option<u64>], text: &str) -> Outcome {
        let address = (self.saved.rsp - BELOW) & !15;
        self.memory.write_all_at(&[text.as_bytes(), &[0]].concat(), address).expect("write a text");
        let arg = |n: usize| args.get(n).map_or(0, |value| value.unwrap_or(address));
        let changed = user_regs_struct {
            rip: self.instruction,
            rax: number as u64,
            // The thread is not in a system call that would be repeated.
            orig_rax: u64::MAX,
            rdi: arg(0),
            rsi: arg(1),
            rdx: arg(2),
            r10: arg(3),
            r8: arg(4),
            r9: arg(5),
            ..self.saved
        };
        set_registers(self.id, changed);
        let mut forbidden = false;
        loop {
            let none = std::ptr::null_mut();
            trace(libc::PTRACE_SINGLESTEP, self.id, none, none).expect("execute an instruction");
            match wait(self.id) {
                libc::SIGSYS => forbidden = true,
                libc::SIGTRAP => break,
                // The machine's other threads stop this one if they end it, which a test would notice.
                other => panic!("signal {other} in thread {}", self.id),
            }
        }
        let result = registers(self.id).rax;
        set_registers(self.id, self.saved);
        match (forbidden, -(result as i64)) {
            (true, _) => Outcome::Forbidden,
            (false, error @ 1..4096) => Outcome::Failed(error as i32),
            (false, _) => Outcome::Returned(result),
        }
    }

    /// Makes a system call whose consequences are the thread's own: the signal of a forbidden one is delivered.
    pub fn call_for_good(self, number: c_long) {
        let none = std::ptr::null_mut();
        set_registers(
            self.id,
            user_regs_struct { rip: self.instruction, rax: number as u64, orig_rax: u64::MAX, ..self.saved },
        );
        trace(libc::PTRACE_DETACH, self.id, none, none).expect("let a thread go");
    }

    /// Lets the thread continue where it was stopped.
    pub fn release(self) {
        let none = std::ptr::null_mut();
        trace(libc::PTRACE_DETACH, self.id, none, none).expect("let a thread go");
    }
}

/// Finds a `syscall` instruction in the code of the process's program.
fn find_instruction(pid: u32, memory: &File) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("read the mappings");
    let code = maps.lines().find(|line| line.contains(" r-xp ")).expect("a mapping with code");
    let range = code.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
    let number = |text| u64::from_str_radix(text, 16).expect("an address");
    let (start, end) = (number(range.0), number(range.1));
    let mut bytes = vec![0; (end - start) as usize];
    memory.read_exact_at(&mut bytes, start).expect("read the code");
    let at = bytes.windows(SYSCALL.len()).position(|bytes| bytes == SYSCALL);
    start + at.expect("the program makes system calls") as u64
}

fn registers(id: pid_t) -> user_regs_struct {
    let mut registers = std::mem::MaybeUninit::<user_regs_struct>::zeroed();
    let to: *mut c_void = registers.as_mut_ptr().cast();
    trace(libc::PTRACE_GETREGS, id, std::ptr::null_mut(), to).expect("read a thread's registers");
    // SAFETY: plain words, all of which the kernel has written.
    unsafe { registers.assume_init() }
}

fn set_registers(id: pid_t, mut registers: user_regs_struct) {
    let from: *mut c_void = (&raw mut registers).cast();
    trace(libc::PTRACE_SETREGS, id, std::ptr::null_mut(), from).expect("set a thread's registers");
}

fn trace(request: c_uint, id: pid_t, address: *mut c_void, data: *mut c_void) -> io::Result<()> {
    // SAFETY: the callers pass null pointers, or the structure that the request reads or writes. The other process is
    // the one under test.
    match unsafe { libc::ptrace(request, id, address, data) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits until the thread stops. Returns the signal.
fn wait(id: pid_t) -> c_int {
    let mut status = 0;
    // SAFETY: the kernel writes one integer.
    let waited = unsafe { libc::waitpid(id, &raw mut status, libc::__WALL) };
    assert_eq!(waited, id, "wait for a thread: {}", io::Error::last_os_error());
    assert!(libc::WIFSTOPPED(status), "thread {id} has ended: {status:#x}");
    libc::WSTOPSIG(status)
}
