//! What a program finds of its kernel, beside the host's with runc, as generated lists: system calls, sockets, kernel
//! parameters, files of /proc and /sys. Nothing may be absent but what is known to be.

use tests::Bundle;

use super::plain;

/// Names, and why a guest does not have them.
type Absent = &'static [(&'static str, &'static str)];

/// A list that a program of the container prints, with one name in each line.
pub struct Surface {
    pub of: &'static str,
    pub bundle: fn(Bundle) -> Bundle,
    pub script: &'static str,
    /// Lists of names that a guest does not have, and why. `*` stands for any text.
    pub absent: &'static [Absent],
}

impl Surface {
    /// Whether `name` is known to be absent.
    pub fn knows(&self, name: &str) -> bool {
        self.absent.iter().copied().flatten().any(|(pattern, _)| matches(name, pattern))
    }
}

/// Whether `name` is `pattern`, in which `*` stands for any text.
fn matches(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((start, rest)) => name
            .strip_prefix(start)
            .is_some_and(|end| (0..=end.len()).any(|at| end.get(at..).is_some_and(|end| matches(end, rest)))),
    }
}

/// Copies the program of tests/guest to the bundle.
fn with_guest_program(bundle: Bundle) -> Bundle {
    bundle.copy_guest_program();
    bundle
}

/// Capabilities of an administrator: with them a container boots the full kernel.
fn administrator(bundle: Bundle) -> Bundle {
    bundle.with(|c| {
        for set in ["bounding", "effective", "permitted"] {
            let all = c["process"]["capabilities"][set].as_array_mut().expect("a list of capabilities");
            all.extend(["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_NICE"].map(|name| name.into()));
        }
    })
}

/// System calls that no guest has.
const NO_CALLS: &[(&str, &str)] = &[
    ("139", "sysfs(2) is obsolete"),
    ("163", "no process accounting"),
    ("175", "no modules"),
    ("176", "no modules"),
    ("179", "no quotas"),
    ("246", "no kexec"),
    ("313", "no modules"),
    ("320", "no kexec"),
    ("443", "no quotas"),
];

