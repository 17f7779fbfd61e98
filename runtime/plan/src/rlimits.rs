//! Resource limits of processes (getrlimit(2)).

use agent_proto::payload::Rlimit;

/// Resource limits by name (getrlimit(2)).
pub const RLIMITS: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

/// Adds limits of `from` that `own` does not name.
pub fn add_limits(own: &mut Vec<Rlimit>, from: &[Rlimit]) {
    let named = own.len();
    let missing = |limit: &&Rlimit| !own[..named].iter().any(|other| other.kind == limit.kind);
    let added: Vec<Rlimit> = from.iter().filter(missing).cloned().collect();
    own.extend(added);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_the_bundle_stay() {
        let limit = |kind: &str, soft| Rlimit { kind: kind.to_owned(), hard: soft, soft };
        let mut own = vec![limit("RLIMIT_CORE", 1)];
        add_limits(&mut own, &[limit("RLIMIT_CORE", 2), limit("RLIMIT_NOFILE", 3)]);
        assert_eq!(own, [limit("RLIMIT_CORE", 1), limit("RLIMIT_NOFILE", 3)]);
    }
}
