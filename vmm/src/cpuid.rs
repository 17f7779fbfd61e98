//! The CPUID of the guest's CPUs: the features that KVM supports on this host, without those that cannot work in this
//! machine, plus a topology of one package with one thread per core.
//!
//! Intel SDM 2A, CPUID; AMD APM 3, appendix E; Linux Documentation/virt/kvm/x86/cpuid.rst. An APIC id is the vCPU's
//! index everywhere.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1, ECX.
const MONITOR: u32 = 1 << 3;
const VMX: u32 = 1 << 5;
const PDCM: u32 = 1 << 15;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX.
const DEBUG_STORE: u32 = 1 << 21;
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX.
const CMP_LEGACY: u32 = 1 << 1;
const SVM: u32 = 1 << 2;
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
const PERFCTR_CORE: u32 = 1 << 23;
const PERFCTR_NB: u32 = 1 << 24;
const PERFCTR_LLC: u32 = 1 << 28;
const MWAITX: u32 = 1 << 29;

/// KVM's leaves. 0x4000_0001 is the last of them; the next ones are Hyper-V's.
const KVM_SIGNATURE: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = 0x4000_0001;

/// Level types of the extended topology leaves.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Returns the CPUID table that all vCPUs share; [`personalize`] adds the APIC id of each.
///
/// `supported` is the result of KVM_GET_SUPPORTED_CPUID. `tsc_deadline` says whether KVM has the TSC deadline timer,
/// which that ioctl omits because it depends on the in-kernel APIC (KVM API 4.46).
pub fn template(supported: &[kvm_cpuid_entry2], vcpus: u8, tsc_deadline: bool) -> Vec<kvm_cpuid_entry2> {
    let mut table: Vec<_> = supported
        .iter()
        .filter(|entry| !matches!(entry.function, 0x5 | 0xa | 0xb | 0x1f | 0x8000_001e | 0x8000_0022))
        .copied()
        .collect();
    for entry in &mut table {
        adapt(entry, vcpus, tsc_deadline);
    }
    add_topology(&mut table, supported, vcpus);
    table
}

/// Clears the features of one leaf that cannot work, and sets its topology fields.
fn adapt(entry: &mut kvm_cpuid_entry2, vcpus: u8, tsc_deadline: bool) {
    let cpus = u32::from(vcpus);
    match entry.function {
        0x1 => {
            // No nested guests and no performance counters. MWAIT would keep the host's CPU busy.
            entry.ecx &= !(MONITOR | VMX | PDCM);
            entry.edx &= !DEBUG_STORE;
            entry.ecx |= X2APIC | HYPERVISOR;
            set(&mut entry.ecx, TSC_DEADLINE, tsc_deadline);
            set(&mut entry.edx, HTT, vcpus > 1);
            entry.ebx = entry.ebx & 0x0000_ffff | cpus.min(255) << 16;
        }
        // Caches: each CPU has its own first two levels; all CPUs share the others (in Intel's leaf and in AMD's).
        0x4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 0x7;
            let sharing = if level < 3 { 1 } else { cpus };
            entry.eax = entry.eax & 0x3fff | (sharing.next_power_of_two() - 1) << 14;
            if entry.function == 0x4 {
                entry.eax |= (cpus.next_power_of_two() - 1).min(0x3f) << 26;
            }
        }
        // The MSRs of energy bias and thermal interrupts are missing. ARAT, an APIC timer that never stops, remains.
        0x6 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (entry.eax & 1 << 2, 0, 0, 0),
        KVM_SIGNATURE => entry.eax = KVM_FEATURES,
        0x8000_0001 => {
            entry.ecx &= !(SVM | PERFCTR_CORE | PERFCTR_NB | PERFCTR_LLC | MWAITX);
            let amd = entry.ecx & TOPOLOGY_EXTENSIONS != 0;
            set(&mut entry.ecx, CMP_LEGACY, amd && vcpus > 1);
        }
        // AMD: number of cores minus one, and the number of APIC id bits that identify the core.
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | (cpus - 1) | id_bits(vcpus) << 12,
        // The SVM feature leaf is cleared together with SVM.
        0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        _ => {}
    }
}

/// Adds the extended topology leaves: one thread per core, `vcpus` cores in the package.
fn add_topology(table: &mut Vec<kvm_cpuid_entry2>, supported: &[kvm_cpuid_entry2], vcpus: u8) {
    let has = |function| supported.iter().any(|entry| entry.function == function);
    for function in [0xb, 0x1f].into_iter().filter(|function| has(*function)) {
        let level = |index: u32, kind: u32, shift: u32, cpus: u32| kvm_cpuid_entry2 {
            function,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: cpus,
            ecx: index | kind << 8,
            ..Default::default()
        };
        table.push(level(0, LEVEL_SMT, 0, 1));
        table.push(level(1, LEVEL_CORE, id_bits(vcpus), u32::from(vcpus)));
        table.push(level(2, 0, 0, 0));
    }
    if has(0x8000_001e) {
        table.push(kvm_cpuid_entry2 { function: 0x8000_001e, ..Default::default() });
    }
}

/// Writes the APIC id of vCPU `id` into the leaves that contain it.
pub fn personalize(table: &mut [kvm_cpuid_entry2], id: u8) {
    let id = u32::from(id);
    for entry in table {
        match entry.function {
            0x1 => entry.ebx = entry.ebx & 0x00ff_ffff | id << 24,
            0xb | 0x1f => entry.edx = id,
            // The extended APIC id, the core id, and node 0 of one node.
            0x8000_001e => (entry.eax, entry.ebx) = (id, id & 0xff),
            _ => {}
        }
    }
}

/// Number of APIC id bits that distinguish `vcpus` cores.
fn id_bits(vcpus: u8) -> u32 {
    u32::from(vcpus).next_power_of_two().trailing_zeros()
}

fn set(register: &mut u32, bit: u32, on: bool) {
    if on {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}

#[cfg(test)]
mod tests;
