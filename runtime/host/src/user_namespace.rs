//! A user namespace for an ordinary user's container, with the user's subordinate IDs. In it this process is root, so
//! that the container's files can belong to several users.

use std::fs;
use std::io::{self, Read, Write, pipe};
use std::process::Command;

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::subordinate::{self, Range};
use crate::sys;
use crate::user::User;

/// The programs that set the mappings of users and groups. They have the right to use subordinate IDs (newuidmap(1)).
const PROGRAMS: [&str; 2] = ["newuidmap", "newgidmap"];
/// Report of the process that runs them, if both succeeded.
const DONE: &[u8] = b"done";

/// The IDs of the host that this process can give to files, and those in its own user namespace that stand for them.
pub struct Ids {
    pub users: Vec<Range>,
    pub groups: Vec<Range>,
    /// Why there are only the user's own IDs, for which 0 stands: then all of the container's files belong to the user.
    pub single: Option<String>,
}

/// Moves this process, which an ordinary user runs, into a user namespace with the user's subordinate IDs if there are any.
///
/// # Errors
///
/// The process is in a namespace without the mappings that it needs, or it has more than one thread.
pub fn enter() -> io::Result<Ids> {
    let (uid, gid) = (sys::effective_user(), sys::effective_group());
    let own = |id| vec![Range { inside: 0, outside: id, count: 1 }];
    let single = |reason| Ok(Ids { users: own(uid), groups: own(gid), single: Some(reason) });
    if User::of_process().is_in_namespace() {
        return single("this process is in a user namespace already".to_owned());
    }
    let (Some(users), Some(groups)) = (subordinate::users(uid), subordinate::groups(uid, gid)) else {
        return single(format!("/etc/subuid and /etc/subgid have no range for user {uid}"));
    };
    if let Some(missing) = PROGRAMS.into_iter().find(|program| !is_in_path(program)) {
        return single(format!("{missing} is not installed"));
    }
    match with_mappings([&users, &groups], uid, gid)? {
        Ok(()) => Ok(Ids { users, groups, single: None }),
        Err(reason) => single(reason),
    }
}

/// Creates the namespace. A process that stays outside of it sets the mappings.
fn with_mappings(mappings: [&[Range]; 2], uid: u32, gid: u32) -> io::Result<Result<(), String>> {
    let process = std::process::id();
    let (mut begun, begin) = pipe()?;
    let (mut report, mut reporter) = pipe()?;
    let helper = sys::fork_detached(None)?;
    if helper == 0 {
        drop((begin, report));
        // The end of the pipe: the namespace exists, or the parent has ended.
        let _ = begun.read_to_end(&mut Vec::new());
        let said = PROGRAMS
            .into_iter()
            .zip(mappings)
            .try_for_each(|(program, mapping)| set(program, process, mapping));
        let said = said.map_or_else(String::into_bytes, |()| DONE.to_vec());
        // A parent that is gone needs no report.
        let _ = reporter.write_all(&said);
        std::process::exit(0);
    }
    drop((begun, reporter));
    let made = sys::new_user_namespace();
    drop(begin);
    let mut said = Vec::new();
    let heard = report.read_to_end(&mut said);
    sys::wait_for_child(helper)?;
    heard?;
    if let Err(error) = made {
        return Ok(Err(format!("create a user namespace: {error}")));
    }
    if said == DONE {
        return Ok(Ok(()));
    }
    map_self_only(uid, gid)?;
    Ok(Err(String::from_utf8_lossy(&said).into_owned()))
}

/// Runs `program`, which sets a mapping of `process`. Returns its message if it fails.
fn set(program: &str, process: u32, mapping: &[Range]) -> Result<(), String> {
    let numbers = mapping.iter().flat_map(|range| [range.inside, range.outside, range.count]);
    let mut command = Command::new(program);
    command.arg(process.to_string()).args(numbers.map(|number| number.to_string()));
    let output = command.output().map_err(|error| format!("start {program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program}: {}, {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

/// Maps only this process's own IDs, to themselves, and gives up the namespace's capabilities, so that the process has the
/// rights that it had outside.
fn map_self_only(uid: u32, gid: u32) -> io::Result<()> {
    // newuidmap may have succeeded before newgidmap failed; a mapping can be set once.
    if fs::read_to_string("/proc/self/uid_map")?.is_empty() {
        fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    }
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(set_capabilities(None, sets)?)
}

fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
