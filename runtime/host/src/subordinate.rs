//! Subordinate IDs: ranges of user and group IDs that an ordinary user may map into a user namespace (subuid(5),
//! subgid(5)).

use std::fs;

/// Maximum number of ranges of a user. The kernel accepts 340 in a mapping (linux/user_namespace.h,
/// UID_GID_MAP_MAX_EXTENTS), one of which is the user's own ID.
const RANGES_MAX: usize = 339;

/// IDs in a user namespace and those outside that they stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

/// Returns the ID inside that stands for the first of `count` IDs outside. `None` if not all of them are in one range.
pub fn inside(ranges: &[Range], outside: u32, count: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let offset = outside.checked_sub(range.outside)?;
        let last = offset.checked_add(count)?;
        (last <= range.count).then_some(range.inside + offset)
    })
}

/// Returns the mapping of user IDs for the user `uid`: 0 is the user itself, and its subordinate IDs follow from 1 on.
/// `None` if it has no subordinate IDs.
pub fn users(uid: u32) -> Option<Vec<Range>> {
    mapping(&read("/etc/subuid"), &read("/etc/passwd"), uid, uid)
}

/// Returns the mapping of group IDs for the user `uid`, whose group is `gid`.
pub fn groups(uid: u32, gid: u32) -> Option<Vec<Range>> {
    mapping(&read("/etc/subgid"), &read("/etc/passwd"), uid, gid)
}

/// Returns the name of the user `uid`.
pub fn user_name(uid: u32) -> Option<String> {
    name_in(&read("/etc/passwd"), uid)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn name_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// Returns the mapping of `own` and of the ranges that `table` gives to the user `uid`, by name or by number.
fn mapping(table: &str, passwd: &str, uid: u32, own: u32) -> Option<Vec<Range>> {
    let name = name_in(passwd, uid);
    let given = |line: &str| -> Option<(u32, u32)> {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let is_user = Some(owner) == name.as_deref() || owner.parse() == Ok(uid);
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (is_user && count > 0).then_some((first, count))
    };
    let mut ranges = vec![Range { inside: 0, outside: own, count: 1 }];
    let mut inside: u32 = 1;
    for (outside, count) in table.lines().filter_map(given).take(RANGES_MAX) {
        ranges.push(Range { inside, outside, count });
        inside = inside.checked_add(count)?;
    }
    (ranges.len() > 1).then_some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n";

    fn range(inside: u32, outside: u32, count: u32) -> Range {
        Range { inside, outside, count }
    }

    #[test]
    fn a_user_s_ranges_follow_its_own_id() {
        let table = "you:1:65536\nme:100000:65536\n1000:300000:10\nme:900000:0\nme:broken\n";
        let expected = vec![range(0, 1000, 1), range(1, 100_000, 65536), range(65537, 300_000, 10)];
        assert_eq!(mapping(table, PASSWD, 1000, 1000), Some(expected));
        assert_eq!(mapping(table, PASSWD, 1000, 7).unwrap()[0], range(0, 7, 1));
    }

    #[test]
    fn a_user_without_ranges_has_no_mapping() {
        assert_eq!(mapping("you:1:65536\n", PASSWD, 1000, 1000), None);
        assert_eq!(mapping("", PASSWD, 1000, 1000), None);
        assert_eq!(mapping("me:1:4294967295\nme:1:9\n", PASSWD, 1000, 1000), None, "more IDs than there are");
    }

    #[test]
    fn ids_are_translated_if_one_range_has_them_all() {
        let ranges = [range(0, 1000, 1), range(1, 100_000, 10)];
        let translated = |outside, count| inside(&ranges, outside, count);
        assert_eq!(translated(1000, 1), Some(0));
        assert_eq!(translated(100_003, 7), Some(4));
        for (outside, count) in [(1000, 2), (100_003, 8), (99_999, 1), (100_010, 1), (100_001, u32::MAX)] {
            assert_eq!(translated(outside, count), None, "{outside}, {count}");
        }
    }

    #[test]
    fn a_user_is_found_by_its_number() {
        assert_eq!(name_in(PASSWD, 1000).as_deref(), Some("me"));
        assert_eq!(name_in(PASSWD, 5), None);
    }
}
