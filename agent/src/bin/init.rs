//! Process 1 of the guest. It has no C library and no standard library: build it by itself, `cargo build -p agent
//! --features init --profile agent`, never with the workspace.
// UNSAFETY: the entry point is assembly, and linkers expect some names.
#![allow(unsafe_code)]
#![no_std]
#![no_main]

extern crate alloc;

use core::panic::PanicInfo;

use agent::memory::Memory;

// SAFETY: the agent never makes a thread.
#[global_allocator]
static MEMORY: Memory = unsafe { Memory::new() };

/// The kernel begins here, with the stack aligned to 16 bytes. A call leaves it as functions expect it.
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

/// Named by the unwind tables of the prebuilt core library; with panic=abort never called.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Named by the prebuilt alloc library, likewise.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    agent::boot::reset()
}
