//! `linux.resources.devices` to what the guest's kernel filters a container's devices by: a default, and exceptions from it.
//!
//! The rules of a bundle are in order and the last that fits decides, letter by letter of `rwm`. The kernel's controller
//! (Documentation/admin-guide/cgroup-v1/devices.rst) has no order. Each rule is therefore added to the exceptions or taken out
//! of them here; what then is no set of exceptions, such as all of a major number but for one minor, is refused.

use std::fmt;

use agent_proto::payload::DEVICE_RULES_MAX;

use oci::bundle::{BundleError, Result, invalid, unsupported};
use oci::spec::resources::DeviceRule;

use crate::device_rules::{self, Kind, Rule, access};

/// Where the rules are in config.json.
const PATH: &str = "linux.resources.devices";

const LETTERS: [(u8, char); 3] = [(access::READ, 'r'), (access::WRITE, 'w'), (access::MAKE, 'm')];

/// What every container may use: runc's list (libcontainer/specconv, `AllowedDevices`). It comes behind a bundle's rules, so
/// that none of them takes it away.
const DEFAULTS: [Devices; 10] = [
    // A node can be made of every device, and opened where a rule allows that.
    Devices { kind: 'c', major: None, minor: None, access: access::MAKE },
    Devices { kind: 'b', major: None, minor: None, access: access::MAKE },
    // null, zero, full, random, urandom.
    device(1, 3),
    device(1, 5),
    device(1, 7),
    device(1, 8),
    device(1, 9),
    // tty, ptmx, and every pseudo-terminal.
    device(5, 0),
    device(5, 2),
    Devices { kind: 'c', major: Some(136), minor: None, access: access::ALL },
];

const fn device(major: u32, minor: u32) -> Devices {
    Devices { kind: 'c', major: Some(major), minor: Some(minor), access: access::ALL }
}

/// Some devices, and ways to use them. A number that is not given is any.
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
    /// Whether every device of `other` is one of these.
    fn include(&self, other: &Devices) -> bool {
        let number = |ours: Option<u32>, theirs: Option<u32>| ours.is_none() || ours == theirs;
        self.kind == other.kind && number(self.major, other.major) && number(self.minor, other.minor)
    }

    /// Whether there is a device that is among these and among `other`.
    fn meet(&self, other: &Devices) -> bool {
        let number = |ours: Option<u32>, theirs: Option<u32>| {
            ours.zip(theirs).is_none_or(|(ours, theirs)| ours == theirs)
        };
        self.kind == other.kind && number(self.major, other.major) && number(self.minor, other.minor)
    }
}

/// What a container may do with devices.
struct Filter {
    /// What is allowed but for the exceptions, or else nothing is.
    allow: bool,
    exceptions: Vec<Devices>,
}

/// Returns the agent's rules for the container's cgroup; none where everything is allowed.
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
        return Err(invalid(PATH, format!("more than the {DEVICE_RULES_MAX} rules of a guest's filter")));
    }
    Ok(rules)
}

/// Complains of a rule for `devices` in the middle of `within`.
fn cut(at: &str, devices: &Devices, within: &Devices) -> BundleError {
    unsupported(at, format!("{devices} is an exception from {within}, which is one itself"))
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

    /// Allows or forbids `devices` from here on; what they would have to be cut out of is the error.
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

    /// Takes `devices` out of the exceptions.
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
