//! Translates capability names to the kernel's bits (linux/capability.h).

use std::collections::BTreeSet;

use agent_proto::payload::Capabilities as Masks;
use oci::spec::Capabilities;
use rustix::thread::CapabilitySet;

/// Returns the names in the order of their bits.
pub fn names() -> impl Iterator<Item = String> {
    CapabilitySet::all().iter_names().map(|(name, _)| format!("CAP_{name}"))
}

/// Returns the names in `sets` that the kernel does not know. They are ignored with a warning, as the specification
/// demands.
pub fn unknown(sets: &Capabilities) -> Vec<&str> {
    let all = [&sets.bounding, &sets.effective, &sets.inheritable, &sets.permitted, &sets.ambient];
    let names = all.into_iter().flatten().map(String::as_str).filter(|name| bit(name).is_none());
    names.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Returns the names in `sets.ambient` that the kernel refuses there: a capability of the ambient set has to be in the
/// permitted and the inheritable set (capabilities(7)).
pub fn not_raised(sets: &Capabilities) -> Vec<&str> {
    let refused = mask(&sets.ambient) & !raisable(sets);
    let names = sets.ambient.iter().map(String::as_str);
    names.filter(|name| bit(name).is_some_and(|bit| refused & bit != 0)).collect()
}

/// Returns the five masks. A process without `capabilities` has none, as with runc. Ambient capabilities that the
/// kernel would refuse are left out, as with runc.
pub fn masks(sets: Option<&Capabilities>) -> Masks {
    let Some(sets) = sets else { return Masks::default() };
    Masks {
        bounding: mask(&sets.bounding),
        effective: mask(&sets.effective),
        inheritable: mask(&sets.inheritable),
        permitted: mask(&sets.permitted),
        ambient: mask(&sets.ambient) & raisable(sets),
    }
}

fn raisable(sets: &Capabilities) -> u64 {
    mask(&sets.permitted) & mask(&sets.inheritable)
}

fn mask(names: &[String]) -> u64 {
    names.iter().filter_map(|name| bit(name)).fold(0, |mask, bit| mask | bit)
}

fn bit(name: &str) -> Option<u64> {
    CapabilitySet::from_name(name.strip_prefix("CAP_")?).map(|set| set.bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_kernel_s_numbers() {
        for (name, number) in [
            ("CAP_CHOWN", Some(0)),
            ("CAP_KILL", Some(5)),
            ("CAP_NET_BIND_SERVICE", Some(10)),
            ("CAP_SYS_ADMIN", Some(21)),
            ("CAP_AUDIT_WRITE", Some(29)),
            ("CAP_AUDIT_READ", Some(37)),
            ("CAP_CHECKPOINT_RESTORE", Some(40)),
            ("KILL", None),
            ("CAP_WONDER", None),
        ] {
            assert_eq!(bit(name), number.map(|number| 1 << number), "{name}");
        }
    }

    #[test]
    fn sets_become_masks_and_nothing_becomes_none() {
        let set = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let sets = Capabilities {
            bounding: set(&["CAP_KILL", "CAP_CHOWN", "CAP_WONDER"]),
            effective: set(&["CAP_KILL"]),
            ..Capabilities::default()
        };
        assert_eq!(masks(Some(&sets)), Masks { bounding: 0x21, effective: 0x20, ..Masks::default() });
        assert_eq!(unknown(&sets), ["CAP_WONDER"]);
        assert_eq!(masks(None), Masks::default());
    }

    #[test]
    fn ambient_capabilities_that_are_not_permitted_and_inheritable_are_left_out() {
        let set = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let sets = Capabilities {
            permitted: set(&["CAP_KILL", "CAP_CHOWN"]),
            inheritable: set(&["CAP_KILL", "CAP_SETUID"]),
            ambient: set(&["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_WONDER"]),
            ..Capabilities::default()
        };
        assert_eq!(masks(Some(&sets)).ambient, 1 << 5);
        assert_eq!(not_raised(&sets), ["CAP_CHOWN", "CAP_SETUID"]);
    }
}
