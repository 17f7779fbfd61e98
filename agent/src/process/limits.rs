//! Resource limits, file mode mask and out-of-memory score.

use alloc::format;

use agent_proto::payload;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, setrlimit, umask};

use crate::error::{Error, Step};
use crate::sys;

/// Default limit of open files: systemd's default, which Linux programs expect.
pub const OPEN_FILES: Rlimit = Rlimit { current: Some(1024), maximum: Some(OPEN_FILES_MAX) };
/// Default hard limit of open files.
pub const OPEN_FILES_MAX: u64 = 512 << 10;
/// The kernel's default maximum of the limit of open files (fs.nr_open).
const OPEN_FILES_ROOM: u64 = 1 << 20;
/// Default file mode creation mask.
const UMASK: u32 = 0o022;

/// Sets the process's resource limits. Limits that are not specified stay the agent's, except that of open files.
pub fn apply(spec: &payload::Process, defaults: bool) -> Result<(), Error> {
    if defaults && !spec.rlimits.iter().any(|limit| limit.kind == "RLIMIT_NOFILE") {
        setrlimit(Resource::Nofile, OPEN_FILES).step("set", "RLIMIT_NOFILE")?;
    }
    for limit in &spec.rlimits {
        let resource = resource(&limit.kind)
            .ok_or_else(|| Error::bad_request(format!("unknown resource limit {}", limit.kind)))?;
        let new = Rlimit { current: bound(limit.soft), maximum: bound(limit.hard) };
        setrlimit(resource, new).step("set", &limit.kind)?;
    }
    let mask = spec.oci.as_ref().and_then(|oci| oci.umask).unwrap_or(UMASK);
    umask(Mode::from_raw_mode(mask & 0o777));
    Ok(())
}

/// Raises fs.nr_open, which the kernel's limit of open files cannot exceed, to the process's limit. Through the agent's own
/// /proc, because the container's cannot be trusted.
pub fn make_room(spec: &payload::Process) -> Result<(), Error> {
    const PATH: &str = "/proc/sys/fs/nr_open";
    let limits = spec.rlimits.iter().filter(|limit| limit.kind == "RLIMIT_NOFILE");
    let wanted = limits.map(|limit| limit.hard).max().unwrap_or(0);
    if wanted <= OPEN_FILES_ROOM {
        return Ok(());
    }
    let file = rustix::fs::open(PATH, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step("open", PATH)?;
    let mut text = [0; 20];
    let length = rustix::io::read(&file, &mut text).step("read", PATH)?;
    let room = core::str::from_utf8(&text[..length]).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if room.is_some_and(|room| room >= wanted) {
        return Ok(());
    }
    rustix::io::pwrite(&file, format!("{wanted}").as_bytes(), 0).map(drop).step("write", PATH)
}

/// Sets scheduler, I/O priority and personality. Must be called before the necessary privileges are dropped.
pub fn apply_scheduling(spec: &payload::Process) -> Result<(), Error> {
    let Some(oci) = &spec.oci else { return Ok(()) };
    if let Some(scheduler) = &oci.scheduler {
        sys::set_scheduler(scheduler).step("set", "scheduler")?;
    }
    if let Some(priority) = oci.io_priority {
        sys::set_io_priority(priority).step("set", "I/O priority")?;
    }
    oci.personality.map_or(Ok(()), |domain| sys::set_personality(domain).step("set", "personality"))
}

/// Sets the OOM score adjustment through the agent's own /proc, because the container's cannot be trusted.
pub fn apply_oom_score(spec: &payload::Process) -> Result<(), Error> {
    const PATH: &str = "/proc/self/oom_score_adj";
    let Some(score) = spec.oci.as_ref().and_then(|oci| oci.oom_score_adj) else { return Ok(()) };
    let file = rustix::fs::open(PATH, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).step("open", PATH)?;
    rustix::io::write(&file, format!("{score}").as_bytes()).map(drop).step("write", PATH)
}

/// Returns the value of a limit. The largest number means unlimited.
fn bound(value: u64) -> Option<u64> {
    (value != u64::MAX).then_some(value)
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name.strip_prefix("RLIMIT_")? {
        "AS" => Resource::As,
        "CORE" => Resource::Core,
        "CPU" => Resource::Cpu,
        "DATA" => Resource::Data,
        "FSIZE" => Resource::Fsize,
        "LOCKS" => Resource::Locks,
        "MEMLOCK" => Resource::Memlock,
        "MSGQUEUE" => Resource::Msgqueue,
        "NICE" => Resource::Nice,
        "NOFILE" => Resource::Nofile,
        "NPROC" => Resource::Nproc,
        "RSS" => Resource::Rss,
        "RTPRIO" => Resource::Rtprio,
        "RTTIME" => Resource::Rttime,
        "SIGPENDING" => Resource::Sigpending,
        "STACK" => Resource::Stack,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_limit_is_refused_by_name() {
        let limit = payload::Rlimit { kind: "RLIMIT_SMELL".into(), ..payload::Rlimit::default() };
        let spec = payload::Process { rlimits: vec![limit], ..payload::Process::default() };
        assert_eq!(apply(&spec, false).unwrap_err().text, "unknown resource limit RLIMIT_SMELL");
    }

    #[test]
    fn largest_number_is_no_limit() {
        assert_eq!((bound(u64::MAX), bound(7)), (None, Some(7)));
    }
}
