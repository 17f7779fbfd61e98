//! Memory of PID 1: the allocator, and the functions that compilers expect from a C library.
//!
//! Small blocks come from a static heap, which uses no memory until it is touched, and from additional heaps when it is
//! full. Large blocks are separate mappings, so that the memory of a big message or a full stream is returned to the
//! kernel.
// UNSAFETY: an allocator, memcpy and similar functions work on raw pointers.
#![allow(unsafe_code)]

use core::alloc::{GlobalAlloc, Layout};
use core::ptr;

use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap_anonymous, mremap, munmap};
use talc::base::Talc;
use talc::base::binning::Binning;
use talc::source::Source;

use crate::sys;

/// Blocks of at least this size in bytes are separate mappings.
const LARGE: usize = 32 << 10;
/// Size of the first heap in bytes: more than an agent with a few containers uses.
const HEAP: usize = 128 << 10;
/// Size of each additional heap in bytes.
const FURTHER: usize = 256 << 10;

static mut FIRST: [u128; HEAP / 16] = [0; HEAP / 16];

/// The heaps for small blocks.
#[derive(Debug)]
struct Heaps {
    first_taken: bool,
}

// SAFETY: memory comes from a static and from mmap, never from the allocator itself.
unsafe impl Source for Heaps {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, _layout: Layout) -> Result<(), ()> {
        let (start, size) = if core::mem::replace(&mut talc.source.first_taken, true) {
            (map(FURTHER), FURTHER)
        } else {
            ((&raw mut FIRST).cast(), HEAP)
        };
        if start.is_null() {
            return Err(());
        }
        // SAFETY: only this heap uses the block: a static without other references, or a new mapping.
        unsafe { talc.claim(start, size) }.map(drop).ok_or(())
    }
}

/// The allocator of PID 1.
#[allow(missing_debug_implementations, reason = "the inner allocator has none")]
pub struct Memory(talc::TalcCell<Heaps>);

// SAFETY: `new` requires that the process has only one thread.
unsafe impl Sync for Memory {}

impl Memory {
    /// Returns an allocator that has not touched any memory.
    ///
    /// # Safety
    ///
    /// The process must have one thread only.
    pub const unsafe fn new() -> Memory {
        Memory(talc::TalcCell::new(Heaps { first_taken: false }))
    }
}

// SAFETY: large blocks are whole mappings; only the size, which every call of GlobalAlloc repeats, decides that. All
// other blocks come from the inner allocator.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return map(layout.size());
        }
        // SAFETY: guaranteed by the caller.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_large(layout) {
            // SAFETY: alloc or realloc mapped exactly this.
            let _ = unsafe { munmap(block.cast(), layout.size()) };
            return;
        }
        // SAFETY: guaranteed by the caller.
        unsafe { self.0.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: guaranteed by the caller.
        let block = unsafe { self.alloc(layout) };
        if !is_large(layout) && !block.is_null() {
            // SAFETY: the block was just allocated with that size. A new mapping is zero already.
            unsafe { ptr::write_bytes(block, 0, layout.size()) };
        }
        block
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: GlobalAlloc's caller guarantees a valid size and alignment.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (is_large(layout), is_large(new)) {
            // SAFETY: guaranteed by the caller.
            (false, false) => unsafe { self.0.realloc(block, layout, size) },
            // SAFETY: alloc or realloc mapped exactly this.
            (true, true) => unsafe { mremap(block.cast(), layout.size(), size, MremapFlags::MAYMOVE) }
                .map_or(ptr::null_mut(), |block| block.cast()),
            // SAFETY: both blocks are at least as long as the copied part, and do not overlap.
            _ => unsafe {
                let to = self.alloc(new);
                if !to.is_null() {
                    ptr::copy_nonoverlapping(block, to, layout.size().min(size));
                    self.dealloc(block, layout);
                }
                to
            },
        }
    }
}

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE
}

/// Returns a new mapping, page-aligned and zero, or null.
fn map(size: usize) -> *mut u8 {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses.
    unsafe { mmap_anonymous(ptr::null_mut(), size, protection, MapFlags::PRIVATE) }
        .map_or(ptr::null_mut(), |block| block.cast())
}

/// C's memcpy.
///
/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: guaranteed by the caller.
    unsafe { sys::copy_forward(to, from, len) };
    to
}

/// C's memmove.
///
/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: guaranteed by the caller. Copying forward reads no byte that has been overwritten.
        unsafe { sys::copy_forward(to, from, len) };
    } else {
        // SAFETY: guaranteed by the caller. Copying backward reads no byte that has been overwritten.
        unsafe { sys::copy_backward(to, from, len) };
    }
    to
}

/// C's memset.
///
/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: guaranteed by the caller.
    unsafe { sys::fill(to, byte as u8, len) };
    to
}

/// C's memcmp.
///
/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, len: usize) -> i32 {
    for at in 0..len {
        // SAFETY: guaranteed by the caller. Volatile reads prevent the compiler from turning the loop into a call of
        // memcmp.
        let (one, other) = unsafe { (one.add(at).read_volatile(), other.add(at).read_volatile()) };
        if one != other {
            return i32::from(one) - i32::from(other);
        }
    }
    0
}

/// C's bcmp.
///
/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, len: usize) -> i32 {
    // SAFETY: guaranteed by the caller.
    unsafe { memcmp(one, other, len) }
}

/// C's strlen.
///
/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut len = 0;
    // SAFETY: guaranteed by the caller. Volatile as in memcmp.
    while unsafe { text.add(len).read_volatile() } != 0 {
        len += 1;
    }
    len
}
