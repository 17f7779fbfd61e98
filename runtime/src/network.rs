//! The guest's network: what the host's network namespace has, in the agent's words, from the start and as it changes.

pub mod changes;
pub mod describe;
pub mod live;
pub mod resolver;

use std::io;
use std::os::unix::net::UnixStream;

use agent_proto::command::Protocol;
use host::network::Network;
use oci::Spec;
use plan::{VmPlan, api4244};

pub use live::LiveNetwork;
use resolver::Names;

/// Tells the guest of its network: puts what is in the namespace into STARTPOD.
pub fn describe(network: &Network, vm: &mut VmPlan) {
    describe::describe(network.found(), &mut vm.pod);
    if vm.protocol == Protocol::Api4244 {
        let left_out = api4244::reduce_network(&mut vm.pod);
        if !left_out.is_empty() {
            log::warn!("API 4244: the network is without {}", left_out.join(", "));
        }
    }
}

/// Has the guest's name queries asked in the network namespace that this thread is in, if the container's resolv.conf names a
/// server there. Returns the host's end of the guest's port, and the queries if no server listens yet: they may be asked
/// later.
pub fn serve_names(vm: &mut VmPlan, spec: &Spec) -> io::Result<(Option<UnixStream>, Option<Names>)> {
    let names = if vm.protocol == Protocol::Api4244 { None } else { Names::of(spec)? };
    let Some((names, port)) = names else { return Ok((None, None)) };
    let Some(server) = names.server() else { return Ok((Some(port), Some(names))) };
    vm.pod.resolver = server.to_string();
    names.serve(server)?;
    Ok((Some(port), None))
}
