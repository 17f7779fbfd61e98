//! Translates `linux.devices` to nodes that the agent creates. A node refers to a device of the guest by its number, so
//! that only devices of the guest's kernel may be requested. Also decides which nodes the guest may create in the
//! share, where the number refers to a device of the host.

use agent_proto::payload;
use oci::bundle::DeviceNode;
use oci::error::{BundleError, Result, invalid, unsupported};
use oci::spec::resources::DeviceRule;
use oci::spec::{Capabilities, Device, Mount};

use crate::device_rules::{Kind, Rule, access};

/// File types of mknod(2).
const CHARACTER: u32 = libc::S_IFCHR;
const BLOCK: u32 = libc::S_IFBLK;
const FIFO: u32 = libc::S_IFIFO;

/// Character devices of the guest: name in /dev, major and minor number (Linux, Documentation/admin-guide/devices.txt).
///
/// The guest's console and the agent's ports exist as well, but no container may use them.
const DEVICES: [(&str, u32, u32); 12] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("kmsg", 1, 11),
    ("tty", 5, 0),
    (PTMX, 5, 2),
    ("net/tun", 10, 200),
    ("fuse", 10, 229),
    ("loop-control", 10, 237),
    ("ppp", 108, 0),
];
/// Each devpts has one of its own, to which a link in /dev leads.
const PTMX: &str = "ptmx";
/// Major number of the block devices loop0 to loop255.
const LOOP: u32 = 7;

/// Paths at which the agent creates nodes of the container's own terminals.
const OWN: [&str; 3] = ["/dev/console", "/dev/ptmx", "/dev/pts/ptmx"];

/// Permissions of a node without `fileMode`.
const MODE: u32 = 0o666;

/// Returns the nodes to create, and the paths of the devices that the guest does not have. Nodes that the agent creates
/// for the container's own terminals are left out of both.
///
/// Engines give a container that may use all devices (`--privileged`) a list of all devices of the host. Such a
/// container gets the devices of the list that the guest has; for other containers a missing device is an error.
pub fn nodes<'a>(
    devices: &'a [Device],
    rules: &[DeviceRule],
) -> Result<(Vec<payload::Device>, Vec<&'a str>)> {
    // As with runc, a device without a path is only meant for the cgroup.
    let given = |device: &Device| !device.path.is_empty() && !OWN.contains(&device.path.as_str());
    let nodes = devices.iter().enumerate().filter(|(_, device)| given(device));
    let nodes = nodes.map(|(index, device)| (device, node(&format!("linux.devices[{index}]"), device)));
    if !allows_all(rules) {
        return Ok((nodes.map(|(_, node)| node).collect::<Result<_>>()?, Vec::new()));
    }
    let (mut made, mut left_out) = (Vec::new(), Vec::new());
    for (device, node) in nodes {
        match node {
            Err(BundleError::Unsupported { .. }) => left_out.push(device.path.as_str()),
            node => made.push(node?),
        }
    }
    Ok((made, left_out))
}

/// Whether the last rule about all devices allows all access.
fn allows_all(rules: &[DeviceRule]) -> bool {
    let of_all = |rule: &&DeviceRule| {
        let number = |number: Option<i64>| number.is_none_or(|number| number < 0);
        ["", "a"].contains(&rule.kind.as_str()) && number(rule.major) && number(rule.minor)
    };
    let every = |access: &str| access.is_empty() || "rwm".chars().all(|letter| access.contains(letter));
    rules.iter().rfind(of_all).is_some_and(|rule| rule.allow && every(&rule.access))
}

/// Returns the rules for nodes that a container may create in the share: those of the bundle, if the bounding set has
/// CAP_MKNOD, and otherwise none.
pub fn makeable(rules: &[Rule], capabilities: Option<&Capabilities>) -> Vec<Rule> {
    let bounding = capabilities.map_or(&[][..], |sets| &sets.bounding);
    if !bounding.iter().any(|name| name == "CAP_MKNOD") {
        return Vec::new();
    }
    rules.iter().filter(|rule| rule.access & access::MAKE != 0).cloned().collect()
}

