//! The places of a machine's NICs: as many as there are at its start, and some for those that come later.

use std::io;
use std::net::IpAddr;

use host::network::Nic;
use plan::{VhostNet, VmPlan};
use vmm::Vm;
use vmm::devices::LoopHandle;
use vmm::devices::virtio::net::{Net, Slot, SourceFilter, Sources, Tap, Vhost};

use super::{Result, SandboxError};

/// One place.
struct Place {
    slot: Slot,
    /// The interface whose NIC is in it.
    link: Option<u32>,
    /// Where it may send from nothing but the interface's addresses.
    filter: Option<SourceFilter>,
}

/// The places; of those that are free the one that is free for the longest time is the first.
pub struct Nics {
    vhost_net: VhostNet,
    /// Each may send from its interface's addresses alone.
    filtered: bool,
    places: Vec<Place>,
}

impl Nics {
    /// Gives the machine so many places for NICs as `plan` wants them.
    pub fn attach(vm: &mut Vm, count: usize, plan: &VmPlan) -> Result<Nics> {
        let places = (0..count).map(|_| {
            let slot = Slot::default();
            vm.attach(Box::new(slot.clone()))?;
            Ok(Place { slot, link: None, filter: None })
        });
        let (vhost_net, filtered) = (plan.vhost_net, plan.network_filter);
        Ok(Nics { vhost_net, filtered, places: places.collect::<Result<_>>()? })
    }

    /// Puts a NIC into a place that is free. `vhost` opens the host's vhost-net for the machine.
    pub fn plug(
        &mut self,
        nic: Nic,
        events: LoopHandle,
        vhost: impl FnOnce() -> io::Result<Vhost>,
    ) -> Result<()> {
        let count = self.places.len();
        let free = self.places.iter_mut().find(|place| place.link.is_none());
        let place = free.ok_or(SandboxError::NoPlace { count })?;
        let sources = Sources { mac: nic.mac, addresses: nic.addresses };
        place.filter = self.filtered.then(|| SourceFilter::new(sources));
        let net = |vhost| Net::new(events, Tap::new(nic.tap), nic.mac, nic.mtu, vhost);
        place.slot.plug(match &place.filter {
            Some(filter) => net(None).held_to(filter.clone()),
            None => net(judge(self.vhost_net, vhost)?),
        });
        place.link = Some(nic.link);
        Ok(())
    }

    /// Has an interface's NIC send from these addresses, if it is held to some.
    pub fn set_addresses(&self, link: u32, addresses: Vec<IpAddr>) {
        let place = self.places.iter().find(|place| place.link == Some(link));
        if let Some(filter) = place.and_then(|place| place.filter.as_ref()) {
            filter.set_addresses(addresses);
        }
    }

    /// Takes the NIC of an interface out, which the guest has let go of.
    pub fn unplug(&mut self, link: u32) {
        let Some(at) = self.places.iter().position(|place| place.link == Some(link)) else { return };
        let Place { slot, .. } = self.places.remove(at);
        slot.unplug();
        // The guest's driver may not have let go of it altogether yet: others are taken before it.
        self.places.push(Place { slot, link: None, filter: None });
    }
}

/// The host's vhost-net, if a NIC is to have it.
fn judge(wanted: VhostNet, open: impl FnOnce() -> io::Result<Vhost>) -> Result<Option<Vhost>> {
    if wanted == VhostNet::Off {
        return Ok(None);
    }
    match open() {
        Ok(vhost) => Ok(Some(vhost)),
        Err(source) if wanted == VhostNet::On => Err(SandboxError::Host { step: "use vhost-net", source }),
        Err(error) => {
            log::info!("packets go through this process: {error}");
            Ok(None)
        }
    }
}
