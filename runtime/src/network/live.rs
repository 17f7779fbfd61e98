//! A pod's network while the pod runs: changes in its network namespace are applied to its guest.

use std::os::fd::BorrowedFd;

use agent_proto::command::Code;
use agent_proto::payload::{Interface, Resolver, Routes};
use host::network::{Link, Network};
use link::{CommandId, LinkError};

use super::changes::Changes;
use super::describe::mac_text;
use super::resolver::NameQueries;
use crate::sandbox::Sandbox;

/// The network, and pending requests to the guest for it.
#[derive(Debug, Default)]
pub struct LiveNetwork {
    /// `None` if the guest has only a loopback interface.
    network: Option<Network>,
    /// Interfaces that the guest was asked to release.
    leaving: Vec<(CommandId, u32)>,
    /// Its name queries, until a server listens.
    names: Option<NameQueries>,
}

impl LiveNetwork {
    pub fn new(network: Option<Network>, names: Option<NameQueries>) -> LiveNetwork {
        LiveNetwork { network, leaving: Vec::new(), names }
    }

    /// Returns a descriptor that is readable when [`follow`](Self::follow) has work.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.network.as_ref().map(Network::changes_fd)
    }

    /// Sends changes to the guest. Changes that cannot be applied are logged, since there is no caller to refuse them
    /// to.
    pub fn follow(&mut self, sandbox: &mut Sandbox) -> Result<(), LinkError> {
        self.serve_names(sandbox)?;
        let Some(network) = &mut self.network else { return Ok(()) };
        let before = match network.refresh() {
            Ok(before) => before,
            Err(error) => {
                log::warn!("{:#}; the guest's network is not updated", anyhow::Error::from(error));
                return Ok(());
            }
        };
        // Addresses are updated before the guest uses them, so that the filter does not drop its packets.
        for (link, addresses) in network.addresses() {
            sandbox.nics.set_addresses(link, addresses);
        }
        let Changes { gone, new, altered, mut routes } = Changes::between(&before, network.config());
        for link in gone {
            log::info!("network interface {}: removed from the guest", link.name);
            network.remove(link.index);
            let gone = Interface { mac_addr: mac_text(&link.mac), ..Interface::default() };
            let command = sandbox.link.send(Code::DeleteInterface, "remove a network interface", &gone)?;
            self.leaving.push((command, link.index));
        }
        for (link, interface) in new {
            if add(network, sandbox, &link) {
                log::info!("network interface {}: added to the guest", link.name);
                sandbox.link.notify(Code::SetupInterface, "set up a network interface", &interface)?;
            } else {
                routes.retain(|route| route.device != link.name);
            }
        }
        for interface in altered {
            sandbox.link.notify(Code::SetupInterface, "change a network interface", &interface)?;
        }
        if !routes.is_empty() {
            sandbox.link.notify(Code::SetupRoute, "change routes", &Routes { routes })?;
        }
        Ok(())
    }

    /// Takes all NICs from the guest, for a checkpoint: what is behind them is no part of it. [`follow`](Self::follow) gives
    /// them back, as new ones.
    pub fn withdraw(&mut self, sandbox: &mut Sandbox) -> Result<(), LinkError> {
        let Some(network) = &mut self.network else { return Ok(()) };
        for link in network.config().links.clone() {
            network.remove(link.index);
            let gone = Interface { mac_addr: mac_text(&link.mac), ..Interface::default() };
            let command = sandbox.link.send(Code::DeleteInterface, "remove a network interface", &gone)?;
            self.leaving.push((command, link.index));
        }
        Ok(())
    }

    /// Removes the NICs that the guest has released.
    pub fn step(&mut self, sandbox: &mut Sandbox) {
        self.leaving.retain(|(command, link)| match sandbox.link.reply(*command) {
            None => true,
            Some(Ok(_)) => {
                sandbox.nics.unplug(*link);
                false
            }
            Some(Err(error)) => {
                // The slot stays occupied, so that no other NIC is confused with the old one.
                log::warn!("{error}");
                false
            }
        });
    }

    /// Starts to serve name queries. An engine's name server appears with the first network that has names, before the
    /// network's interface.
    fn serve_names(&mut self, sandbox: &mut Sandbox) -> Result<(), LinkError> {
        let Some(server) = self.names.as_ref().and_then(NameQueries::server) else { return Ok(()) };
        if let Some(Err(error)) = self.names.take().map(|names| names.serve(server)) {
            log::warn!("serve name queries: {error}");
            return Ok(());
        }
        let resolver = Resolver { address: server.to_string() };
        sandbox.link.notify(Code::Resolver, "take name queries", &resolver)
    }
}

/// Adds a NIC for an interface. Returns whether that succeeded.
fn add(network: &mut Network, sandbox: &mut Sandbox, link: &Link) -> bool {
    let added = network.add(link).map_err(anyhow::Error::from).and_then(|nic| Ok(sandbox.plug(nic)?));
    if let Err(error) = &added {
        log::warn!("network interface {}: not added to the guest: {error:#}", link.name);
        network.remove(link.index);
    }
    added.is_ok()
}
