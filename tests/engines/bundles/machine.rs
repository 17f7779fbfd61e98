//! Reports of what a container finds of its machine: size, kernel parameters, features.

use serde_json::{Value, json};
use tests::Bundle;

use super::Prints::{AsRunc, Exactly};
use super::{Report, plain, report, tmpfs, user};

/// Sets `linux.resources`.
fn resources(bundle: Bundle, resources: Value) -> Bundle {
    bundle.with(|c| c["linux"]["resources"] = resources)
}

/// Adds capabilities of root.
fn capabilities(bundle: Bundle, names: &[&str]) -> Bundle {
    bundle.with(|c| {
        for set in ["bounding", "effective", "permitted"] {
            let all = c["process"]["capabilities"][set].as_array_mut().expect("a list of capabilities");
            all.extend(names.iter().map(|name| json!(name)));
        }
    })
}

/// Makes the whole of /proc/sys writable.
fn writable_parameters(bundle: Bundle) -> Bundle {
    bundle.with(|c| c["linux"]["readonlyPaths"] = json!([]))
}

/// What a program finds of the machine's size.
pub const SIZES: &[Report] = &[
    report(
        "kata-containers/kata-containers 2071, google/gvisor 65",
        |b| resources(b, json!({"cpu": {"shares": 2048}})),
        // Linux before 6.2 forgets the affinity of a process that moves to a cgroup with the cpuset controller.
        "test $(nproc) -gt 1 && echo several",
        Exactly("several"),
    ),
    report(
        "kata-containers/kata-containers 4516",
        |b| resources(b, json!({"memory": {"limit": 4_398_046_511_104_u64}})),
        "cat /sys/fs/cgroup/memory.max",
        Exactly("4398046511104"),
    ),
    report(
        "kata-containers/runtime 1822: what a JVM reads",
        |b| resources(b, json!({"memory": {"limit": 67_108_864, "swap": 134_217_728}})),
        "cd /sys/fs/cgroup; cat memory.max memory.high",
        Exactly("67108864\nmax"),
    ),
    report(
        "kata-containers/kata-containers 5152",
        |b| resources(b, json!({"cpu": {"quota": 150_000, "period": 100_000}})),
        "cat /sys/fs/cgroup/cpu.max",
        Exactly("150000 100000"),
    ),
    report(
        "kata-containers/runtime 2631",
        |b| tmpfs(b, "/dev/shm", json!(["nosuid", "noexec", "nodev", "mode=1777", "size=2097152k"])),
        "df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2",
        Exactly("2097152"),
    ),
    report(
        "kata-containers/kata-containers 3752",
        |b| {
            b.mount(json!({"destination": "/huge", "type": "hugetlbfs", "source": "huge", "options": ["pagesize=2M"]}))
        },
        "grep -c 'hugetlbfs.*pagesize=2M' /proc/mounts; grep Hugepagesize /proc/meminfo",
        AsRunc,
    ),
    report(
        "libkrun/libkrun 704, cri-o/cri-o 4807",
        |b| b.with(|c| c["process"]["rlimits"] = json!([])),
        "grep -v 'Max open files' /proc/self/limits",
        AsRunc,
    ),
    report(
        "opencontainers/runc 4239",
        |b| {
            b.with(|c| c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 65_536, "hard": 65_536}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]))
        },
        "ulimit -n; ulimit -H -n; ulimit -c",
        Exactly("65536\n65536\n0"),
    ),
    report(
        "kata-containers/runtime 1342, 2161",
        plain,
        "cd /proc/sys; for f in fs/file-max fs/nr_open kernel/threads-max kernel/pid_max vm/max_map_count; do cat $f; done; ulimit -u; ulimit -i",
        AsRunc,
    ),
];

