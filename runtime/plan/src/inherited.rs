//! What a container has from the host: resource limits of the caller of `vmm`, and kernel parameters that programs read.
//!
//! With runc a process inherits both. A guest has its own kernel, so they are copied when the machine starts. Values that
//! the guest's kernel has anyway are left out: each costs the boot a system call or two.

use std::cell::RefCell;
use std::collections::BTreeMap;

use agent_proto::payload::Rlimit;

use crate::rlimits::RLIMITS;

/// A parameter as a file, and the value that the guest's kernel gives it; "" if that depends on the machine's size.
type Parameter = (&'static str, &'static str);

/// Kernel parameters that a container has from the host. `vm.overcommit_memory` is not copied if it is 2, because strict
/// accounting limits programs to a share of the machine's memory, which is not the host's; `kernel.core_pattern` not if it
/// names a program, which the guest does not have.
const PARAMETERS: [Parameter; 30] = [
    ("/proc/sys/fs/aio-max-nr", "65536"),
    ("/proc/sys/fs/file-max", ""),
    ("/proc/sys/fs/inotify/max_queued_events", "16384"),
    ("/proc/sys/fs/inotify/max_user_instances", "128"),
    ("/proc/sys/fs/inotify/max_user_watches", ""),
    (NR_OPEN, "1048576"),
    ("/proc/sys/fs/pipe-max-size", "1048576"),
    ("/proc/sys/fs/pipe-user-pages-hard", "0"),
    ("/proc/sys/fs/pipe-user-pages-soft", "16384"),
    ("/proc/sys/fs/protected_fifos", "0"),
    ("/proc/sys/fs/protected_hardlinks", "1"),
    ("/proc/sys/fs/protected_regular", "0"),
    ("/proc/sys/fs/protected_symlinks", "1"),
    (CORE_PATTERN, "core"),
    ("/proc/sys/kernel/core_uses_pid", "0"),
    ("/proc/sys/kernel/dmesg_restrict", "0"),
    ("/proc/sys/kernel/pid_max", ""),
    ("/proc/sys/kernel/threads-max", ""),
    // Debian's kernel alone has it, also in the guest.
    ("/proc/sys/kernel/unprivileged_userns_clone", "1"),
    ("/proc/sys/net/core/somaxconn", "4096"),
    (IP_FORWARD, "0"),
    // The guest's tables are small whatever its memory, and Linux derives these limits from them.
    ("/proc/sys/net/ipv4/tcp_max_orphans", ""),
    (SYN_BACKLOG, ""),
    (TIME_WAIT_BUCKETS, ""),
    ("/proc/sys/vm/max_map_count", "65530"),
    ("/proc/sys/vm/mmap_min_addr", "4096"),
    (OVERCOMMIT, "0"),
    ("/proc/sys/vm/overcommit_ratio", "50"),
    ("/proc/sys/vm/swappiness", "60"),
    (HUGE_PAGES, "madvise"),
];
/// Kernel parameters that a container has from its network namespace, if the host made one for it: a new namespace has its
/// forwarding from the host's, and tools of networks set others in it.
const OF_NETWORK: [Parameter; 6] = [
    (IP_FORWARD, "0"),
    ("/proc/sys/net/ipv4/ip_local_port_range", "32768\t60999"),
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "1024"),
    ("/proc/sys/net/ipv4/ping_group_range", "1\t0"),
    (SYN_BACKLOG, ""),
    (TIME_WAIT_BUCKETS, ""),
];
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const SYN_BACKLOG: &str = "/proc/sys/net/ipv4/tcp_max_syn_backlog";
const TIME_WAIT_BUCKETS: &str = "/proc/sys/net/ipv4/tcp_max_tw_buckets";
/// The name of core files. A pipe and a program instead of it begin with `|`.
const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";
/// Maximum of RLIMIT_NOFILE. It is not lowered: the agent's own limit is 524288.
const NR_OPEN: &str = "/proc/sys/fs/nr_open";
const OVERCOMMIT: &str = "/proc/sys/vm/overcommit_memory";
/// `always [madvise] never`: the word in brackets is the value.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Soft and hard limits that the guest's kernel gives PID 1 (asm-generic/resource.h, INIT_RLIMITS), by
/// number; `None` if they depend on the machine's size or are the agent's.
const GUEST_LIMITS: [Option<(u64, u64)>; RLIMITS.len()] = [
    NO_LIMIT,
    NO_LIMIT,
    NO_LIMIT,
    Some((8 << 20, u64::MAX)),
    Some((0, u64::MAX)),
    NO_LIMIT,
    None,
    None,
    Some((8 << 20, 8 << 20)),
    NO_LIMIT,
    NO_LIMIT,
    None,
    Some((819_200, 819_200)),
    Some((0, 0)),
    Some((0, 0)),
    NO_LIMIT,
];
const NO_LIMIT: Option<(u64, u64)> = Some((u64::MAX, u64::MAX));

/// What a container has from the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inherited {
    /// Resource limits that differ from those of the guest's PID 1.
    pub limits: Vec<Rlimit>,
    /// Content of files below /proc/sys and /sys that differs from the guest's, by path.
    pub parameters: BTreeMap<String, String>,
    /// The host's program for core dumps, which cannot run in a guest: its processes leave files instead.
    pub core_program: Option<String>,
}

