//! User and groups of a process: looks names and numbers up in the container's /etc/passwd and /etc/group.

use alloc::string::String;
use alloc::vec::Vec;

use agent_proto::payload;
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, fstat};

use crate::error::Error;
use crate::sys;

/// Limit of bytes of /etc/passwd or /etc/group that are read, because the container controls these files.
const FILE_MAX: usize = 1 << 20;
/// Not a valid ID: system calls that change IDs take it as "no change".
const INVALID_ID: u32 = u32::MAX;

/// User and groups of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User ID.
    pub uid: Uid,
    /// Primary group ID.
    pub gid: Gid,
    /// Supplementary group IDs.
    pub groups: Vec<Gid>,
    /// Name of the user. Empty if /etc/passwd has none.
    pub name: String,
    /// Home directory. `/` if /etc/passwd has none for the user.
    pub home: String,
}

/// One entry of /etc/passwd.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Resolves a process's user against the text of /etc/passwd and /etc/group, each read only if it is needed.
///
/// `memberships` adds the groups that list the user, as in API 4244. OCI specifies all groups explicitly.
pub fn resolve(
    spec: &payload::Process,
    memberships: bool,
    needs_home: bool,
    read: impl Fn(&str) -> String,
) -> Result<User, Error> {
    let wanted = if spec.user.is_empty() { "0" } else { &spec.user };
    let number = wanted.parse::<u32>().ok().filter(|number| *number != INVALID_ID);
    let needs_account = number.is_none() || needs_home || memberships || spec.group.is_empty();
    let passwd = if needs_account { read("/etc/passwd") } else { String::new() };
    let account = accounts(&passwd)
        .find(|account| number.map_or(account.name == wanted, |number| account.uid == number));
    let uid = match (number, &account) {
        (Some(number), _) => number,
        (None, Some(account)) => account.uid,
        (None, None) => return Err(Error::not_found("user in the container", wanted)),
    };
    let name = account.as_ref().map_or("", |account| account.name);

    let named = |name: &str| name.parse::<u32>().is_err();
    let needs_groups =
        memberships || named(&spec.group) || spec.additional_groups.iter().any(|group| named(group));
    let group_file = if needs_groups { read("/etc/group") } else { String::new() };
    let gid = match &account {
        _ if !spec.group.is_empty() => group(&group_file, &spec.group)?,
        Some(account) => account.gid,
        None => 0,
    };
    let mut groups = Vec::new();
    for wanted in &spec.additional_groups {
        groups.push(Gid::from_raw(group(&group_file, wanted)?));
    }
    if memberships && !name.is_empty() {
        groups.extend(memberships_of(&group_file, name).map(Gid::from_raw));
    }
    let home = account.as_ref().map_or("", |account| account.home);
    Ok(User {
        uid: Uid::from_raw(uid),
        gid: Gid::from_raw(gid),
        groups,
        name: name.into(),
        home: if home.is_empty() { "/".into() } else { home.into() },
    })
}

/// Reads one of the container's files for [`resolve`]. Returns an empty string if it does not exist or is not a file.
pub fn read_file(path: &str) -> String {
    // Opened non-blocking, because it might be a FIFO.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) else { return String::new() };
    let regular =
        fstat(&file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    let mut bytes = Vec::new();
    while regular && bytes.len() < FILE_MAX {
        match sys::read_append(rustix::fd::AsFd::as_fd(&file), &mut bytes, 4 << 10) {
            Ok(count) if count > 0 => {}
            _ => break,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { name, uid, gid, home: fields.nth(1).unwrap_or("") })
    })
}

/// Returns name, number and members of each group.
fn groups(file: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    file.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number = fields.nth(1)?.parse().ok()?;
        Some((name, number, fields.next().unwrap_or("")))
    })
}

fn group(file: &str, wanted: &str) -> Result<u32, Error> {
    if let Some(number) = wanted.parse().ok().filter(|number| *number != INVALID_ID) {
        return Ok(number);
    }
    groups(file)
        .find(|(name, ..)| *name == wanted)
        .map(|(_, number, _)| number)
        .ok_or_else(|| Error::not_found("group in the container", wanted))
}

fn memberships_of<'a>(file: &'a str, user: &'a str) -> impl Iterator<Item = u32> + 'a {
    groups(file)
        .filter(move |(_, _, members)| members.split(',').any(|member| member == user))
        .map(|(_, number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\n:x:5:5::/:\nann:x:1000:100:Ann:/home/ann:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nusers:x:100:\naudio:x:29:bob,ann\nwheel:x:10:root\n";

    fn check(user: &str, group: &str, further: &[&str], memberships: bool) -> Result<User, Error> {
        let spec = payload::Process {
            user: user.into(),
            group: group.into(),
            additional_groups: further.iter().map(|group| (*group).into()).collect(),
            ..payload::Process::default()
        };
        resolve(&spec, memberships, true, |path| match path {
            "/etc/passwd" => PASSWD.into(),
            _ => GROUP.into(),
        })
    }

    fn numbers(user: &User) -> (u32, u32, Vec<u32>) {
        (user.uid.as_raw(), user.gid.as_raw(), user.groups.iter().map(|group| group.as_raw()).collect())
    }

    #[test]
    fn no_user_is_root() {
        let user = check("", "", &[], false).unwrap();
        assert_eq!((numbers(&user), user.home.as_str()), ((0, 0, vec![]), "/root"));
    }

    #[test]
    fn name_brings_group_and_home() {
        let user = check("ann", "", &["29", "wheel"], false).unwrap();
        assert_eq!((numbers(&user), user.home.as_str()), ((1000, 100, vec![29, 10]), "/home/ann"));
    }

    #[test]
    fn number_without_account_has_group_0_and_the_root_directory() {
        let user = check("77", "", &[], false).unwrap();
        assert_eq!((numbers(&user), user.home.as_str(), user.name.as_str()), ((77, 0, vec![]), "/", ""));
    }

    #[test]
    fn memberships_are_api_4244s() {
        assert_eq!(numbers(&check("ann", "users", &[], true).unwrap()), (1000, 100, vec![29]));
    }

    #[test]
    fn unknown_user_and_group_are_refused_by_name() {
        assert_eq!(check("eve", "", &[], false).unwrap_err().text, "no such user in the container: eve");
        assert_eq!(
            check("ann", "spies", &[], false).unwrap_err().text,
            "no such group in the container: spies"
        );
    }

    #[test]
    fn the_number_that_means_no_change_is_refused() {
        assert!(check("4294967295", "", &[], false).is_err());
        assert!(check("0", "4294967295", &[], false).is_err());
    }

    #[test]
    fn numbers_alone_read_no_file() {
        let spec = payload::Process { user: "5".into(), group: "6".into(), ..payload::Process::default() };
        let user = resolve(&spec, false, false, |path| panic!("read {path}")).unwrap();
        assert_eq!(numbers(&user), (5, 6, vec![]));
    }
}