/// Kernel parameters.
pub const PARAMETERS: &[Report] = &[
    report(
        "kata-containers/runtime 3147",
        plain,
        "cd /proc/sys; grep . fs/aio-max-nr fs/inotify/* fs/pipe-max-size fs/pipe-user-pages-* fs/mqueue/* fs/leases-enable \
         fs/lease-break-time fs/protected_* fs/overflow* fs/suid_dumpable",
        AsRunc,
    ),
    report(
        "moby/moby 16315",
        plain,
        "cd /proc/sys/kernel; grep . shm[amr]* msgm* sem core_uses_pid core_pattern cap_last_cap ngroups_max randomize_va_space \
         overflow* print-fatal-signals",
        AsRunc,
    ),
    report(
        "kata-containers/runtime 3147, of memory",
        plain,
        "cd /proc/sys/vm; grep . overcommit_* swappiness dirty_ratio dirty_background_ratio dirty_expire_centisecs \
         dirty_writeback_centisecs vfs_cache_pressure mmap_min_addr panic_on_oom oom_kill_allocating_task",
        AsRunc,
    ),
    report(
        "google/gvisor 5745",
        plain,
        "cd /proc/sys/net; ls ipv6/conf; grep . core/somaxconn ipv4/ip_forward \
         ipv4/ip_local_port_range ipv4/ip_unprivileged_port_start ipv4/ping_group_range ipv4/tcp_syncookies \
         ipv4/tcp_fin_timeout ipv4/tcp_keepalive_* ipv4/tcp_tw_reuse ipv4/tcp_max_syn_backlog ipv4/tcp_max_tw_buckets ipv4/tcp_congestion_control \
         ipv6/bindv6only ipv6/conf/all/disable_ipv6",
        AsRunc,
    ),
    report(
        "google/gvisor 9669",
        plain,
        "grep . /proc/sys/kernel/overflowuid /proc/sys/kernel/overflowgid | wc -l",
        Exactly("2"),
    ),
    report("google/gvisor 11210", plain, "ls /proc/sys/user", AsRunc),
    report(
        "google/gvisor 10790",
        |b| {
            b.with(|c| c["linux"]["sysctl"] = json!({"net.ipv4.tcp_keepalive_time": "1000", "net.ipv4.ip_local_port_range": "1024 65000"}))
        },
        "cd /proc/sys/net/ipv4; cat tcp_keepalive_time ip_local_port_range",
        Exactly("1000\n1024\t65000"),
    ),
    report(
        "kata-containers/tests 1337",
        |b| {
            b.with(|c| {
                c["linux"]["sysctl"] =
                    json!({"kernel.shmmax": "1024", "fs.mqueue.msg_max": "50", "kernel.shm_rmid_forced": "1"})
            })
        },
        "cd /proc/sys; cat kernel/shmmax fs/mqueue/msg_max kernel/shm_rmid_forced",
        Exactly("1024\n50\n1"),
    ),
    report(
        "opencontainers/runc 741",
        |b| capabilities(writable_parameters(b), &["CAP_NET_ADMIN"]),
        "echo 1 >/proc/sys/net/ipv4/ip_forward && cat /proc/sys/net/ipv4/ip_forward",
        Exactly("1"),
    ),
    report(
        "opensandbox-group/OpenSandbox 570",
        writable_parameters,
        "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 && cat /proc/sys/net/ipv6/conf/all/disable_ipv6",
        Exactly("1"),
    ),
    report(
        "tobert/pcstat and others that read huge pages' mode",
        plain,
        "cd /sys/kernel/mm/transparent_hugepage; cat enabled defrag shmem_enabled",
        AsRunc,
    ),
];

/// What the kernel has.
pub const KERNEL: &[Report] = &[
    report(
        "a loopback interface with both addresses",
        plain,
        "ip -o addr show lo | tr -s ' ' | cut -d ' ' -f 3,4; cat /sys/class/net/lo/mtu",
        Exactly("inet 127.0.0.1/8\ninet6 ::1/128\n65536"),
    ),
    report(
        "mounts of an administrator",
        |b| capabilities(tmpfs(b, "/t", Value::Null), &["CAP_SYS_ADMIN"]),
        "cd /t; mkdir l u w m; mount -t overlay -o lowerdir=l,upperdir=u,workdir=w o m && touch m/f && ls u; mount --bind u l && ls l",
        Exactly("f\nf"),
    ),
    report(
        "bubblewrap's namespaces",
        |b| {
            capabilities(b, &["CAP_SYS_ADMIN"]).with(|c| {
                c["linux"]["maskedPaths"] = json!([]);
                c["linux"]["readonlyPaths"] = json!([]);
            })
        },
        "unshare -U -r -m -p -f --mount-proc sh -c 'id -u; echo $$'",
        Exactly("0\n1"),
    ),
    report(
        "containers of a user in a container",
        |b| user(b, json!({"uid": 1000, "gid": 1000})),
        "unshare -U -r id -u",
        Exactly("0"),
    ),
    report("time of the host", |b| capabilities(b, &[]), "date -s 2001-01-01 2>&1 >/dev/null", AsRunc),
    report(
        "accounting and pressure",
        plain,
        "test -r /proc/self/io && test -r /proc/pressure/cpu && cat /sys/fs/cgroup/cgroup.controllers | tr ' ' '\\n' | grep -c -e memory -e pids -e '^cpu$'",
        Exactly("3"),
    ),
    report(
        "limits of Linux that programs parse",
        plain,
        "cat /proc/sys/kernel/ngroups_max /proc/sys/kernel/cap_last_cap; getconf PAGE_SIZE 2>/dev/null || echo 4096",
        AsRunc,
    ),
];
