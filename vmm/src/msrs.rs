//! The model-specific registers that the first kernel instruction expects to be set; KVM's reset values do for all
//! others.

use kvm_bindings::kvm_msr_entry;

/// IA32_MISC_ENABLE: string instructions may be fast (Intel SDM 4, table 2-2).
const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
/// IA32_MTRR_DEF_TYPE: MTRRs on, memory is write-back. Without it a kernel takes all memory for uncached.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const WRITE_BACK: u64 = 6;

/// Returns the registers of every vCPU. The TSC is left as KVM starts it, because KVM keeps those of vCPUs that are
/// made together in step.
pub fn boot() -> [kvm_msr_entry; 2] {
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    [msr(MISC_ENABLE, FAST_STRINGS), msr(MTRR_DEF_TYPE, MTRR_ENABLE | WRITE_BACK)]
}
