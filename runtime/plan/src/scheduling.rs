//! Translates scheduling class, I/O priority and execution domain to the kernel's numbers.

use agent_proto::payload;
use oci::error::{Result, invalid, unsupported};
use oci::spec::scheduling::{IoPriority, Personality, Scheduler};

/// From linux/sched.h, which reserves a number for SCHED_ISO; the kernel does not implement it.
const POLICIES: [(&str, u32); 6] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];
const FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 1),
    ("SCHED_FLAG_RECLAIM", 2),
    ("SCHED_FLAG_DL_OVERRUN", 4),
    ("SCHED_FLAG_KEEP_POLICY", 8),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];
/// From linux/ioprio.h.
const IO_CLASSES: [(&str, u16); 3] =
    [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];
const IO_CLASS_SHIFT: u32 = 13;
const IO_PRIORITY_MAX: u16 = 7;
/// From linux/personality.h.
const DOMAINS: [(&str, u32); 2] = [("LINUX", 0), ("LINUX32", 8)];

/// Translates a scheduling class. The guest's kernel checks whether its numbers fit together.
pub fn scheduler(from: &Scheduler) -> Result<payload::Scheduler> {
    let policy = match from.policy.as_str() {
        "SCHED_ISO" => {
            return Err(unsupported("process.scheduler.policy", "Linux does not implement SCHED_ISO"));
        }
        policy => number("process.scheduler.policy", &POLICIES, policy)?,
    };
    let flags = from.flags.iter().enumerate().try_fold(0, |flags, (index, name)| {
        number(&format!("process.scheduler.flags[{index}]"), &FLAGS, name).map(|flag| flags | flag)
    })?;
    let &Scheduler { nice, priority, runtime, deadline, period, .. } = from;
    Ok(payload::Scheduler { policy, flags, nice, priority, runtime, deadline, period })
}

/// Translates an I/O priority.
pub fn io_priority(from: &IoPriority) -> Result<u16> {
    let class = number("process.ioPriority.class", &IO_CLASSES, &from.class)?;
    if from.priority > IO_PRIORITY_MAX {
        let why = format!("{} is more than {IO_PRIORITY_MAX}", from.priority);
        return Err(invalid("process.ioPriority.priority", why));
    }
    Ok(class << IO_CLASS_SHIFT | from.priority)
}

/// Translates an execution domain.
pub fn personality(from: &Personality) -> Result<u32> {
    number("linux.personality.domain", &DOMAINS, &from.domain)
}

fn number<T: Copy>(path: &str, table: &[(&str, T)], word: &str) -> Result<T> {
    let found = table.iter().find(|(known, _)| *known == word);
    found.map(|(_, number)| *number).ok_or_else(|| invalid(path, format!("{word:?}")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    #[test]
    fn words_become_numbers() {
        let from = json!({"policy": "SCHED_DEADLINE", "flags": ["SCHED_FLAG_RECLAIM", "SCHED_FLAG_RESET_ON_FORK"],
                          "nice": -3, "priority": 4, "runtime": 5, "deadline": 6, "period": 7});
        let expected = payload::Scheduler {
            policy: 6,
            flags: 3,
            nice: -3,
            priority: 4,
            runtime: 5,
            deadline: 6,
            period: 7,
        };
        assert_eq!(scheduler(&from_value(from).unwrap()).unwrap(), expected);
        let of = |class: &str, priority: u16| io_priority(&IoPriority { class: class.to_owned(), priority });
        assert_eq!(
            (of("IOPRIO_CLASS_BE", 6).unwrap(), of("IOPRIO_CLASS_IDLE", 0).unwrap()),
            (0x4006, 0x6000)
        );
        let of = |domain: Value| personality(&from_value(domain).unwrap()).unwrap();
        assert_eq!((of(json!({"domain": "LINUX"})), of(json!({"domain": "LINUX32", "flags": []}))), (0, 8));
    }

    #[test]
    fn other_words_are_refused_by_their_path() {
        let of = |from: Value| scheduler(&from_value(from).unwrap()).unwrap_err().to_string();
        assert_eq!(of(json!({"policy": "FIFO"})), r#"config.json process.scheduler.policy: "FIFO""#);
        assert!(of(json!({"policy": "SCHED_ISO"})).contains("process.scheduler.policy: not supported"));
        let flags = of(json!({"policy": "SCHED_RR", "flags": ["SCHED_FLAG_RECLAIM", "x"]}));
        assert_eq!(flags, r#"config.json process.scheduler.flags[1]: "x""#);
        let of = |class: &str, priority: u16| {
            io_priority(&IoPriority { class: class.to_owned(), priority }).unwrap_err().to_string()
        };
        assert_eq!(of("", 0), r#"config.json process.ioPriority.class: """#);
        assert_eq!(of("IOPRIO_CLASS_RT", 8), "config.json process.ioPriority.priority: 8 is more than 7");
        let of = |from: Value| personality(&from_value(from).unwrap()).unwrap_err().to_string();
        assert_eq!(of(json!({"domain": "SVR4"})), r#"config.json linux.personality.domain: "SVR4""#);
    }
}
