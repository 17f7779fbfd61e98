//! The user of this process, as it is outside of a user namespace. Rootless engines start the runtime as root of a user
//! namespace, where it has none of the rights of the host's root.

use std::ffi::OsStr;
use std::fs;

use crate::sys;

/// IDs of a user namespace that has all of its parent's, as the initial one has.
const ALL_IDS: [u32; 3] = [0, 0, u32::MAX];

/// The user of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    effective: u32,
    /// Effective user ID in the parent of this process's user namespace; `None` in the initial user namespace.
    outside: Option<u32>,
}

impl User {
    /// Returns the user of this process.
    pub fn of_process() -> User {
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        User::new(sys::effective_user(), &map)
    }

    /// Returns the user with ID `effective` in a user namespace with the mappings `map` (user_namespaces(7)).
    fn new(effective: u32, map: &str) -> User {
        let numbers = |line: &str| -> Option<[u32; 3]> {
            let numbers: Vec<u32> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
            numbers.try_into().ok()
        };
        let ranges: Vec<[u32; 3]> = map.lines().filter_map(numbers).collect();
        if ranges.is_empty() || ranges == [ALL_IDS] {
            return User { effective, outside: None };
        }
        let outside = ranges.iter().find_map(|[inside, outside, count]| {
            let offset = effective.checked_sub(*inside).filter(|offset| offset < count)?;
            outside.checked_add(offset)
        });
        User { effective, outside: Some(outside.unwrap_or(effective)) }
    }

    /// Whether this is not root, or root of a user namespace that an ordinary user made. `name` is the variable `USER`: a
    /// whole system in a user namespace has its own root, which is called so (runc's rule as well).
    pub fn is_rootless(&self, name: Option<&OsStr>) -> bool {
        self.effective != 0 || self.outside.is_some() && name.is_none_or(|name| name != "root")
    }

    /// Whether this process is in a user namespace other than the initial one.
    pub fn is_in_namespace(&self) -> bool {
        self.outside.is_some()
    }

    /// Returns the ID by which processes outside of the user namespace know this user.
    pub fn outside(&self) -> u32 {
        self.outside.unwrap_or(self.effective)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INITIAL: &str = "         0          0 4294967295\n";
    const PODMAN: &str = "         0       1000          1\n         1     100000      65536\n";

    #[test]
    fn root_of_a_user_namespace_is_the_user_who_made_it() {
        let rootless = |effective, map, name: Option<&str>| {
            let user = User::new(effective, map);
            (user.is_rootless(name.map(OsStr::new)), user.outside())
        };
        assert_eq!(rootless(0, INITIAL, Some("root")), (false, 0));
        assert_eq!(rootless(0, INITIAL, None), (false, 0));
        assert_eq!(rootless(1000, INITIAL, Some("me")), (true, 1000));
        assert_eq!(rootless(0, PODMAN, Some("me")), (true, 1000));
        assert_eq!(rootless(0, PODMAN, None), (true, 1000));
        assert_eq!(rootless(5, PODMAN, None), (true, 100_004));
        assert_eq!(rootless(0, "0 100000 65536\n", Some("root")), (false, 100_000), "a system container");
        assert_eq!(rootless(70_000, PODMAN, None), (true, 70_000), "without a mapping");
        assert_eq!(rootless(0, "", None), (false, 0), "without /proc");
    }
}
