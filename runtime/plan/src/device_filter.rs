//! Translates `linux.resources.devices` into rules for the devices controller of the guest's kernel.
//!
//! In a bundle the last matching rule decides, separately for each letter of `rwm`. The kernel's controller
//! (Documentation/admin-guide/cgroup-v1/devices.rst) knows no order: it has a default and a set of exceptions from the
//! default. [`rules`] applies the bundle's rules one after the other to such a set. Some results are no set of exceptions,
//! for example a major number without one of its minor numbers while all else is denied. Such rules are refused.

use std::fmt;

use agent_proto::payload::DEVICE_RULES_MAX;

use oci::error::{BundleError, Result, invalid, unsupported};
use oci::spec::resources::DeviceRule;

use crate::device_rules::{self, Kind, Rule, access};

/// JSON path of the rules.
const PATH: &str = "linux.resources.devices";

const LETTERS: [(u8, char); 3] = [(access::READ, 'r'), (access::WRITE, 'w'), (access::MAKE, 'm')];

/// Devices that every container can use. The list is runc's (libcontainer/specconv, `AllowedDevices`). Like runc, [`rules`]
/// appends it to the bundle's rules, so a bundle cannot deny these devices.
const DEFAULTS: [Devices; 10] = [
    // mknod(2) of every device; opening the node needs another rule.
    Devices { kind: 'c', major: None, minor: None, access: access::MAKE },
    Devices { kind: 'b', major: None, minor: None, access: access::MAKE },
    // null, zero, full, random, urandom.
    device(1, 3),
    device(1, 5),
    device(1, 7),
    device(1, 8),
    device(1, 9),
    // tty, ptmx, pseudo-terminals.
    device(5, 0),
    device(5, 2),
    Devices { kind: 'c', major: Some(136), minor: None, access: access::ALL },
];

const fn device(major: u32, minor: u32) -> Devices {
    Devices { kind: 'c', major: Some(major), minor: Some(minor), access: access::ALL }
}

/// Access to a set of devices. `None` stands for every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Devices {
    /// `c` or `b`.
    kind: char,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        let letters = LETTERS.iter().filter(|(bit, _)| self.access & bit != 0).map(|(_, letter)| letter);
        let (major, minor) = (number(self.major), number(self.minor));
        write!(f, "{} {major}:{minor} {}", self.kind, letters.collect::<String>())
    }
}

impl Devices {
    /// Whether the set contains every device of `other`; ignores the access.
    fn include(&self, other: &Devices) -> bool {
        let number = |ours: Option<u32>, theirs: Option<u32>| ours.is_none() || ours == theirs;
        self.kind == other.kind && number(self.major, other.major) && number(self.minor, other.minor)
    }

    /// Whether the set and `other` have a device in common; ignores the access.
    fn meet(&self, other: &Devices) -> bool {
        let number = |ours: Option<u32>, theirs: Option<u32>| {
            ours.zip(theirs).is_none_or(|(ours, theirs)| ours == theirs)
        };
        self.kind == other.kind && number(self.major, other.major) && number(self.minor, other.minor)
    }
}

/// The state of the kernel's controller.
struct Filter {
    /// The default; the exceptions have the opposite effect.
    allow: bool,
    exceptions: Vec<Devices>,
}

/// Returns the rules for the container's cgroup in the agent's form ([`agent_proto::payload::OciContainer::device_rules`]).
/// The list is empty if the container can use all devices.
pub fn rules(given: &[DeviceRule]) -> Result<Vec<String>> {
    let mut filter = Filter { allow: false, exceptions: Vec::new() };
    for (index, rule) in device_rules::of_bundle(given)?.iter().enumerate() {
        filter
            .apply(rule)
            .map_err(|(devices, within)| cut(&format!("{PATH}[{index}]"), &devices, &within))?;
    }
    for devices in DEFAULTS {
        filter.set(true, devices).map_err(|within| cut(PATH, &devices, &within))?;
    }
    if filter.allow && filter.exceptions.is_empty() {
        return Ok(Vec::new());
    }
    let (default, exception) = if filter.allow { ("allow", "deny") } else { ("deny", "allow") };
    let exceptions = filter.exceptions.iter().map(|devices| format!("{exception} {devices}"));
    let rules: Vec<String> = std::iter::once(format!("{default} a")).chain(exceptions).collect();
    if rules.len() > DEVICE_RULES_MAX {
        return Err(invalid(PATH, format!("limit of {DEVICE_RULES_MAX} rules exceeded")));
    }
    Ok(rules)
}

/// Returns the error for a rule about `devices`, which are only a part of the exception `within`.
fn cut(at: &str, devices: &Devices, within: &Devices) -> BundleError {
    unsupported(
        at,
        format!("{devices} is only a part of {within}, which an earlier rule excepts from the default"),
    )
}

impl Filter {
    /// Takes a rule; the error is what it would have to be cut out of.
    fn apply(&mut self, rule: &Rule) -> Result<(), (Devices, Devices)> {
        let Rule { allow, kind, major, minor, access } = *rule;
        if (kind, major, minor, access) == (None, None, None, access::ALL) {
            *self = Filter { allow, exceptions: Vec::new() };
            return Ok(());
        }
        let kinds: &[char] = match kind {
            None => &['c', 'b'],
            Some(Kind::Character) => &['c'],
            Some(Kind::Block) => &['b'],
        };
        for kind in kinds {
            let devices = Devices { kind: *kind, major, minor, access };
            self.set(allow, devices).map_err(|within| (devices, within))?;
        }
        Ok(())
    }

    /// Allows or denies `devices`. Fails with the exception of which `devices` are only a part.
    fn set(&mut self, allow: bool, devices: Devices) -> Result<(), Devices> {
        if allow == self.allow {
            return self.take(&devices);
        }
        let same = |known: &&mut Devices| known.include(&devices) && devices.include(known);
        match self.exceptions.iter_mut().find(same) {
            Some(known) => known.access |= devices.access,
            None => self.exceptions.push(devices),
        }
        Ok(())
    }

    /// Removes `devices` from the exceptions.
    fn take(&mut self, devices: &Devices) -> Result<(), Devices> {
        for known in &mut self.exceptions {
            if devices.include(known) {
                known.access &= !devices.access;
            } else if devices.meet(known) && devices.access & known.access != 0 {
                return Err(*known);
            }
        }
        self.exceptions.retain(|known| known.access != 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
