use super::*;

fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = registers;
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

fn get(table: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
    let found: Vec<_> = table.iter().filter(|e| e.function == function && e.index == index).collect();
    assert_eq!(found.len(), 1, "leaf {function:#x}.{index}");
    let e = found[0];
    [e.eax, e.ebx, e.ecx, e.edx]
}

/// A host that has every feature.
fn intel() -> Vec<kvm_cpuid_entry2> {
    vec![
        entry(0x0, 0, [0x1f, 0, 0, 0]),
        entry(0x1, 0, [0x806f8, 0x0710_0800, !0, !0]),
        entry(0x4, 0, [0xfc00_4121, 1, 2, 3]),
        entry(0x4, 1, [0xfc00_4122, 1, 2, 3]),
        entry(0x4, 2, [0xfc01_c143, 1, 2, 3]),
        entry(0x4, 3, [0xfc1f_c163, 1, 2, 3]),
        entry(0x4, 4, [0, 0, 0, 0]),
        entry(0x5, 0, [0x40, 0x40, 3, 0x20]),
        entry(0x6, 0, [0x77, 2, 9, 0]),
        entry(0xa, 0, [0x0830_0805, 0, 0, 0x603]),
        entry(0xb, 0, [1, 2, 0x100, 7]),
        entry(0xb, 1, [5, 32, 0x201, 7]),
        entry(0x1f, 0, [0, 0, 0, 0]),
        entry(0x4000_0000, 0, [0x4000_0100, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        entry(0x4000_0001, 0, [0x0100_7afb, 0, 0, 0]),
        entry(0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
        entry(0x8000_0001, 0, [0, 0, 0x121, 0x2c10_0800]),
        entry(0x8000_0008, 0, [0x3934, 0, 0, 0]),
    ]
}

fn amd() -> Vec<kvm_cpuid_entry2> {
    vec![
        entry(0x0, 0, [0xd, 0, 0, 0]),
        entry(0x1, 0, [0x870f10, 0, 0, 0]),
        entry(0x8000_0000, 0, [0x8000_0021, 0, 0, 0]),
        entry(0x8000_0001, 0, [0, 0, !0, !0]),
        entry(0x8000_0008, 0, [0x3030, 0, 0x7fff_7fff, 0]),
        entry(0x8000_000a, 0, [1, 8, 0, !0]),
        entry(0x8000_001d, 0, [0xfc00_4121, 1, 2, 3]),
        entry(0x8000_001d, 3, [0xfc03_c163, 1, 2, 3]),
        entry(0x8000_001e, 0, [9, 0x109, 3, 0]),
        entry(0x8000_0022, 0, [3, 6, 0, 0]),
    ]
}

#[test]
fn features_that_cannot_work_are_cleared() {
    let table = template(&intel(), 2, true);
    let [_, _, ecx, edx] = get(&table, 1, 0);
    assert_eq!(ecx & (MONITOR | VMX | PDCM), 0);
    assert_eq!(edx & DEBUG_STORE, 0);
    for leaf in [0x5, 0xa] {
        assert!(table.iter().all(|e| e.function != leaf), "{leaf:#x}");
    }
    assert_eq!(get(&table, 6, 0), [4, 0, 0, 0]);

    let table = template(&amd(), 2, true);
    let [_, _, ecx, _] = get(&table, 0x8000_0001, 0);
    assert_eq!(ecx & (SVM | PERFCTR_CORE | MWAITX), 0);
    assert_eq!(get(&table, 0x8000_000a, 0), [0; 4]);
    assert!(table.iter().all(|e| e.function != 0x8000_0022));
}

#[test]
fn a_guest_sees_the_hypervisor_bit_and_its_timers() {
    for host in [intel(), amd()] {
        let [_, _, ecx, _] = get(&template(&host, 1, true), 1, 0);
        assert_eq!(ecx & (HYPERVISOR | X2APIC | TSC_DEADLINE), HYPERVISOR | X2APIC | TSC_DEADLINE);
        let [_, _, ecx, _] = get(&template(&host, 1, false), 1, 0);
        assert_eq!(ecx & TSC_DEADLINE, 0);
    }
    assert_eq!(get(&template(&intel(), 1, true), 0x4000_0000, 0)[0], 0x4000_0001);
    assert_eq!(get(&template(&intel(), 1, true), 0x4000_0001, 0)[0], 0x0100_7afb);
}

#[test]
fn the_topology_is_one_thread_per_core() {
    let mut table = template(&intel(), 6, true);
    personalize(&mut table, 5);
    assert_eq!(get(&table, 1, 0)[1], 0x0506_0800);
    assert_ne!(get(&table, 1, 0)[3] & HTT, 0);
    for leaf in [0xb, 0x1f] {
        assert_eq!(get(&table, leaf, 0), [0, 1, 0x100, 5]);
        assert_eq!(get(&table, leaf, 1), [3, 6, 0x201, 5]);
        assert_eq!(get(&table, leaf, 2), [0, 0, 2, 5]);
    }
    // Each CPU has its own first and second level caches; all share the third (ids up to 8); 8 core ids per package.
    let sharing = |index| get(&table, 4, index)[0] >> 14 & 0xfff;
    assert_eq!([sharing(0), sharing(1), sharing(2), sharing(3)], [0, 0, 0, 7]);
    assert_eq!(get(&table, 4, 3)[0] >> 26, 7);
    assert_eq!(get(&table, 4, 3)[0] & 0x3fff, 0x0163);
    assert_eq!(get(&table, 4, 4), [0; 4]);
}

#[test]
fn the_topology_in_amds_leaves_agrees() {
    let mut table = template(&amd(), 4, true);
    personalize(&mut table, 3);
    assert_eq!(get(&table, 0x8000_0008, 0)[2], 0x7fff_2f03);
    assert_eq!(get(&table, 0x8000_001e, 0), [3, 3, 0, 0]);
    assert_eq!(get(&table, 0x8000_001d, 3)[0] >> 14 & 0xfff, 3);
    assert_ne!(get(&table, 0x8000_0001, 0)[2] & CMP_LEGACY, 0);
    assert!(table.iter().all(|e| e.function != 0xb));
}

#[test]
fn a_single_cpu_has_no_neighbours() {
    let table = template(&intel(), 1, true);
    assert_eq!(get(&table, 1, 0)[3] & HTT, 0);
    assert_eq!(get(&table, 0xb, 1), [0, 1, 0x201, 0]);
    assert_eq!(get(&table, 4, 3)[0] >> 14, 0);
    assert_eq!(get(&template(&amd(), 1, true), 0x8000_0008, 0)[2] & 0xf0ff, 0);
}

#[test]
fn an_empty_host_table_gives_an_empty_guest_table() {
    assert!(template(&[], 1, true).is_empty());
}

#[test]
fn the_largest_machine_fits_its_fields() {
    let mut table = template(&intel(), 254, true);
    personalize(&mut table, 253);
    assert_eq!(get(&table, 1, 0)[1], 0xfdfe_0800);
    assert_eq!(get(&table, 4, 3)[0] >> 26, 63);
    assert_eq!(get(&table, 0xb, 1), [8, 254, 0x201, 253]);
}
