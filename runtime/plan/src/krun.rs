//! Size of a machine by the annotations of crun's handler for virtual machines.

use oci::Spec;
use oci::error::{Result, invalid};

use crate::VmSettings;
use crate::limits::{MAX_VCPUS, MIN_MEMORY_MIB};

const MEMORY_MIB: &str = "krun.ram_mib";
const CPUS: &str = "krun.cpus";

/// Returns the settings with the size that the bundle's annotations ask for, unless the user's settings have one.
///
/// # Errors
///
/// An annotation is not a size that a machine can have.
pub fn sized(spec: &Spec, settings: &VmSettings) -> Result<VmSettings> {
    let mut settings = settings.clone();
    if let Some(text) = spec.annotations.get(MEMORY_MIB) {
        let mib = text.parse().ok().filter(|mib: &u32| *mib >= MIN_MEMORY_MIB);
        let why = || format!("{text:?} is not a number of MiB from {MIN_MEMORY_MIB} on");
        let mib = mib.ok_or_else(|| invalid(&format!("annotations[{MEMORY_MIB:?}]"), why()))?;
        settings.memory_mib.get_or_insert(mib.min(settings.max_memory_mib.unwrap_or(u32::MAX)));
    }
    if let Some(text) = spec.annotations.get(CPUS) {
        let cpus = text.parse().ok().filter(|cpus| (1..=MAX_VCPUS).contains(cpus));
        let why = || format!("{text:?} is not a number from 1 to {MAX_VCPUS}");
        settings.vcpus.get_or_insert(cpus.ok_or_else(|| invalid(&format!("annotations[{CPUS:?}]"), why()))?);
    }
    Ok(settings)
}

/// Whether the bundle has one of the annotations.
pub fn is_asked(spec: &Spec) -> bool {
    [MEMORY_MIB, CPUS].iter().any(|name| spec.annotations.contains_key(*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(annotations: &str, settings: &VmSettings) -> Result<(Option<u32>, Option<u8>)> {
        let spec: Spec = serde_json::from_str(&format!(r#"{{"annotations":{{{annotations}}}}}"#)).unwrap();
        assert_eq!(is_asked(&spec), !annotations.is_empty());
        sized(&spec, settings).map(|sized| (sized.memory_mib, sized.vcpus))
    }

    #[test]
    fn annotations_size_a_machine_that_settings_do_not() {
        let none = VmSettings::default();
        assert_eq!(size("", &none).unwrap(), (None, None));
        let both = r#""krun.ram_mib":"512","krun.cpus":"3""#;
        assert_eq!(size(both, &none).unwrap(), (Some(512), Some(3)));
        let given = VmSettings { memory_mib: Some(100), vcpus: Some(1), ..VmSettings::default() };
        assert_eq!(size(both, &given).unwrap(), (Some(100), Some(1)));
        let most = VmSettings { max_memory_mib: Some(256), ..VmSettings::default() };
        assert_eq!(size(both, &most).unwrap(), (Some(256), Some(3)));
        for wrong in
            [r#""krun.ram_mib":"63""#, r#""krun.ram_mib":"1G""#, r#""krun.cpus":"0""#, r#""krun.cpus":"33""#]
        {
            assert!(size(wrong, &none).unwrap_err().to_string().contains("annotations[\"krun."), "{wrong}");
        }
    }
}
