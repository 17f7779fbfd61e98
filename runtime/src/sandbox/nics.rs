//! The NIC slots of a machine: those of its first NICs, and some for NICs that are added later.

use host::HostError;
use std::io;
use std::net::IpAddr;

use host::network::Nic;
use plan::{VhostNet, VmPlan};
use vmm::Vm;
use vmm::devices::LoopHandle;
use vmm::devices::virtio::net::{Net, Slot, SourceFilter, Sources, Tap, Vhost};

use super::error::{Result, SandboxError};

struct NicSlot {
    device: Slot,
    /// Index of the interface whose NIC is in the slot.
    link: Option<u32>,
    /// Restricts the NIC to its interface's addresses, if present.
    filter: Option<SourceFilter>,
}

/// The slots. Of the free ones, the one that has been free for the longest time comes first.
pub struct Nics {
    vhost_net: VhostNet,
    /// Whether each NIC may only send from its interface's addresses.
    filtered: bool,
    slots: Vec<NicSlot>,
}

impl Nics {
    /// Reserves `count` slots in the machine for NICs as `plan` wants them, and makes places for `places` in all.
    pub fn attach(vm: &mut Vm, count: usize, places: usize, plan: &VmPlan) -> Result<Nics> {
        let slots = (0..count).map(|_| {
            let device = Slot::default();
            vm.attach(Box::new(device.clone()))?;
            Ok(NicSlot { device, link: None, filter: None })
        });
        let slots = slots.collect::<Result<_>>()?;
        (count..places).try_for_each(|_| vm.attach_placeholder(Box::new(Slot::default())))?;
        let (vhost_net, filtered) = (plan.vhost_net, plan.network_filter);
        Ok(Nics { vhost_net, filtered, slots })
    }

    /// Puts a NIC into a free slot. `vhost` opens the host's vhost-net for the machine.
    pub fn plug(
        &mut self,
        nic: Nic,
        events: LoopHandle,
        vhost: impl FnOnce() -> io::Result<Vhost>,
    ) -> Result<()> {
        let count = self.slots.len();
        let free = self.slots.iter_mut().find(|slot| slot.link.is_none());
        let slot = free.ok_or(SandboxError::NoSlot { count })?;
        let sources = Sources { mac: nic.mac, addresses: nic.addresses };
        slot.filter = self.filtered.then(|| SourceFilter::new(sources));
        let net = |vhost| Net::new(events, Tap::new(nic.tap), nic.mac, nic.mtu, vhost);
        slot.device.plug(match &slot.filter {
            Some(filter) => net(None).held_to(filter.clone()),
            None => net(open_vhost(self.vhost_net, vhost)?),
        });
        slot.link = Some(nic.link);
        Ok(())
    }

    /// Restricts an interface's NIC to these source addresses, if it has a filter.
    pub fn set_addresses(&self, link: u32, addresses: Vec<IpAddr>) {
        let slot = self.slots.iter().find(|slot| slot.link == Some(link));
        if let Some(filter) = slot.and_then(|slot| slot.filter.as_ref()) {
            filter.set_addresses(addresses);
        }
    }

    /// Removes the NIC of an interface after the guest has released it.
    pub fn unplug(&mut self, link: u32) {
        let Some(at) = self.slots.iter().position(|slot| slot.link == Some(link)) else { return };
        let NicSlot { device, .. } = self.slots.remove(at);
        device.unplug();
        // The guest's driver may still be releasing the slot, so other free slots are used first.
        self.slots.push(NicSlot { device, link: None, filter: None });
    }
}

/// Opens the host's vhost-net, if a NIC is to use it.
fn open_vhost(wanted: VhostNet, open: impl FnOnce() -> io::Result<Vhost>) -> Result<Option<Vhost>> {
    if wanted == VhostNet::Off {
        return Ok(None);
    }
    match open() {
        Ok(vhost) => Ok(Some(vhost)),
        Err(error) if wanted == VhostNet::On => Err(HostError::step("use vhost-net")(error).into()),
        Err(error) => {
            log::info!("vhost-net is not available, packets go through this process: {error}");
            Ok(None)
        }
    }
}
