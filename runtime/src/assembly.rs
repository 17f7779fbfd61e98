//! Creates a machine: from a plan and its settings to a session with the guest's agent.
//!
//! Used for foreground containers, containers of engines, and pods.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use agent_proto::command::{CONTROL_PORT, Protocol, RESOLVER_PORT, SOCKETS_PORT, STREAM_PORT};
use anyhow::{Context, Result};
use host::cgroup::room;
use host::confine::cores::Cookie;
use host::confine::{self, Role};
use host::network::Network;
use link::AgentLink;
use link::streams::{StreamHandle, StreamTable, streams};
use oci::Spec;
use plan::vm::{Host, SHARE_TAG};
use plan::{ShareType, VmPlan};
use vmm::devices::share::ShareTree;
use vmm::devices::virtio::balloon::Balloon;
use vmm::devices::virtio::console::{Console, LogPort, Port, PortBackend, SocketPort};
use vmm::devices::virtio::fs::{self, Fs};
use vmm::devices::virtio::net::Vhost;
use vmm::devices::virtio::p9::{self, P9};
use vmm::devices::virtio::rng::Rng;
use vmm::{Entries, PendingVm, Timeline, Vm, VmConfig};

use crate::config::RunConfig;
use crate::console::{ConsoleWriters, KernelMarks};
use crate::image::Images;
use crate::network::resolver::NameQueries;
use crate::network::{self, LiveNetwork};
use crate::sandbox::Sandbox;
use crate::sandbox::machine::Machine;
use crate::sandbox::nics::Nics;
use crate::session::Session;
use crate::sockets;

/// A machine about to be created.
pub struct Assembly {
    pending: PendingVm,
    timeline: Option<Arc<Timeline>>,
    kernel_marks: Option<KernelMarks>,
}

/// Connections between the host's network and the guest.
#[derive(Default)]
struct GuestNetwork {
    network: Option<Network>,
    /// The host's end of the port for name queries.
    resolver: Option<UnixStream>,
    /// Name queries without a server so far.
    names: Option<NameQueries>,
}

impl Assembly {
    /// Starts to open KVM in a thread, which takes a while. Signals must be blocked before this call.
    pub fn begin() -> Result<Assembly> {
        let pending = PendingVm::start().map_err(vmm::Error::from)?;
        Ok(Assembly { pending, timeline: None, kernel_marks: None })
    }

    pub fn with_marks(self, timeline: Option<Arc<Timeline>>, kernel: Option<KernelMarks>) -> Assembly {
        Assembly { timeline, kernel_marks: kernel, ..self }
    }

