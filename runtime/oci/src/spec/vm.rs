//! The hardware of a virtual machine (`config-vm.md`).

use serde::Deserialize;

use super::Given;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Vm {
    pub hypervisor: Given,
    pub kernel: Given,
    pub image: Given,
    pub hw_config: HwConfig,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HwConfig {
    pub device_tree: Given,
    /// Number of CPUs; 0 for none given.
    pub vcpus: u32,
    /// Bytes of memory; 0 for none given.
    pub memory: u64,
    /// Devices of the host.
    #[serde(alias = "dtdevs")]
    pub dt_devs: Given,
    #[serde(alias = "iomems")]
    pub io_mems: Given,
    pub irqs: Given,
}
