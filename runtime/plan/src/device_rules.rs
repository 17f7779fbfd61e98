//! Translates `linux.resources.devices` to rules with one notation for "all" (config-linux.md, "Allowed Device list").
//! Their users decide about access to devices.
//!
//! As with runc the last matching rule decides, and the rules for devices that every container may use follow the
//! bundle's. Unlike with runc a container may not create all nodes: runc's `c *:* m` and `b *:* m` are missing here,
//! because a node that the guest creates in a host directory is a device of the host for every process that opens it
//! there.

use oci::error::{Result, invalid};
use oci::spec::resources::DeviceRule;
use serde::{Deserialize, Serialize};

/// Access to a device, as bits.
pub mod access {
    pub const READ: u8 = 1;
    pub const WRITE: u8 = 2;
    /// Create a node (mknod(2)).
    pub const MAKE: u8 = 4;
    pub const ALL: u8 = READ | WRITE | MAKE;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Character,
    Block,
}

/// A rule for devices. A field of `None` matches all devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub allow: bool,
    pub kind: Option<Kind>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// Bits of [`access`] that the rule allows or denies.
    pub access: u8,
}

/// Devices that every container may use: null, zero, full, random, urandom, tty, ptmx.
pub const USUAL: [Rule; 7] = [
    character(1, Some(3)),
    character(1, Some(5)),
    character(1, Some(7)),
    character(1, Some(8)),
    character(1, Some(9)),
    character(5, Some(0)),
    character(5, Some(2)),
];

/// Returns the rule that allows a character device, or all with this major number.
pub const fn character(major: u32, minor: Option<u32>) -> Rule {
    Rule { allow: true, kind: Some(Kind::Character), major: Some(major), minor, access: access::ALL }
}

/// Returns the rules in order: those of the bundle, then those for devices that every container may use.
pub fn rules(given: &[DeviceRule]) -> Result<Vec<Rule>> {
    const CONSOLE: Rule = character(5, Some(1));
    Ok(of_bundle(given)?.into_iter().chain(USUAL).chain([CONSOLE]).collect())
}

/// Returns only the rules of the bundle.
pub fn of_bundle(given: &[DeviceRule]) -> Result<Vec<Rule>> {
    given.iter().enumerate().map(|(index, rule)| parse(index, rule)).collect()
}

fn parse(index: usize, rule: &DeviceRule) -> Result<Rule> {
    let at = |field: &str| format!("linux.resources.devices[{index}].{field}");
    let kind = match rule.kind.as_str() {
        "" | "a" => None,
        "b" => Some(Kind::Block),
        "c" => Some(Kind::Character),
        other => return Err(invalid(&at("type"), format!("{other:?}"))),
    };
    let number = |field, given: Option<i64>| match given.filter(|number| *number >= 0) {
        None => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| invalid(&at(field), format!("{number} is not a valid device number"))),
    };
    let mut bits = if rule.access.is_empty() { access::ALL } else { 0 };
    for letter in rule.access.chars() {
        bits |= match letter {
            'r' => access::READ,
            'w' => access::WRITE,
            'm' => access::MAKE,
            other => return Err(invalid(&at("access"), format!("{other:?}"))),
        };
    }
    let (major, minor) = (number("major", rule.major)?, number("minor", rule.minor)?);
    Ok(Rule { allow: rule.allow, kind, major, minor, access: bits })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Whether the rules allow all bits of `access` to a device. Without a matching rule they do not.
    pub fn allow(rules: &[Rule], (kind, major, minor): (Kind, u32, u32), access: u8) -> bool {
        let names = |rule: &&Rule, bit: u8| {
            rule.access & bit != 0
                && rule.kind.is_none_or(|own| own == kind)
                && rule.major.is_none_or(|own| own == major)
                && rule.minor.is_none_or(|own| own == minor)
        };
        [access::READ, access::WRITE, access::MAKE]
            .into_iter()
            .filter(|bit| access & bit != 0)
            .all(|bit| rules.iter().rfind(|rule| names(rule, bit)).is_some_and(|rule| rule.allow))
    }

    fn parsed(json: serde_json::Value) -> Result<Vec<Rule>> {
        rules(&serde_json::from_value::<Vec<DeviceRule>>(json).unwrap())
    }

    #[test]
    fn the_last_matching_rule_decides() {
        let docker = serde_json::json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
            {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
            {"allow": true, "type": "b", "major": 7, "access": "rm"},
            {"allow": true, "type": "c", "major": 10, "minor": -1, "access": "r"},
            {"allow": false, "type": "b", "major": 7, "minor": 9, "access": "m"}
        ]);
        let rules = parsed(docker).unwrap();
        for (device, bits, allowed) in [
            ((Kind::Character, 1, 5), access::ALL, true),
            ((Kind::Character, 1, 3), access::ALL, true),
            ((Kind::Character, 5, 1), access::ALL, true),
            ((Kind::Block, 1, 3), access::MAKE, false),
            ((Kind::Block, 8, 0), access::MAKE, false),
            ((Kind::Character, 1, 1), access::MAKE, false),
            ((Kind::Block, 7, 3), access::MAKE, true),
            ((Kind::Block, 7, 3), access::READ | access::MAKE, true),
            ((Kind::Block, 7, 3), access::ALL, false),
            ((Kind::Block, 7, 9), access::MAKE, false),
            ((Kind::Block, 7, 9), access::READ, true),
            ((Kind::Character, 10, 229), access::READ, true),
            ((Kind::Character, 10, 229), access::MAKE, false),
        ] {
            assert_eq!(allow(&rules, device, bits), allowed, "{device:?} {bits}");
        }
    }

    #[test]
    fn all_notations_of_all_are_equal() {
        for rule in [
            serde_json::json!({"allow": true}),
            serde_json::json!({"allow": true, "type": "a", "access": "rwm"}),
            serde_json::json!({"allow": true, "major": -1, "minor": -1, "access": "mrw"}),
        ] {
            let rules = parsed(serde_json::json!([rule])).unwrap();
            let expected = Rule { allow: true, kind: None, major: None, minor: None, access: access::ALL };
            assert_eq!(rules[0], expected);
            assert!(allow(&rules, (Kind::Block, 8, 0), access::ALL));
        }
        // The bundle cannot deny the devices that every container may use.
        let rules = parsed(serde_json::json!([{"allow": true}, {"allow": false}])).unwrap();
        assert!(!allow(&rules, (Kind::Block, 8, 0), access::READ));
        assert!(allow(&rules, (Kind::Character, 1, 3), access::ALL));
    }

    #[test]
    fn invalid_rules_are_refused_by_their_path() {
        for (rule, message) in [
            (serde_json::json!({"type": "x"}), r#"linux.resources.devices[0].type: "x""#),
            (serde_json::json!({"access": "rx"}), "linux.resources.devices[0].access: 'x'"),
            (
                serde_json::json!({"minor": 1i64 << 32}),
                "linux.resources.devices[0].minor: 4294967296 is not a valid device number",
            ),
        ] {
            let error = parsed(serde_json::json!([rule])).unwrap_err();
            assert_eq!(error.to_string(), format!("config.json {message}"));
        }
    }
}