    /// Creates the machine with its threads, which are confined. The guest runs once the machine is released. The share
    /// is empty at first. Returns the session with the machine's agent, and the machine's network, which must outlive
    /// the machine.
    ///
    /// `in_namespace` is the specification of the container whose network namespace this thread has entered: its
    /// interfaces become the guest's. `patience` is the time limit of the agent's answers.
    pub fn finish(
        self,
        config: &RunConfig,
        plan: &mut VmPlan,
        in_namespace: Option<&Spec>,
        patience: Duration,
    ) -> Result<(Session, LiveNetwork)> {
        // Hooks have run, which would inherit the cookie.
        let cookie = Cookie::begin().context("start a thread")?;
        let guest = in_namespace.map(|spec| guest_network(plan, spec)).transpose()?;
        let GuestNetwork { mut network, resolver, names } = guest.unwrap_or_default();
        let images = Images::find(config.kernel.as_deref(), config.initrd.as_deref(), plan.kernel)?;
        let writers = ConsoleWriters::open(config.vm.console.as_ref(), self.kernel_marks)
            .context("open the console's copy")?;
        let (table, streams) = stream_ends(plan.protocol, self.timeline.clone())?;
        let (control, device_end) = UnixStream::pair().context("create a socket pair")?;
        let share = ShareTree::new()?;
        match config.meeting.open_parent() {
            Ok((parent, directory)) => share.set_mapping_registry(parent, directory),
            Err(error) => log::debug!("shared mappings are not excluded from other machines': {error}"),
        }
        let settings = VmConfig {
            memory_mib: plan.memory_mib,
            vcpus: plan.vcpus,
            kernel: images.kernel,
            initramfs: Some(images.initramfs),
            cmdline: plan.cmdline.clone(),
            serial: writers.serial,
            timeline: self.timeline,
            entries: Entries {
                vcpu: || confine::enter(Role::Vcpu),
                devices: || confine::enter(Role::Devices),
            },
        };
        let enter_files = || confine::enter(Role::Files);
        let mut vm = Vm::with(self.pending, settings)?;
        let (log, console) = LogPort::new(writers.console);
        let sockets = (!plan.sockets.is_empty()).then(|| sockets::serve(&plan.sockets)).transpose();
        let (sockets, socket) = sockets.context("open sockets of the host")?.unzip();
        attach_console(&mut vm, log, device_end, table, [(RESOLVER_PORT, resolver), (SOCKETS_PORT, socket)])?;
        match plan.share {
            ShareType::VirtioFs => {
                Fs::new(SHARE_TAG, fs::server(&share), enter_files).map(|fs| vm.attach(Box::new(fs)))
            }
            ShareType::P9 => {
                P9::new(SHARE_TAG, p9::server(&share), enter_files).map(|p9| vm.attach(Box::new(p9)))
            }
        }
        .context("start the file server")??;
        vm.attach(Box::new(Rng::new(vm.events())))?;
        vm.attach(Box::new(Balloon::new(vm.events(), vmm::discard)))?;
        let spare = network.as_ref().map_or(0, Network::spare_nics);
        let present = network.as_mut().map(|network| std::mem::take(&mut network.nics)).unwrap_or_default();
        let mut nics = Nics::attach(&mut vm, present.len() + spare, plan)?;
        for nic in present {
            nics.plug(nic, vm.events(), || Vhost::open(vm.memory().clone()))?;
        }
        let link = AgentLink::new(control, plan.protocol)?;
        let vm = Machine::new(vm.hold()?);
        cookie.wait().context("give the machine's threads a core-scheduling cookie")?;
        let sandbox = Sandbox { link, streams, vm, share, nics, console, sockets };
        Ok((Session::new(sandbox, patience), LiveNetwork::new(network, names)))
    }
}

/// Returns the streams: the devices' end and the handle.
fn stream_ends(protocol: Protocol, timeline: Option<Arc<Timeline>>) -> Result<(StreamTable, StreamHandle)> {
    let first_output = timeline
        .map(|timeline| -> Box<dyn FnOnce() + Send> { Box::new(move || timeline.mark("first_output")) });
    let (table, handle) = streams(&[], first_output).context("create the streams")?;
    Ok((if protocol == Protocol::Api4244 { table.without_credit() } else { table }, handle))
}

/// Attaches the console device with its ports: kernel log, control channel, streams, and `others` that the guest is to
/// use.
fn attach_console(
    vm: &mut Vm,
    log: LogPort,
    control: UnixStream,
    streams: StreamTable,
    others: [(&str, Option<UnixStream>); 2],
) -> Result<()> {
    let port = |name: &str, backend: Box<dyn PortBackend>| Port { name: Some(name.to_owned()), backend };
    let mut ports = vec![
        Port { name: None, backend: Box::new(log) },
        port(CONTROL_PORT, Box::new(SocketPort::new(control))),
        port(STREAM_PORT, Box::new(streams)),
    ];
    for (name, socket) in others {
        ports.extend(socket.map(|socket| port(name, Box::new(SocketPort::new(socket)))));
    }
    Ok(vm.attach(Box::new(Console::new(vm.events(), ports)))?)
}

/// Returns the memory and CPUs that the host has for a machine in the cgroup of this process.
///
/// Call this before [`Assembly::begin`]: while KVM creates a machine, the kernel holds the lock of all cgroups, and a
/// read of this process's cgroup waits for that lock.
pub fn host() -> Host {
    Host { memory_mib: room::memory_mib(), cpus: room::cpus() }
}

/// Connects the interfaces of this thread's network namespace to taps, and describes them to the guest.
fn guest_network(plan: &mut VmPlan, spec: &Spec) -> Result<GuestNetwork> {
    let network = Network::of_this_namespace()?;
    network::describe(&network, plan);
    let (resolver, names) = network::serve_names(plan, spec).context("serve name queries")?;
    Ok(GuestNetwork { network: Some(network), resolver, names })
}
