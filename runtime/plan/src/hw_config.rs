//! Size of a machine by `vm.hwConfig` of the specification.

use oci::Spec;
use oci::error::{Result, invalid};

use crate::VmSettings;
use crate::limits::{MAX_VCPUS, MIN_MEMORY_MIB};

/// Returns the settings with the size that the bundle asks for, unless the user's settings have one.
///
/// # Errors
///
/// A number is not a size that a machine can have.
pub fn sized(spec: &Spec, settings: &VmSettings) -> Result<VmSettings> {
    let wanted = &spec.vm.hw_config;
    let mut settings = settings.clone();
    if wanted.memory != 0 {
        let mib = u32::try_from(wanted.memory.div_ceil(1 << 20)).ok().filter(|mib| *mib >= MIN_MEMORY_MIB);
        let why = || format!("{} is not a number of bytes from {MIN_MEMORY_MIB} MiB on", wanted.memory);
        let mib = mib.ok_or_else(|| invalid("vm.hwConfig.memory", why()))?;
        settings.memory_mib.get_or_insert(mib.min(settings.max_memory_mib.unwrap_or(u32::MAX)));
    }
    if wanted.vcpus != 0 {
        let vcpus = u8::try_from(wanted.vcpus).ok().filter(|vcpus| *vcpus <= MAX_VCPUS);
        let why = || format!("{} is not a number from 1 to {MAX_VCPUS}", wanted.vcpus);
        settings.vcpus.get_or_insert(vcpus.ok_or_else(|| invalid("vm.hwConfig.vcpus", why()))?);
    }
    Ok(settings)
}

/// Whether the bundle has such a size.
pub fn is_asked(spec: &Spec) -> bool {
    spec.vm.hw_config.memory != 0 || spec.vm.hw_config.vcpus != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(hardware: &str, settings: &VmSettings) -> Result<(Option<u32>, Option<u8>)> {
        let spec: Spec = serde_json::from_str(&format!(r#"{{"vm":{{"hwConfig":{hardware}}}}}"#)).unwrap();
        assert_eq!(is_asked(&spec), hardware != "{}");
        sized(&spec, settings).map(|sized| (sized.memory_mib, sized.vcpus))
    }

    #[test]
    fn hardware_sizes_a_machine_that_settings_do_not() {
        let none = VmSettings::default();
        assert_eq!(size("{}", &none).unwrap(), (None, None));
        let both = r#"{"memory":536870913,"vcpus":3}"#;
        assert_eq!(size(both, &none).unwrap(), (Some(513), Some(3)));
        let given = VmSettings { memory_mib: Some(100), vcpus: Some(1), ..VmSettings::default() };
        assert_eq!(size(both, &given).unwrap(), (Some(100), Some(1)));
        let most = VmSettings { max_memory_mib: Some(256), ..VmSettings::default() };
        assert_eq!(size(both, &most).unwrap(), (Some(256), Some(3)));
        for (wrong, name) in [
            (r#"{"memory":1048576}"#, "vm.hwConfig.memory"),
            (r#"{"memory":18446744073709551615}"#, "vm.hwConfig.memory"),
            (r#"{"vcpus":33}"#, "vm.hwConfig.vcpus"),
        ] {
            assert!(size(wrong, &none).unwrap_err().to_string().contains(name), "{wrong}");
        }
    }
}
