//! A pod's network while it lives: what comes, goes and changes in its namespace does so in its guest.

use std::os::fd::BorrowedFd;

use agent_proto::command::Code;
use agent_proto::payload::{Interface, Resolver, Routes};
use host::network::{Link, Network};
use link::{CommandId, LinkError};

use super::changes::Changes;
use super::describe::mac_text;
use super::resolver::Names;
use crate::sandbox::Sandbox;

/// The network, and what the guest has been asked for on its account.
#[derive(Debug, Default)]
pub struct LiveNetwork {
    network: Network,
    /// Interfaces that the guest is to let go of.
    leaving: Vec<(CommandId, u32)>,
    /// Its name queries, while nobody is there to be asked.
    names: Option<Names>,
}

impl LiveNetwork {
    /// Takes a network that the machine was made with.
    pub fn new(network: Network, names: Option<Names>) -> LiveNetwork {
        LiveNetwork { network, leaving: Vec::new(), names }
    }

    /// Readable when [`follow`](Self::follow) has something to do.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.network.changes_fd()
    }

    /// Tells the guest what has changed. What cannot be is logged: there is nobody to refuse it to.
    pub fn follow(&mut self, sandbox: &mut Sandbox) -> Result<(), LinkError> {
        self.serve_names(sandbox)?;
        let before = match self.network.look_again() {
            Ok(Some(before)) => before,
            Ok(None) => return Ok(()),
            Err(error) => {
                log::warn!("{:#}; the guest's network stays as it is", anyhow::Error::from(error));
                return Ok(());
            }
        };
        // Before the guest hears of them, so that it is not refused what it has.
        for (link, addresses) in self.network.addresses() {
            sandbox.set_addresses(link, addresses);
        }
        let Changes { gone, new, altered, mut routes } = Changes::between(&before, self.network.found());
        for link in gone {
            self.remove(sandbox, &link)?;
        }
        for (link, interface) in new {
            if self.add(sandbox, &link) {
                log::info!("network interface {}: given to the guest", link.name);
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

    /// Takes what the guest has let go of out of the machine.
    pub fn step(&mut self, sandbox: &mut Sandbox) {
        self.leaving.retain(|(command, link)| match sandbox.link.reply(*command) {
            None => true,
            Some(Ok(_)) => {
                sandbox.unplug(*link);
                false
            }
            Some(Err(error)) => {
                // The place stays taken, so that nothing else is taken for what was in it.
                log::warn!("{error}");
                false
            }
        });
    }

    /// An engine's name server comes with the first network that has names, and before its interface.
    fn serve_names(&mut self, sandbox: &mut Sandbox) -> Result<(), LinkError> {
        let Some(server) = self.names.as_ref().and_then(Names::server) else { return Ok(()) };
        if let Some(Err(error)) = self.names.take().map(|names| names.serve(server)) {
            log::warn!("serve name queries: {error}");
            return Ok(());
        }
        let resolver = Resolver { address: server.to_string() };
        sandbox.link.notify(Code::Resolver, "take name queries", &resolver)
    }

    fn remove(&mut self, sandbox: &mut Sandbox, link: &Link) -> Result<(), LinkError> {
        log::info!("network interface {}: taken from the guest", link.name);
        self.network.remove(link.index);
        let gone = Interface { mac_addr: mac_text(&link.mac), ..Interface::default() };
        let command = sandbox.link.send(Code::DeleteInterface, "remove a network interface", &gone)?;
        self.leaving.push((command, link.index));
        Ok(())
    }

    /// Gives the machine a NIC for an interface. Returns whether it has it.
    fn add(&mut self, sandbox: &mut Sandbox, link: &Link) -> bool {
        let added =
            self.network.add(link).map_err(anyhow::Error::from).and_then(|nic| Ok(sandbox.plug(nic)?));
        if let Err(error) = &added {
            log::warn!("network interface {}: not given to the guest: {error:#}", link.name);
            self.network.remove(link.index);
        }
        added.is_ok()
    }
}
