use super::*;

/// Returns the properties for files and their values.
fn properties_of(files: &[(&str, &str)], version: Version) -> Vec<Property> {
    let setting = |(file, value): &(&str, &str)| Setting {
        at: String::new(),
        files: vec![((*file).to_owned(), (*value).to_owned())],
    };
    properties(&files.iter().map(setting).collect::<Vec<_>>(), version)
}

fn numbers(expected: &[(&str, u64)]) -> Vec<Property> {
    expected.iter().map(|(name, number)| ((*name).to_owned(), Value::Number(*number))).collect()
}

#[test]
fn limits_of_version_2_are_properties() {
    let files = [
        ("memory.max", "1000"),
        ("memory.swap.max", "max"),
        ("cpu.weight", "79"),
        ("cpu.max", "33333 100000"),
        ("pids.max", "128"),
        ("io.weight", "default 4950"),
        ("io.max", "8:0 rbps=1"),
    ];
    let expected = [
        ("MemoryMax", 1000),
        ("MemorySwapMax", u64::MAX),
        ("CPUWeight", 79),
        ("IOWeight", 4950),
        ("TasksMax", 128),
        ("CPUQuotaPerSecUSec", 340_000),
        ("CPUQuotaPeriodUSec", 100_000),
    ];
    assert_eq!(properties_of(&files, Version::Two), numbers(&expected));
    let expected = numbers(&[("CPUQuotaPerSecUSec", u64::MAX), ("CPUQuotaPeriodUSec", 50_000)]);
    assert_eq!(properties_of(&[("cpu.max", "max 50000")], Version::Two), expected);
    let sets = [("cpuset.cpus", "0-2,9"), ("cpuset.mems", "0")];
    let expected = [
        ("AllowedCPUs".to_owned(), Value::Set(vec![0b111, 0b10])),
        ("AllowedMemoryNodes".to_owned(), Value::Set(vec![1])),
    ];
    assert_eq!(properties_of(&sets, Version::Two), expected);
}

#[test]
fn limits_of_version_1_are_properties() {
    let files = [
        ("memory.limit_in_bytes", "1000"),
        ("cpu.shares", "512"),
        ("cpu.cfs_period_us", "50000"),
        ("cpu.cfs_quota_us", "75000"),
        ("cpuset.cpus", "0"),
        ("blkio.weight", "500"),
    ];
    let expected = [
        ("MemoryLimit", 1000),
        ("CPUShares", 512),
        ("BlockIOWeight", 500),
        ("CPUQuotaPerSecUSec", 1_500_000),
    ];
    assert_eq!(properties_of(&files, Version::One), numbers(&expected));
    let unlimited = properties_of(&[("cpu.cfs_quota_us", "-1")], Version::One);
    assert_eq!(unlimited, numbers(&[("CPUQuotaPerSecUSec", u64::MAX)]));
}

#[test]
fn what_is_no_set_is_none() {
    for list in ["", "x", "3-", "0-8192", "1,,2"] {
        assert_eq!(bits(list), None, "{list:?}");
    }
}
