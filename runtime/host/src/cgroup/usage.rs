//! Resource usage of a machine on the host, from the files of its cgroup.

use std::collections::BTreeMap;

use super::{Cgroup, Version};

/// Counters of the host's kernel for a machine. Missing counters are absent or 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostUsage {
    /// Block I/O: `(major, minor, word)` to bytes or requests, where the word is `rbytes`, `wbytes`, `rios` or `wios`.
    pub block_io: BTreeMap<(u32, u32, &'static str), u64>,
    /// Huge pages by page size: current bytes, maximum bytes, and number of failed allocations.
    pub hugetlb: BTreeMap<String, (u64, u64, u64)>,
    /// Number of periods, number of throttled periods, and throttled time in nanoseconds.
    pub throttling: (u64, u64, u64),
}

/// Words of `io.stat`, with the corresponding file and operation of version 1.
const BLOCK_IO: [(&str, &str, &str); 4] = [
    ("rbytes", "blkio.throttle.io_service_bytes", "Read"),
    ("wbytes", "blkio.throttle.io_service_bytes", "Write"),
    ("rios", "blkio.throttle.io_serviced", "Read"),
    ("wios", "blkio.throttle.io_serviced", "Write"),
];

impl HostUsage {
    /// Reads the counters of `cgroup`.
    pub fn of(cgroup: &Cgroup) -> HostUsage {
        let version = cgroup.version();
        let block_io = match version {
            Version::Two => block_io_2(&cgroup.read("io.stat")),
            Version::One => block_io_1(|file| cgroup.read(file)),
        };
        let cpu = cgroup.read("cpu.stat");
        let lost = match version {
            Version::Two => field(&cpu, "throttled_usec").saturating_mul(1000),
            Version::One => field(&cpu, "throttled_time"),
        };
        HostUsage {
            block_io,
            hugetlb: hugetlb(cgroup, version),
            throttling: (field(&cpu, "nr_periods"), field(&cpu, "nr_throttled"), lost),
        }
    }
}

/// Parses lines such as `8:0 rbytes=1 wbytes=2 rios=3 wios=4`.
fn block_io_2(text: &str) -> BTreeMap<(u32, u32, &'static str), u64> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let Some((major, minor)) = words.next().and_then(device) else { continue };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            if let (Some((word, ..)), Ok(value)) =
                (BLOCK_IO.iter().find(|(word, ..)| *word == name), value.parse())
            {
                found.insert((major, minor, *word), value);
            }
        }
    }
    found
}

/// Parses lines such as `8:0 Read 1`.
fn block_io_1(read: impl Fn(&str) -> String) -> BTreeMap<(u32, u32, &'static str), u64> {
    let mut found = BTreeMap::new();
    for (word, file, operation) in BLOCK_IO {
        for line in read(file).lines() {
            let words: Vec<&str> = line.split(' ').collect();
            if let &[number, of, value] = words.as_slice()
                && of == operation
                && let (Some((major, minor)), Ok(value)) = (device(number), value.parse())
            {
                found.insert((major, minor, word), value);
            }
        }
    }
    found
}

fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn hugetlb(cgroup: &Cgroup, version: Version) -> BTreeMap<String, (u64, u64, u64)> {
    let (now, most) = match version {
        Version::Two => ("current", "max"),
        Version::One => ("usage_in_bytes", "max_usage_in_bytes"),
    };
    let files = cgroup.files("hugetlb");
    let sizes = files.iter().filter_map(|file| {
        let (size, last) = file.strip_prefix("hugetlb.")?.split_once('.')?;
        (last == now).then(|| size.to_owned())
    });
    let number = |file: String| cgroup.read(&file).trim().parse().unwrap_or(0);
    sizes
        .map(|size| {
            let used = number(format!("hugetlb.{size}.{now}"));
            let (peak, failed) = match version {
                // Version 2 does not record the maximum: its `max` is the limit.
                Version::Two => (used, field(&cgroup.read(&format!("hugetlb.{size}.events")), most)),
                Version::One => {
                    (number(format!("hugetlb.{size}.{most}")), number(format!("hugetlb.{size}.failcnt")))
                }
            };
            (size, (used, peak, failed))
        })
        .collect()
}

/// Returns the number after `name` in a file with one name and number per line.
fn field(text: &str, name: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_io_is_the_same_from_both_versions() {
        let two = block_io_2("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5\n254:1 rbytes=6\nnonsense\n");
        let one = block_io_1(|file| {
            match file {
                "blkio.throttle.io_service_bytes" => {
                    "8:0 Read 1\n8:0 Write 2\n8:0 Sync 9\n254:1 Read 6\nTotal 9\n"
                }
                _ => "8:0 Read 3\n8:0 Write 4\nTotal 7\n",
            }
            .to_owned()
        });
        assert_eq!(two, one);
        assert_eq!(two[&(254, 1, "rbytes")], 6);
        assert_eq!(two.len(), 5);
    }

    #[test]
    fn a_field_is_a_whole_name() {
        assert_eq!(field("nr_periods 5\nnr_throttled 2\n", "nr_periods"), 5);
        assert_eq!(field("nr_periods 5\n", "nr"), 0);
    }
}
