//! The places of a machine's NICs: as many as there are at its start, and some for those that come later.

use std::io;

use vmm::Vm;
use vmm::devices::LoopHandle;
use vmm::devices::virtio::net::{Net, Slot, Tap, Vhost};

use super::{Result, SandboxError};
use crate::config::VhostNet;
use crate::network::Nic;

/// One place.
struct Place {
    slot: Slot,
    /// The interface whose NIC is in it.
    link: Option<u32>,
}

/// The places; of those that are free the one that is free for the longest time is the first.
pub struct Nics {
    vhost_net: VhostNet,
    places: Vec<Place>,
}

impl Nics {
    /// Gives the machine so many places.
    pub fn attach(vm: &mut Vm, count: usize, vhost_net: VhostNet) -> Result<Nics> {
        let places = (0..count).map(|_| {
            let slot = Slot::default();
            vm.attach(Box::new(slot.clone()))?;
            Ok(Place { slot, link: None })
        });
        Ok(Nics { vhost_net, places: places.collect::<Result<_>>()? })
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
        let vhost = judge(self.vhost_net, vhost)?;
        place.slot.plug(Net::new(events, Tap::new(nic.tap), nic.mac, nic.mtu, vhost));
        place.link = Some(nic.link);
        Ok(())
    }

    /// Takes the NIC of an interface out, which the guest has let go of.
    pub fn unplug(&mut self, link: u32) {
        let Some(at) = self.places.iter().position(|place| place.link == Some(link)) else { return };
        let Place { slot, .. } = self.places.remove(at);
        slot.unplug();
        // The guest's driver may not have let go of it altogether yet: others are taken before it.
        self.places.push(Place { slot, link: None });
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
