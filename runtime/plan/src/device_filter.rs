//! Translates `linux.resources.devices` into rules for the devices controller of the guest's kernel.
//!
//! In a bundle the last matching rule decides, separately for each letter of `rwm`. The kernel's controller
//! (Documentation/admin-guide/cgroup-v1/devices.rst) knows no order: it has a default and a set of exceptions from the
//! default. [`rules`] applies the bundle's rules one after the other to such a set. Some results are no set of
//! exceptions, for example a major number without one of its minor numbers while all else is denied. Such rules are
//! refused.

use std::fmt;

use agent_proto::payload::DEVICE_RULES_MAX;
use oci::error::{BundleError, Result, invalid, unsupported};
use oci::spec::resources::DeviceRule;

use crate::device_rules::{self, Kind, Rule, USUAL, access, character};

/// JSON path of the rules.
const PATH: &str = "linux.resources.devices";

const LETTERS: [(u8, char); 3] = [(access::READ, 'r'), (access::WRITE, 'w'), (access::MAKE, 'm')];

/// mknod(2) of every device; opening the node needs another rule.
const MAKE: [Rule; 2] = [make(Kind::Character), make(Kind::Block)];
/// Pseudo-terminals.
const TERMINALS: Rule = character(136, None);

const fn make(kind: Kind) -> Rule {
    Rule { allow: true, kind: Some(kind), major: None, minor: None, access: access::MAKE }
}

/// The devices of a rule and the access to them in the form of the controller, such as `c 1:3 rw`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == Some(Kind::Block) { 'b' } else { 'c' };
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        let letters = LETTERS.iter().filter(|(bit, _)| self.access & bit != 0).map(|(_, letter)| letter);
        let (major, minor) = (number(self.major), number(self.minor));
        write!(f, "{kind} {major}:{minor} {}", letters.collect::<String>())
    }
}

impl Rule {
    /// Whether the rule is about every device of `other`; ignores the access.
    fn includes(&self, other: &Rule) -> bool {
        let number = |ours: Option<u32>, theirs: Option<u32>| ours.is_none() || ours == theirs;
        self.kind == other.kind && number(self.major, other.major) && number(self.minor, other.minor)
    }

    /// Whether the rule and `other` are about a common device; ignores the access.
    fn meets(&self, other: &Rule) -> bool {
        let number = |ours: Option<u32>, theirs: Option<u32>| {
            ours.zip(theirs).is_none_or(|(ours, theirs)| ours == theirs)
        };
        self.kind == other.kind && number(self.major, other.major) && number(self.minor, other.minor)
    }
}

/// The state of the kernel's controller.
struct Filter {
    /// The default.
    allow: bool,
    /// Rules with the opposite effect, each for one kind of device.
    exceptions: Vec<Rule>,
}

/// Returns the rules for the container's cgroup in the agent's form
/// ([`agent_proto::payload::OciContainer::device_rules`]). The list is empty if the container can use all devices.
pub fn rules(given: &[DeviceRule]) -> Result<Vec<String>> {
    let mut filter = Filter { allow: false, exceptions: Vec::new() };
    for (index, rule) in device_rules::of_bundle(given)?.iter().enumerate() {
        filter.apply(rule).map_err(|(rule, within)| cut(&format!("{PATH}[{index}]"), &rule, &within))?;
    }
    // The list is runc's (libcontainer/specconv, `AllowedDevices`). Like there, it follows the bundle's rules, so a
    // bundle cannot deny these devices.
    for rule in MAKE.into_iter().chain(USUAL).chain([TERMINALS]) {
        filter.set(rule).map_err(|within| cut(PATH, &rule, &within))?;
    }
    if filter.allow && filter.exceptions.is_empty() {
        return Ok(Vec::new());
    }
    let (default, exception) = if filter.allow { ("allow", "deny") } else { ("deny", "allow") };
    let exceptions = filter.exceptions.iter().map(|rule| format!("{exception} {rule}"));
    let rules: Vec<String> = std::iter::once(format!("{default} a")).chain(exceptions).collect();
    if rules.len() > DEVICE_RULES_MAX {
        return Err(invalid(PATH, format!("limit of {DEVICE_RULES_MAX} rules exceeded")));
    }
    Ok(rules)
}

/// Returns the error for a rule whose devices are only a part of the exception `within`.
fn cut(at: &str, rule: &Rule, within: &Rule) -> BundleError {
    let why = format!("{rule} is only a part of {within}, which an earlier rule excepts from the default");
    unsupported(at, why)
}

impl Filter {
    /// Takes a rule. Fails with the rule for one kind of device, and the exception of which it is only a part.
    fn apply(&mut self, rule: &Rule) -> Result<(), (Rule, Rule)> {
        if (rule.kind, rule.major, rule.minor, rule.access) == (None, None, None, access::ALL) {
            *self = Filter { allow: rule.allow, exceptions: Vec::new() };
            return Ok(());
        }
        let kinds = rule.kind.map_or(vec![Kind::Character, Kind::Block], |kind| vec![kind]);
        kinds
            .into_iter()
            .map(|kind| Rule { kind: Some(kind), ..*rule })
            .try_for_each(|rule| self.set(rule).map_err(|within| (rule, within)))
    }

    /// Takes a rule for one kind of device. Fails with the exception of which it is only a part.
    fn set(&mut self, rule: Rule) -> Result<(), Rule> {
        if rule.allow == self.allow {
            return self.take(&rule);
        }
        let same = |known: &&mut Rule| known.includes(&rule) && rule.includes(known);
        match self.exceptions.iter_mut().find(same) {
            Some(known) => known.access |= rule.access,
            None => self.exceptions.push(rule),
        }
        Ok(())
    }

    /// Removes a rule's devices from the exceptions.
    fn take(&mut self, rule: &Rule) -> Result<(), Rule> {
        for known in &mut self.exceptions {
            if rule.includes(known) {
                known.access &= !rule.access;
            } else if rule.meets(known) && rule.access & known.access != 0 {
                return Err(*known);
            }
        }
        self.exceptions.retain(|known| known.access != 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
