//! The state of a vCPU.
//!
//! KVM documents what each call does, but no order. This one is that of other monitors; the reasons are beside the calls.

// UNSAFETY: KVM_SET_XSAVE reads a buffer of which its wrapper does not know the size.
#![allow(unsafe_code)]

use devices::{Decoder, Encoder, StateError};
use kvm_bindings::{Msrs, kvm_mp_state, kvm_msr_entry, kvm_xsave};
use kvm_ioctls::VcpuFd;

use super::plain::{put, take};
use crate::kvm::error::{KvmError, RestoreError, call};

/// IA32_TIME_STAMP_COUNTER.
const TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE.
const TSC_DEADLINE: u32 = 0x6e0;
/// A counter that no machine reaches.
const FAR: u64 = 1 << 62;
/// Registers that KVM keeps for a guest but does not list: the MTRRs (Intel SDM 4, table 2-2).
const UNLISTED: [std::ops::RangeInclusive<u32>; 5] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x2ff..=0x2ff];
/// Registers of one call. KVM accepts 256.
const CHUNK: usize = 128;
/// Limit of model-specific registers in a state.
const MSRS_MAX: usize = 1024;

/// Returns what [`save`] writes.
pub fn state(vcpu: &VcpuFd, listed: &[u32]) -> Result<Vec<u8>, KvmError> {
    let mut state = Encoder::default();
    save(vcpu, listed, &mut state)?;
    Ok(state.finish())
}

/// Writes the state of a vCPU that does not run. `listed` are the model-specific registers that KVM lists.
pub fn save(vcpu: &VcpuFd, listed: &[u32], state: &mut Encoder) -> Result<(), KvmError> {
    // First: it lets KVM process pending INIT and SIPI, which changes registers.
    put(state, &vcpu.get_mp_state().map_err(call("read a vcpu's run state"))?);
    put(state, &vcpu.get_regs().map_err(call("read a vcpu's registers"))?);
    put(state, &vcpu.get_sregs().map_err(call("read a vcpu's system registers"))?);
    // Fails if the guest may use more state than 4 KiB (AMX), which the CPUID of this process never offers.
    put(state, &vcpu.get_xsave().map_err(call("read a vcpu's extended state"))?);
    put(state, &vcpu.get_xcrs().map_err(call("read a vcpu's extended control registers"))?);
    put(state, &vcpu.get_debug_regs().map_err(call("read a vcpu's debug registers"))?);
    put(state, &vcpu.get_lapic().map_err(call("read a vcpu's local apic"))?);
    let msrs = read_msrs(vcpu, listed)?;
    state.u32(msrs.len() as u32);
    for msr in &msrs {
        state.u32(msr.index).u64(msr.data);
    }
    // Last: reading other state may change what is pending.
    put(state, &vcpu.get_vcpu_events().map_err(call("read a vcpu's events"))?);
    state.u32(vcpu.get_tsc_khz().map_err(call("read a vcpu's tsc frequency"))?);
    Ok(())
}

/// Reads all registers that KVM also accepts again, in the order in which they must be written.
fn read_msrs(vcpu: &VcpuFd, listed: &[u32]) -> Result<Vec<kvm_msr_entry>, KvmError> {
    let unlisted = UNLISTED.into_iter().flatten().filter(|index| !listed.contains(index));
    let wanted: Vec<u32> =
        listed.iter().copied().chain(unlisted).filter(|index| ![TSC, TSC_DEADLINE].contains(index)).collect();
    let mut all = Vec::with_capacity(wanted.len() + 2);
    for chunk in wanted.chunks(CHUNK) {
        let entries = chunk.iter().map(|index| entry(*index, 0)).collect();
        let read = accepted(entries, |msrs| get_msrs(vcpu, msrs))?;
        // A register that KVM shows but does not accept, such as a version, is the same in every machine.
        all.extend(accepted(read, |msrs| set_msrs(vcpu, msrs))?);
    }
    // These two are not written back: that would stop the clock, and arm the timer again.
    let mut time = accepted(vec![entry(TSC, 0), entry(TSC_DEADLINE, 0)], |msrs| get_msrs(vcpu, msrs))?;
    if let [tsc, deadline] = &mut time[..]
        && deadline.data == 0
    {
        // The timer is off, or has fired and its interrupt is not delivered yet: KVM reads 0 for both. A timer that fires
        // once more does no harm, and one that never fires stops the guest.
        deadline.data = tsc.data;
    }
    // The timer counts from the counter and so comes after it. Nothing else depends on an order.
    let deadline = if time.len() > 1 { time.pop() } else { None };
    Ok(time.into_iter().chain(all).chain(deadline).collect())
}