impl Inherited {
    /// Selects what a guest does not have anyway. `limits` are the soft and hard limits by number (getrlimit(2)); `read`
    /// reads a file of the host.
    pub fn new(limits: &[(u64, u64)], read: impl Fn(&str) -> Option<String>) -> Inherited {
        let limits = RLIMITS.iter().zip(GUEST_LIMITS).zip(limits);
        let limits = limits.filter(|((_, guest), host)| *guest != Some(**host));
        let core_program = RefCell::new(None);
        let read = |path: &str| {
            let content = read(path)?;
            if path == CORE_PATTERN {
                core_program.replace(content.trim().strip_prefix('|').map(str::to_owned));
            }
            Some(content)
        };
        let parameters = different(&PARAMETERS, read);
        Inherited {
            limits: limits
                .map(|((kind, _), &(soft, hard))| Rlimit { kind: (*kind).to_owned(), hard, soft })
                .collect(),
            parameters,
            core_program: core_program.into_inner(),
        }
    }
}

/// Replaces the parameters of the network among `parameters` by those of the container's network namespace, in which `read`
/// reads.
pub fn replace_network(parameters: &mut BTreeMap<String, String>, read: impl Fn(&str) -> Option<String>) {
    parameters.retain(|path, _| OF_NETWORK.iter().all(|(other, _)| path != other));
    parameters.append(&mut different(&OF_NETWORK, read));
}

/// Returns the parameters whose values are not the guest's.
fn different(all: &[Parameter], read: impl Fn(&str) -> Option<String>) -> BTreeMap<String, String> {
    let of = |&(path, guest): &Parameter| {
        let value = value(path, &read(path)?)?;
        (value != guest).then(|| (path.to_owned(), value))
    };
    all.iter().filter_map(of).collect()
}

/// Returns the value to write for a file's content, if it is to be copied.
fn value(path: &str, content: &str) -> Option<String> {
    let content = content.trim();
    match path {
        HUGE_PAGES => Some(content.split_once('[')?.1.split_once(']')?.0.to_owned()),
        OVERCOMMIT if content == "2" => None,
        CORE_PATTERN if content.starts_with('|') => None,
        NR_OPEN if content.parse::<u64>().ok()? < 1 << 20 => None,
        _ => Some(content.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_namespace_replaces_the_host() {
        let text = |texts: &[(&str, &str)]| -> BTreeMap<String, String> {
            texts.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
        };
        let mut parameters = text(&[(IP_FORWARD, "1"), (SYN_BACKLOG, "512"), (NR_OPEN, "2000000")]);
        let namespace = text(&[(SYN_BACKLOG, "1024\n"), ("/proc/sys/net/ipv4/ping_group_range", "0\t7\n")]);
        replace_network(&mut parameters, |path| namespace.get(path).cloned());
        let expected =
            [(SYN_BACKLOG, "1024"), ("/proc/sys/net/ipv4/ping_group_range", "0\t7"), (NR_OPEN, "2000000")];
        assert_eq!(parameters, text(&expected));
    }

    #[test]
    fn only_what_the_guest_does_not_have_is_copied() {
        let mut limits = GUEST_LIMITS.map(|limit| limit.unwrap_or((1, 2)));
        limits[4] = (u64::MAX, u64::MAX);
        limits[7] = (1024, 524_288);
        let read = |path: &str| {
            let text = match path {
                "/proc/sys/vm/max_map_count" => "1048576\n",
                "/proc/sys/vm/swappiness" => "60\n",
                "/proc/sys/kernel/pid_max" => "4194304\n",
                HUGE_PAGES => "[always] madvise never\n",
                NR_OPEN => "65536\n",
                OVERCOMMIT => "2\n",
                CORE_PATTERN => "|/usr/share/apport/apport -p%p\n",
                "/proc/sys/fs/protected_regular" => "2\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        let inherited = Inherited::new(&limits, read);
        assert_eq!(inherited.core_program.as_deref(), Some("/usr/share/apport/apport -p%p"));
        let limit = |kind: &str, soft, hard| Rlimit { kind: kind.to_owned(), hard, soft };
        assert_eq!(
            inherited.limits,
            [
                limit("RLIMIT_CORE", u64::MAX, u64::MAX),
                limit("RLIMIT_NPROC", 1, 2),
                limit("RLIMIT_NOFILE", 1024, 524_288),
                limit("RLIMIT_SIGPENDING", 1, 2),
            ]
        );
        let parameters: Vec<_> = inherited.parameters.into_iter().collect();
        let expected = [
            ("/proc/sys/fs/protected_regular", "2"),
            ("/proc/sys/kernel/pid_max", "4194304"),
            ("/proc/sys/vm/max_map_count", "1048576"),
            (HUGE_PAGES, "always"),
        ];
        assert_eq!(parameters, expected.map(|(path, value)| (path.to_owned(), value.to_owned())));
        assert_eq!(value(CORE_PATTERN, "/tmp/core.%e\n"), Some("/tmp/core.%e".to_owned()));
    }
}
