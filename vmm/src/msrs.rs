//! The model-specific registers that must be set before the kernel's first instruction. All others keep KVM's reset
//! values.

use kvm_bindings::kvm_msr_entry;

/// IA32_MISC_ENABLE: string instructions may be fast (Intel SDM 4, table 2-2).
const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
/// IA32_MTRR_DEF_TYPE: MTRRs enabled, memory is write-back. Without it a kernel treats all memory as uncached.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const WRITE_BACK: u64 = 6;

/// Returns the registers that every vCPU gets. The TSC is not among them, because KVM synchronizes the TSCs of vCPUs
/// that are created together.
pub fn boot() -> [kvm_msr_entry; 2] {
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    [msr(MISC_ENABLE, FAST_STRINGS), msr(MTRR_DEF_TYPE, MTRR_ENABLE | WRITE_BACK)]
}
