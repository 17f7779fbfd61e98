//! PID 1 of the guest. It uses neither a C library nor the standard library. Build it separately with `cargo build -p
//! agent --features init --profile agent`, never with the workspace.
// UNSAFETY: the entry point is assembly, and the linker expects some symbols.
#![allow(unsafe_code)]
#![no_std]
#![no_main]

extern crate alloc;

use core::panic::PanicInfo;

use agent::memory::Memory;

// SAFETY: the agent never creates a thread.
#[global_allocator]
static MEMORY: Memory = unsafe { Memory::new() };

/// Entry point, with the stack aligned to 16 bytes. A call from here gives functions the alignment that they expect.
#[unsafe(no_mangle)]
#[unsafe(naked)]
extern "C" fn _start() -> ! {
    core::arch::naked_asm!("xor ebp, ebp", "call {main}", "ud2", main = sym main)
}

extern "C" fn main() -> ! {
    agent::boot::main()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    agent::boot::say(&alloc::format!("agent: {info}\n"));
    agent::boot::reset()
}

/// Symbol in the unwind tables of the prebuilt core library. Never called with panic=abort.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Symbol in the prebuilt alloc library. Never called with panic=abort.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    agent::boot::reset()
}
