//! config.json: any text becomes a plan or an error.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use oci::{Bundle, Spec};
use plan::{ContainerPlan, VmPlan, VmSettings};

fuzz_target!(|data: &[u8]| {
    let Ok(spec) = oci::json::from_slice::<Spec>(data) else { return };
    let Ok(bundle) = Bundle::check(Path::new("/bundle"), spec) else { return };
    if let Ok(vm) = VmPlan::for_bundle(&bundle, "c", &VmSettings::default()) {
        let _ = ContainerPlan::new(&bundle, "c", &vm, None);
    }
});