/// Adds rules by which the agent may create the bundle's nodes in the root directory, except nodes below a mount.
pub fn allow_made(rules: &mut Vec<Rule>, made: &[payload::Device], mounts: &[Mount]) {
    let hidden = |path: &str| {
        let below = |mount: &Mount| path.starts_with(&format!("/{}/", mount.destination.trim_matches('/')));
        mounts.iter().any(below)
    };
    let kinds = [(CHARACTER, Kind::Character), (BLOCK, Kind::Block)];
    for device in made.iter().filter(|device| !hidden(&device.path)) {
        if let Some((_, kind)) = kinds.iter().find(|(mode, _)| device.mode & libc::S_IFMT == *mode) {
            let (major, minor) = (Some(device.major), Some(device.minor));
            rules.push(Rule { allow: true, kind: Some(*kind), major, minor, access: access::MAKE });
        }
    }
}

/// Whether the guest has this device, for containers.
pub fn is_of_guest(node: DeviceNode) -> bool {
    has(if node.is_block { BLOCK } else { CHARACTER }, node.major, node.minor)
}

fn has(kind: u32, major: u32, minor: u32) -> bool {
    match kind {
        BLOCK => major == LOOP && minor < 256,
        _ => DEVICES.iter().any(|&(_, first, second)| (first, second) == (major, minor)),
    }
}

/// Number of loop devices in a directory that replaces the host's /dev.
const LOOPS: u32 = 8;

/// Returns the nodes for directory `dev`, which replaces the host's /dev.
pub fn of_dev(dev: &str) -> Vec<payload::Device> {
    let node = |name: String, kind, major, minor| payload::Device {
        path: format!("{}/{name}", dev.trim_end_matches('/')),
        mode: kind | MODE,
        major,
        minor,
        ..payload::Device::default()
    };
    let named = DEVICES.iter().filter(|(name, ..)| *name != PTMX);
    let named = named.map(|&(name, major, minor)| node(name.to_owned(), CHARACTER, major, minor));
    named.chain((0..LOOPS).map(|number| node(format!("loop{number}"), BLOCK, LOOP, number))).collect()
}

fn node(at: &str, device: &Device) -> Result<payload::Device> {
    let kind = match device.kind.as_str() {
        "c" | "u" => CHARACTER,
        "b" => BLOCK,
        "p" => FIFO,
        other => return Err(invalid(&format!("{at}.type"), format!("{other:?}"))),
    };
    let (major, minor) =
        if kind == FIFO { (Some(0), Some(0)) } else { (number(device.major), number(device.minor)) };
    let (Some(major), Some(minor)) = (major, minor) else { return Err(missing(at, device)) };
    if kind != FIFO && !has(kind, major, minor) {
        return Err(missing(at, device));
    }
    let mode = kind | device.file_mode.unwrap_or(MODE) & 0o7777;
    // As with runc, a relative path starts at the root directory.
    let path = format!("/{}", device.path.trim_start_matches('/'));
    Ok(payload::Device { path, mode, major, minor, uid: device.uid, gid: device.gid })
}

fn number(given: i64) -> Option<u32> {
    u32::try_from(given).ok()
}