pub const SURFACES: &[Surface] = &[
    Surface {
        of: "system calls",
        bundle: with_guest_program,
        // The program prints the absent ones.
        script: "guest calls >/tmp/absent; seq 0 450 | grep -v -x -f /tmp/absent",
        absent: &[
            NO_CALLS,
            &[
                ("167", "swapon(2) is of an administrator"),
                ("168", "swapoff(2) is of an administrator"),
                ("237", "mbind(2) is of CAP_SYS_NICE"),
                ("238", "set_mempolicy(2) is of CAP_SYS_NICE"),
                ("239", "get_mempolicy(2) is of CAP_SYS_NICE"),
                ("256", "migrate_pages(2) is of CAP_SYS_NICE"),
                ("279", "move_pages(2) is of CAP_SYS_NICE"),
                ("321", "bpf(2) is of an administrator"),
                ("450", "set_mempolicy_home_node(2) is of CAP_SYS_NICE"),
            ],
        ],
    },
    Surface {
        of: "system calls of an administrator",
        bundle: |b| administrator(with_guest_program(b)),
        script: "guest calls >/tmp/absent; seq 0 450 | grep -v -x -f /tmp/absent",
        absent: &[NO_CALLS],
    },
    Surface {
        of: "sockets: family, type, protocol",
        bundle: with_guest_program,
        script: "guest sockets",
        absent: &[&[
            ("10 1 262", "Multipath TCP is of IPv4"),
            ("15 *", "IPsec's keys are of an administrator"),
            ("16 2 6", "IPsec is of an administrator"),
            ("16 3 6", "IPsec is of an administrator"),
            ("16 2 9", "no auditing"),
            ("16 3 9", "no auditing"),
            ("16 2 11", "no events of processes"),
            ("16 3 11", "no events of processes"),
            ("16 2 21", "no settings of ciphers"),
            ("16 3 21", "no settings of ciphers"),
            ("2 2 115", "L2TP is of an administrator"),
            ("10 2 115", "L2TP is of an administrator"),
        ]],
    },
    Surface {
        of: "sockets of an administrator",
        bundle: |b| administrator(with_guest_program(b)),
        script: "guest sockets",
        absent: &[&[
            ("10 1 262", "Multipath TCP is of IPv4"),
            ("16 2 9", "no auditing"),
            ("16 3 9", "no auditing"),
            ("16 2 11", "no events of processes"),
            ("16 3 11", "no events of processes"),
            ("16 2 21", "no settings of ciphers"),
            ("16 3 21", "no settings of ciphers"),
        ]],
    },
    Surface {
        of: "kernel parameters",
        bundle: plain,
        script: "find /proc/sys -type f | sed s,^/proc/sys/,,",
        absent: &[&[
            ("abi/*", "no vsyscall32 parameter beside the 32-bit programs"),
            ("crypto/fips_*", "no FIPS mode"),
            ("debug/*", "no kprobes"),
            ("dev/*", "devices of the host"),
            ("fs/dir-notify-enable", "no dnotify, which inotify replaced"),
            ("fs/binfmt_misc/*", "of an administrator"),
            ("fs/nfs/*", "of an administrator"),
            ("fs/quota/*", "no quotas"),
            ("fs/verity/*", "no fs-verity"),
            ("fs/xfs/*", "no XFS"),
            ("kernel/acct", "no process accounting"),
            ("kernel/acpi_*", "no ACPI"),
            ("kernel/apparmor_*", "no AppArmor"),
            ("kernel/*apparmor*", "no AppArmor"),
            ("kernel/bpf_stats_enabled", "BPF is of an administrator"),
            ("kernel/unprivileged_bpf_disabled", "BPF is of an administrator"),
            ("kernel/firmware_config/*", "no firmware"),
            ("kernel/ftrace_*", "no ftrace"),
            ("kernel/stack_tracer_enabled", "no ftrace"),
            ("kernel/trace*", "no ftrace"),
            ("kernel/hardlockup_*", "the host watches the CPUs"),
            ("kernel/softlockup_*", "the host watches the CPUs"),
            ("kernel/soft_watchdog", "the host watches the CPUs"),
            ("kernel/nmi_watchdog", "the host watches the CPUs"),
            ("kernel/watchdog*", "the host watches the CPUs"),
            ("kernel/hung_task_*", "no detector of hung tasks"),
            ("kernel/kexec_*", "no kexec"),
            ("kernel/keys/persistent_keyring_expiry", "no persistent keyrings"),
            ("kernel/modprobe", "no modules"),
            ("kernel/modules_disabled", "no modules"),
            ("kernel/msg_next_id", "no CRIU: checkpoints are of the machine"),
            ("kernel/sem_next_id", "no CRIU: checkpoints are of the machine"),
            ("kernel/shm_next_id", "no CRIU: checkpoints are of the machine"),
            ("kernel/ns_last_pid", "no CRIU: checkpoints are of the machine"),
            ("kernel/numa_balancing*", "one memory node"),
            ("kernel/sched_*", "debugging and energy of the host's scheduler"),
            ("kernel/yama/*", "no Yama"),
            ("net/core/bpf_jit_*", "no BPF JIT compiler"),
            ("net/core/default_qdisc", "queueing disciplines are of an administrator"),
            ("net/core/xfrm_*", "IPsec is of an administrator"),
            ("net/*/xfrm*", "IPsec is of an administrator"),
            ("net/ipv4/cipso_*", "no security labels"),
            ("net/ipv6/calipso_*", "no security labels"),
            ("net/ipv4/fib_multipath_*", "routes with several next hops are of an administrator"),
            ("net/ipv4/*_l3mdev_accept", "VRF is of an administrator"),
            ("net/ipv6/conf/*", "preferences of routers, segment routing"),
            ("net/bridge/*", "bridges are of an administrator"),
            ("net/netfilter/*", "helpers of packet filters are of an administrator"),
            ("net/dccp/*", "DCCP is of an administrator"),
            ("net/mpls/*", "MPLS is of an administrator"),
            ("net/rds/*", "no RDS"),
            ("net/tipc/*", "no TIPC"),
            ("sunrpc/*", "of an administrator"),
            ("vm/*hugepages*", "huge page files are of an administrator"),
            ("vm/hugetlb_*", "huge page files are of an administrator"),
            ("vm/memory_failure_*", "the host's memory fails, not the guest's"),
            ("vm/min_slab_ratio", "one memory node"),
            ("vm/min_unmapped_ratio", "one memory node"),
            ("vm/numa_*", "one memory node"),
            ("vm/zone_reclaim_mode", "one memory node"),
        ]],
    },
    Surface {
        of: "files of /proc",
        bundle: plain,
        script: "cd /proc; ls | grep -v '^[0-9]'; cd self; find . -maxdepth 1; cut -d: -f1 status | sed s/^/status:/; \
                 cut -d: -f1 io | sed s/^/io:/; ls net",
        absent: &[&[
            ("./autogroup", "a machine has one session"),
            ("./cpu_resctrl_groups", "no cache allocation"),
            ("./cpuset", "version 1 of cgroups; /proc/PID/cgroup has it"),
            ("./ksm_*", "no KSM"),
            ("./loginuid", "no auditing"),
            ("./sessionid", "no auditing"),
            ("./numa_maps", "memory policies are of CAP_SYS_NICE"),
            ("./patch_state", "no live patches"),
            ("./sched", "debugging of the scheduler"),
            ("./stack", "debugging of the kernel"),
            ("./timers", "no CRIU: checkpoints are of the machine"),
            ("./timerslack_ns", "no CRIU: checkpoints are of the machine"),
            ("acpi", "no ACPI"),
            ("asound", "no sound"),
            ("dma", "no ISA bus"),
            ("dynamic_debug", "debugging of the kernel"),
            ("fb", "no display"),
            ("kcore", "no access to the kernel's memory"),
            ("mdstat", "no RAID"),
            ("modules", "no modules"),
            ("mtrr", "no MTRR"),
            ("sched_debug", "debugging of the scheduler"),
            ("schedstat", "debugging of the scheduler"),
            ("scsi", "no SCSI"),
            ("slabinfo", "no statistics of the allocator"),
            ("spl", "no ZFS"),
            ("swaps", "swap is of an administrator"),
            ("timer_list", "debugging of the kernel"),
            ("vmallocinfo", "debugging of the kernel"),
            ("status:HugetlbPages", "huge page files are of an administrator"),
            ("bnep", "no Bluetooth"),
            ("can", "CAN is of an administrator"),
            ("can-stats", "CAN is of an administrator"),
            ("connector", "no events of processes"),
            ("ip6_mr_*", "multicast routes are of an administrator"),
            ("ip_mr_*", "multicast routes are of an administrator"),
            ("ip_tables_*", "iptables is of an administrator"),
            ("ip6_tables_*", "iptables is of an administrator"),
            ("ip_vs*", "IPVS is of an administrator"),
            ("nf_conntrack*", "files of tracked connections are of an administrator"),
            ("nfsfs", "NFS is of an administrator"),
            ("rpc", "NFS is of an administrator"),
            ("pfkey", "IPsec is of an administrator"),
            ("psched", "queueing disciplines are of an administrator"),
            ("rt_acct", "no classes of routes"),
            ("vlan", "VLANs are of an administrator"),
            ("wireless", "no wireless interfaces"),
            ("xfrm_stat", "IPsec is of an administrator"),
            ("l2cap", "no Bluetooth"),
            ("hci", "no Bluetooth"),
            ("sco", "no Bluetooth"),
        ]],
    },
    Surface {
        of: "lines of /proc",
        bundle: plain,
        script: "cd /proc; for f in meminfo stat cpuinfo self/smaps_rollup; do \
                 sed 's/[: \t].*//' $f | grep -v -e '^cpu[0-9]' -e '^[0-9a-f]*-' | sed s,^,$f:,; done",
        absent: &[&[
            ("meminfo:HardwareCorrupted", "the host's memory fails, not the guest's"),
            ("meminfo:Huge*", "huge page files are of an administrator"),
            ("meminfo:Z*", "no zswap"),
            ("meminfo:Swap*", "swap is of an administrator"),
        ]],
    },
    Surface {
        of: "file systems",
        bundle: administrator,
        script: "cut -f2 /proc/filesystems",
        absent: &[&[
            ("debugfs", "debugging of the kernel"),
            ("tracefs", "no ftrace"),
            ("efivarfs", "no EFI"),
            ("pstore", "no firmware"),
            ("securityfs", "no security modules with files"),
            ("configfs", "no devices to configure"),
            ("cpuset", "the cpuset controller is of version 2"),
            ("btrfs", "not one of the file systems of the full kernel"),
            ("ext2", "not one of the file systems of the full kernel"),
            ("xfs", "not one of the file systems of the full kernel"),
        ]],
    },
    Surface {
        of: "directories of /sys",
        bundle: plain,
        script: "cd /sys; find kernel/mm kernel/cgroup -maxdepth 2; ls fs; ls -1 /sys/class/net/lo",
        absent: &[&[
            ("bpf", "BPF is of an administrator"),
            ("pstore", "no firmware"),
            ("resctrl", "no cache allocation"),
            ("kernel/mm/hugepages*", "huge page files are of an administrator"),
            ("kernel/mm/ksm*", "no KSM"),
            ("kernel/mm/lru_gen*", "another reclaim of memory, which Debian has but does not enable"),
            ("kernel/mm/numa*", "one memory node"),
            ("kernel/mm/memory_tiers*", "one memory node"),
            ("kernel/mm/swap*", "swap is of an administrator"),
            ("power", "no power management"),
            ("phys_*", "no switch devices"),
        ]],
    },
    Surface {
        of: "features of the processor",
        bundle: plain,
        script: "grep -m1 ^flags /proc/cpuinfo | cut -d: -f2 | tr ' ' '\n'",
        absent: &[&[
            ("acpi", "the host's thermal control"),
            ("cmp_legacy", "the cores of a processor are counted otherwise"),
            ("la57", "no 5-level paging"),
            ("monitor", "KVM does not offer MONITOR and MWAIT"),
            ("mpx", "KVM does not offer MPX"),
            ("vgif", "no nested virtualization"),
            ("svm*", "no nested virtualization"),
            ("vmx*", "no nested virtualization"),
            ("npt", "no nested virtualization"),
            ("nrip_save", "no nested virtualization"),
            ("ept*", "no nested virtualization"),
            ("pat", "no PAT"),
            ("mtrr", "no MTRR"),
        ]],
    },
];
