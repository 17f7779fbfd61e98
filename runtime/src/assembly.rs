//! Creates a machine: from a plan and its settings to a session with the guest's agent.
//!
//! Used for foreground containers, containers of engines, and pods.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use host::network::Network;
use link::streams::streams;
use oci::Spec;
use plan::VmPlan;
use vmm::{PendingVm, Timeline};

use crate::config::RunConfig;
use crate::console::{KernelMarks, Outputs};
use crate::image::Images;
use crate::network::resolver::Names;
use crate::network::{self, LiveNetwork};
use crate::sandbox::{Parts, Sandbox};
use crate::session::Session;

/// A machine about to be created.
pub struct Assembly {
    pending: PendingVm,
    timeline: Option<Arc<Timeline>>,
    kernel_marks: Option<KernelMarks>,
}

/// A running machine with its network.
pub struct Machine {
    /// The session with the machine's agent.
    pub session: Session,
    /// The machine's network, which outlives the machine.
    pub network: LiveNetwork,
}

/// Connections between the host's network and the guest.
#[derive(Default)]
struct GuestNetwork {
    network: Network,
    /// The host's end of the port for name queries.
    resolver: Option<UnixStream>,
    /// Name queries without a server so far.
    names: Option<Names>,
}

impl Assembly {
    /// Starts to open KVM in a thread, which takes a while. Signals must be blocked before this call.
    pub fn begin() -> Result<Assembly> {
        let pending = PendingVm::start().map_err(vmm::Error::from)?;
        Ok(Assembly { pending, timeline: None, kernel_marks: None })
    }

    /// Records the boot's marks.
    pub fn with_marks(self, timeline: Option<Arc<Timeline>>, kernel: Option<KernelMarks>) -> Assembly {
        Assembly { timeline, kernel_marks: kernel, ..self }
    }

    /// Creates the machine and starts it. `in_namespace` is the specification of the container whose network namespace
    /// this thread has entered: its interfaces become the guest's. `patience` is the time limit of the agent's answers.
    pub fn finish(
        self,
        config: &RunConfig,
        vm: &mut VmPlan,
        in_namespace: Option<&Spec>,
        patience: Duration,
    ) -> Result<Machine> {
        let mut guest = in_namespace.map(|spec| guest_network(vm, spec)).transpose()?.unwrap_or_default();
        let images = Images::find(config.kernel.as_deref(), config.initrd.as_deref(), vm.kernel)?;
        let outputs = Outputs::open(config.vm.console.as_ref(), self.kernel_marks)
            .context("open the console's copy")?;
        let first_output = self
            .timeline
            .clone()
            .map(|timeline| -> Box<dyn FnOnce() + Send> { Box::new(move || timeline.mark("first_output")) });
        let (table, handle) = streams(&[], first_output).context("create the streams")?;
        let table = match vm.protocol {
            agent_proto::command::Protocol::Api4244 => table.without_credit(),
            _ => table,
        };
        let parts = Parts {
            pending: self.pending,
            images,
            outputs,
            streams: (table, handle),
            nics: std::mem::take(&mut guest.network.nics),
            spare_nics: guest.network.spare_nics(),
            resolver: guest.resolver,
            timeline: self.timeline,
        };
        let sandbox = Sandbox::start(vm, parts)?;
        let network = LiveNetwork::new(guest.network, guest.names);
        Ok(Machine { session: Session::new(sandbox, patience), network })
    }
}

/// Connects the interfaces of this thread's network namespace to taps, and describes them to the guest.
fn guest_network(vm: &mut VmPlan, spec: &Spec) -> Result<GuestNetwork> {
    let network = Network::followed()?;
    network::describe(&network, vm);
    let (resolver, names) = network::serve_names(vm, spec).context("serve name queries")?;
    Ok(GuestNetwork { network, resolver, names })
}