/// Calls `op` for the entries until it has accepted each, or refused it alone. Returns those that it accepted.
fn accepted(
    entries: Vec<kvm_msr_entry>,
    mut op: impl FnMut(&mut Msrs) -> Result<usize, KvmError>,
) -> Result<Vec<kvm_msr_entry>, KvmError> {
    let mut all = Vec::with_capacity(entries.len());
    let mut rest = &entries[..];
    while !rest.is_empty() {
        let mut msrs = Msrs::from_entries(rest).expect("a chunk fits");
        // KVM stops at the first register that it refuses.
        let count = op(&mut msrs)?.min(rest.len());
        all.extend_from_slice(&msrs.as_slice()[..count]);
        if let Some(refused) = rest.get(count) {
            log::trace!("kvm: model-specific register {:#x} is not saved", refused.index);
        }
        rest = &rest[(count + 1).min(rest.len())..];
    }
    Ok(all)
}

fn get_msrs(vcpu: &VcpuFd, msrs: &mut Msrs) -> Result<usize, KvmError> {
    vcpu.get_msrs(msrs).map_err(call("read a vcpu's model-specific registers"))
}

fn set_msrs(vcpu: &VcpuFd, msrs: &Msrs) -> Result<usize, KvmError> {
    vcpu.set_msrs(msrs).map_err(call("set a vcpu's model-specific registers"))
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..Default::default() }
}

/// Makes a new vCPU, which has its CPUID, continue from what [`save`] wrote. `first` is true for the first vCPU of the machine.
pub fn restore(vcpu: &VcpuFd, first: bool, state: &mut Decoder) -> Result<(), RestoreError> {
    vcpu.set_mp_state(take::<kvm_mp_state>(state)?).map_err(call("set a vcpu's run state"))?;
    // Clears pending exceptions, so it comes before the events.
    vcpu.set_regs(&take(state)?).map_err(call("set a vcpu's registers"))?;
    // Contains the mode of the local APIC, and CR4.OSXSAVE, which XCR0 needs.
    vcpu.set_sregs(&take(state)?).map_err(call("set a vcpu's system registers"))?;
    let xsave = take::<kvm_xsave>(state)?;
    // SAFETY: KVM reads as many bytes as the guest may use state, which was at most the structure's 4 KiB when it was saved;
    // the guest's CPUID, which determines it, is the same.
    unsafe { vcpu.set_xsave(&xsave) }.map_err(call("set a vcpu's extended state"))?;
    vcpu.set_xcrs(&take(state)?).map_err(call("set a vcpu's extended control registers"))?;
    vcpu.set_debug_regs(&take(state)?).map_err(call("set a vcpu's debug registers"))?;
    // Contains the timer's mode, which the deadline needs.
    vcpu.set_lapic(&take(state)?).map_err(call("set a vcpu's local apic"))?;
    restore_msrs(vcpu, first, state)?;
    vcpu.set_vcpu_events(&take(state)?).map_err(call("set a vcpu's events"))?;
    let (khz, own) = (state.u32()?, vcpu.get_tsc_khz().map_err(call("read a vcpu's tsc frequency"))?);
    // NTP corrects 500 ppm. The hosts' own measurements of one CPU differ by less.
    if u64::from(khz.abs_diff(own)) * 1_000_000 > u64::from(own) * 250 {
        return Err(StateError::Foreign("the host's tsc has another frequency").into());
    }
    // Tells the guest's watchdogs that it was stopped. EINVAL: the guest does not use KVM's clock.
    let _ = vcpu.kvmclock_ctrl();
    Ok(())
}

fn restore_msrs(vcpu: &VcpuFd, first: bool, state: &mut Decoder) -> Result<(), RestoreError> {
    let count = state.u32()? as usize;
    if count > MSRS_MAX {
        return Err(StateError::Damaged("too many model-specific registers").into());
    }
    let mut msrs = Vec::with_capacity(count + 1);
    for _ in 0..count {
        msrs.push(entry(state.u32()?, state.u64()?));
    }
    // KVM takes a counter that is within a second of the last one that was written as an attempt to synchronize vCPUs, and
    // the first one was 0, when the vCPU was created (Linux, kvm_synchronize_tsc()). A guest that was saved in its first
    // second would get a counter that goes backwards. The other vCPUs are to be synchronized with the first.
    if first && let Some(at) = msrs.iter().position(|msr| msr.index == TSC) {
        msrs.insert(at, entry(TSC, msrs[at].data ^ FAR));
    }
    for chunk in msrs.chunks(CHUNK) {
        let taken = set_msrs(vcpu, &Msrs::from_entries(chunk).expect("a chunk fits"))?;
        if let Some(refused) = chunk.get(taken) {
            return Err(KvmError::Msr { index: refused.index }.into());
        }
    }
    Ok(())
}
