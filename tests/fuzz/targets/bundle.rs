//! config.json: any text is a plan or a reason.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use runtime::bundle::Bundle;
use runtime::cli::RunArgs;
use runtime::config::RunConfig;
use runtime::oci::Spec;
use runtime::plan::Plan;

fuzz_target!(|data: &[u8]| {
    static CONFIG: OnceLock<RunConfig> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let args = RunArgs { target: Some("/bundle".into()), ..RunArgs::default() };
        RunConfig::resolve(args, |_| None).expect("a configuration without settings")
    });
    let Ok(spec) = serde_json::from_slice::<Spec>(data) else { return };
    if let Ok(bundle) = Bundle::check(Path::new("/bundle"), spec) {
        let _ = Plan::new(&bundle, config, None);
    }
});
