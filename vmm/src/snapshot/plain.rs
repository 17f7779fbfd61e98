//! Structures of KVM's API as bytes.

// UNSAFETY: reads a structure's bytes, and makes a structure of bytes.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::{ptr, slice};

use devices::{Decoder, Encoder, StateError};
use kvm_bindings::{
    kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};

/// A structure that the kernel defines, and so the same in every program.
///
/// # Safety
///
/// All bytes of a value are initialized: it has no padding, or KVM or `Default` wrote the whole. Any bytes are a value.
pub unsafe trait Plain: Sized {}

// SAFETY: Linux's headers spell out all padding of these structures as fields, which are integers.
unsafe impl Plain for kvm_clock_data {}
// SAFETY: as above.
unsafe impl Plain for kvm_cpuid_entry2 {}
// SAFETY: as above.
unsafe impl Plain for kvm_debugregs {}
// SAFETY: as above; the union is as long as its array of bytes, and zero before KVM fills it.
unsafe impl Plain for kvm_irqchip {}
// SAFETY: as above.
unsafe impl Plain for kvm_lapic_state {}
// SAFETY: as above.
unsafe impl Plain for kvm_mp_state {}
// SAFETY: as above.
unsafe impl Plain for kvm_regs {}
// SAFETY: as above.
unsafe impl Plain for kvm_sregs {}
// SAFETY: as above.
unsafe impl Plain for kvm_vcpu_events {}
// SAFETY: as above.
unsafe impl Plain for kvm_xcrs {}
// SAFETY: as above; the array at its end has no elements.
unsafe impl Plain for kvm_xsave {}

/// Appends a structure's bytes.
pub fn put<T: Plain>(state: &mut Encoder, value: &T) {
    state.bytes(bytes(value));
}

/// Returns a structure's bytes.
pub fn bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` promises that all bytes of the value are initialized; they are borrowed as long as the value.
    unsafe { slice::from_raw_parts(ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// Reads a structure's bytes.
pub fn take<T: Plain>(state: &mut Decoder) -> Result<T, StateError> {
    let bytes = state.bytes()?;
    if bytes.len() != size_of::<T>() {
        return Err(StateError::Damaged("a structure of KVM has another size"));
    }
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the value has as many bytes, and cannot overlap with borrowed ones.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), value.as_mut_ptr().cast(), bytes.len()) };
    // SAFETY: all bytes were written, and `Plain` promises that any bytes are a value.
    Ok(unsafe { value.assume_init() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structure_comes_back_and_another_size_is_refused() {
        let regs = kvm_regs { rax: 1, rip: 0xffff_ffff_8100_0000, rflags: 2, ..Default::default() };
        let mut state = Encoder::default();
        put(&mut state, &regs);
        let bytes = state.finish();
        assert_eq!(take::<kvm_regs>(&mut Decoder::new(&bytes)), Ok(regs));
        assert!(take::<kvm_mp_state>(&mut Decoder::new(&bytes)).is_err());
    }
}
