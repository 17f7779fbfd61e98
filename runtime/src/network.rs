//! The guest's network: the interfaces and routes of a network namespace on the host, at the start and as they change.

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
use resolver::NameQueries;

/// Puts the namespace's interfaces and routes into STARTPOD.
pub fn describe(network: &Network, vm: &mut VmPlan) {
    describe::describe(network.config(), &mut vm.pod);
    if vm.protocol == Protocol::Api4244 {
        let left_out = api4244::reduce_network(&mut vm.pod);
        if !left_out.is_empty() {
            log::warn!("API 4244 does not support these parts of the network: {}", left_out.join(", "));
        }
    }
}

/// Prepares to serve the guest's name queries in the network namespace of this thread, if the container's resolv.conf
/// names a server there. Returns the host's end of the guest's port, and the queries if no server listens yet: they can
/// be served later.
pub fn serve_names(vm: &mut VmPlan, spec: &Spec) -> io::Result<(Option<UnixStream>, Option<NameQueries>)> {
    let names = if vm.protocol == Protocol::Api4244 { None } else { NameQueries::of(spec)? };
    let Some((names, port)) = names else { return Ok((None, None)) };
    let Some(server) = names.server() else { return Ok((Some(port), Some(names))) };
    vm.pod.resolver = server.to_string();
    names.serve(server)?;
    Ok((Some(port), None))
}
