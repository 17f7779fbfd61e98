//! Signals by name, as in `kill`, podfiles and images.

/// Names without `SIG`, by signal number.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// First real-time signal as programs count them: the C library reserves the two before.
const REALTIME: std::ops::RangeInclusive<i32> = 34..=64;

/// Returns the number of a signal: `15`, `TERM`, `SIGTERM` or `RTMIN+3`, case-insensitive.
pub fn signal_of(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return (1..=*REALTIME.end()).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest[1..].parse::<i32>().ok() };
    let number = if let Some(rest) =
        name.strip_prefix("RTMIN").filter(|rest| rest.is_empty() || rest.starts_with('+'))
    {
        REALTIME.start() + offset(rest)?
    } else if let Some(rest) =
        name.strip_prefix("RTMAX").filter(|rest| rest.is_empty() || rest.starts_with('-'))
    {
        REALTIME.end() - offset(rest)?
    } else {
        let alias = match name {
            "IOT" => "ABRT",
            "CLD" => "CHLD",
            "POLL" => "IO",
            name => name,
        };
        return NAMES.iter().position(|known| *known == alias).map(|index| index as i32 + 1);
    };
    REALTIME.contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_mean_the_same() {
        for (text, number) in [
            ("15", Some(15)),
            ("TERM", Some(libc::SIGTERM)),
            ("sigterm", Some(libc::SIGTERM)),
            ("SIGKILL", Some(libc::SIGKILL)),
            ("POLL", Some(libc::SIGIO)),
            ("SYS", Some(libc::SIGSYS)),
            ("RTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMIN+31", None),
            ("RTMAX+1", None),
            ("0", None),
            ("65", None),
            ("-1", None),
            ("", None),
            ("SIG", None),
            ("RTMIN+x", None),
        ] {
            assert_eq!(signal_of(text), number, "{text}");
        }
    }
}