fn missing(at: &str, device: &Device) -> BundleError {
    let Device { path, kind, major, minor, .. } = device;
    unsupported(at, format!("{path}: the guest has no device {kind} {major}:{minor}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device_rules;

    fn device(path: &str, kind: &str, major: i64, minor: i64) -> Device {
        Device { path: path.to_owned(), kind: kind.to_owned(), major, minor, ..Device::default() }
    }

    #[test]
    fn devices_of_the_guest_become_nodes() {
        let fuse = Device { file_mode: Some(0o100_640), uid: 5, gid: 6, ..device("/dev/fuse", "u", 10, 229) };
        let pipe = device("/run/p", "p", 0, 0);
        let (made, _) = nodes(&[fuse, pipe, device("/dev/loop7", "b", 7, 7)], &[]).unwrap();
        let expected = |path: &str, mode, major, minor| payload::Device {
            path: path.to_owned(),
            mode,
            major,
            minor,
            ..Default::default()
        };
        assert_eq!(made[0], payload::Device { uid: 5, gid: 6, ..expected("/dev/fuse", 0o20640, 10, 229) });
        assert_eq!(made[1..], [expected("/run/p", 0o10666, 0, 0), expected("/dev/loop7", 0o60666, 7, 7)]);
        let (made, _) = nodes(&[device("", "", 0, 0), device("null", "c", 1, 3)], &[]).unwrap();
        assert_eq!(made, [expected("/null", 0o20666, 1, 3)]);
    }

    #[test]
    fn nodes_of_the_container_s_terminals_are_left_to_the_agent() {
        assert_eq!(
            nodes(&[device("/dev/console", "c", 5, 1), device("/dev/ptmx", "c", 5, 2)], &[]).unwrap(),
            (vec![], vec![])
        );
    }

    #[test]
    fn a_container_that_may_use_all_devices_gets_those_of_the_guest() {
        let rule = |allow, kind: &str, access: &str| DeviceRule {
            allow,
            kind: kind.to_owned(),
            access: access.to_owned(),
            ..DeviceRule::default()
        };
        let devices = [device("/dev/kvm", "c", 10, 232), device("/dev/fuse", "c", 10, 229)];
        for rules in [&[rule(true, "", "rwm")][..], &[rule(false, "a", ""), rule(true, "a", "")]] {
            let (made, missing) = nodes(&devices, rules).unwrap();
            assert_eq!(made.len(), 1, "{rules:?}");
            assert_eq!((made[0].path.as_str(), missing), ("/dev/fuse", vec!["/dev/kvm"]));
        }
        let wrong = nodes(&[device("/x", "s", 1, 3)], &[rule(true, "", "rwm")]).unwrap_err();
        assert!(matches!(wrong, BundleError::Invalid { .. }));
        for rules in [
            &[rule(false, "", "rwm")][..],
            &[rule(true, "", "rwm"), rule(false, "", "rwm")],
            &[rule(true, "c", "rwm")],
            &[rule(true, "", "r")],
        ] {
            assert!(nodes(&devices, rules).is_err(), "{rules:?}");
        }
    }

    #[test]
    fn nodes_in_the_share_need_the_capability_and_a_rule() {
        let given = [DeviceRule {
            allow: true,
            kind: "b".to_owned(),
            major: Some(7),
            access: "rm".to_owned(),
            ..DeviceRule::default()
        }];
        let rules = device_rules::rules(&given).unwrap();
        let may = |names: &[&str]| Capabilities {
            bounding: names.iter().map(|name| name.to_string()).collect(),
            ..Capabilities::default()
        };
        assert!(makeable(&rules, None).is_empty());
        assert!(makeable(&rules, Some(&may(&["CAP_CHOWN"]))).is_empty());
        let rules = makeable(&rules, Some(&may(&["CAP_CHOWN", "CAP_MKNOD"])));
        for (device, allowed) in [
            ((Kind::Block, 7, 3), true),
            ((Kind::Block, 8, 0), false),
            ((Kind::Character, 7, 3), false),
            ((Kind::Character, 1, 3), true),
            ((Kind::Character, 1, 1), false),
        ] {
            assert_eq!(device_rules::tests::allow(&rules, device, access::MAKE), allowed, "{device:?}");
        }
    }

    #[test]
    fn the_bundle_s_nodes_may_be_made_where_nothing_is_mounted() {
        let mount = |destination: &str| Mount { destination: destination.to_owned(), ..Mount::default() };
        let (made, _) =
            nodes(&[device("/dev/fuse", "c", 10, 229), device("/run/p", "p", 0, 0)], &[]).unwrap();
        for (mounts, allowed) in [
            (&[mount("/devices"), mount("/proc")][..], true),
            (&[mount("/dev/pts")], true),
            (&[mount("/proc"), mount("dev/")], false),
        ] {
            let mut rules = Vec::new();
            allow_made(&mut rules, &made, mounts);
            let makes = |kind| device_rules::tests::allow(&rules, (kind, 10, 229), access::MAKE);
            assert_eq!((makes(Kind::Character), makes(Kind::Block)), (allowed, false), "{mounts:?}");
        }
    }

    #[test]
    fn other_devices_are_refused_by_name() {
        for (device, message) in [
            (
                device("/dev/kvm", "c", 10, 232),
                "linux.devices[1]: not supported: /dev/kvm: the guest has no device c 10:232",
            ),
            (
                device("/dev/mem", "c", 1, 1),
                "linux.devices[1]: not supported: /dev/mem: the guest has no device c 1:1",
            ),
            (
                device("/dev/x", "c", 5, 1),
                "linux.devices[1]: not supported: /dev/x: the guest has no device c 5:1",
            ),
            (
                device("/dev/x", "b", 1, 3),
                "linux.devices[1]: not supported: /dev/x: the guest has no device b 1:3",
            ),
            (
                device("/dev/x", "c", -1, 3),
                "linux.devices[1]: not supported: /dev/x: the guest has no device c -1:3",
            ),
            (device("/dev/x", "s", 1, 3), r#"linux.devices[1].type: "s""#),
        ] {
            let error = nodes(&[self::device("/dev/null", "c", 1, 3), device], &[]).unwrap_err();
            assert_eq!(error.to_string(), format!("config.json {message}"));
        }
    }
}
