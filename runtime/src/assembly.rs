//! Creates a machine: from a plan and its settings to a session with the guest's agent.
//!
//! Used for foreground containers, containers of engines, and pods.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_proto::command::{CONTROL_PORT, Protocol, RESOLVER_PORT, SOCKETS_PORT, STREAM_PORT};
use agent_proto::revival::ENTROPY_LEN;
use anyhow::{Context, Result, ensure};
use host::cgroup::room;
use host::confine::cores::Cookie;
use host::confine::{self, Role};
use host::environment;
use host::network::{Network, Nic};
use host::sys::{self, clock};
use link::AgentLink;
use link::streams::{StreamHandle, StreamTable, streams};
use oci::Spec;
use plan::vm::{Host, SHARE_TAG};
use plan::{ShareType, VmPlan};
use vmm::devices::share::ShareTree;
use vmm::devices::share::sockets::socket_queue;
use vmm::devices::virtio::balloon::Balloon;
use vmm::devices::virtio::console::{Console, LogPort, LogTail, Port, PortBackend, SocketPort};
use vmm::devices::virtio::fs::{self, Fs};
use vmm::devices::virtio::net::Vhost;
use vmm::devices::virtio::p9::{self, P9};
use vmm::devices::virtio::rng::Rng;
use vmm::{Entries, PendingVm, RunningVm, SavedConfig, Timeline, Vm, VmConfig};

use crate::checkpoint::{Checkpoint, Continued, Saved, Shape};
use crate::config::RunConfig;
use crate::console::{ConsoleWriters, KernelMarks};
use crate::image::Images;
use crate::network::resolver::NameQueries;
use crate::network::{self, LiveNetwork};
use crate::sandbox::machine::Machine;
use crate::sandbox::nics::Nics;
use crate::sandbox::{self, Sandbox};
use crate::session::Session;
use crate::sockets::{self, Sockets};
use crate::template::way::Way;
use crate::template::{self, Found, Wanted};

/// A machine about to be created.
pub struct Assembly {
    pending: PendingVm,
    timeline: Option<Arc<Timeline>>,
    kernel_marks: Option<KernelMarks>,
    continued: Option<Continued>,
    /// The process is not fit to start another one that makes a template.
    alone: bool,
}

/// A machine that was created, and whose guest does not run yet.
pub struct Assembled {
    /// The session with the machine's agent.
    pub session: Session,
    /// The machine's network, which must outlive the machine.
    pub network: LiveNetwork,
    /// The machine boots, and a template is to be made for the next one.
    pub wanted: Option<Wanted>,
}

/// What a machine is connected to, whichever way it starts.
struct Outside<'a> {
    config: &'a RunConfig,
    plan: &'a VmPlan,
    share: &'a ShareTree,
    /// NICs that are there from the start.
    present: Vec<Nic>,
    /// Number of NICs that there can be.
    count: usize,
    /// The guest's ends of ports that not every machine has.
    resolver: Option<UnixStream>,
    socket: Option<UnixStream>,
    timeline: Option<Arc<Timeline>>,
    kernel_marks: Option<KernelMarks>,
    /// The checkpoint from which the machine continues.
    saved: Option<Saved>,
}

/// A machine whose guest does not run yet.
struct Held {
    vm: RunningVm,
    link: AgentLink,
    streams: StreamHandle,
    nics: Nics,
    console: LogTail,
    shape: Shape,
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

/// A machine of which a template is made, or that tries one: it serves nothing but its agent.
pub struct Blank {
    pub vm: RunningVm,
    pub link: AgentLink,
    pub streams: StreamHandle,
    pub share: ShareTree,
}

/// What the machine's threads call before the guest runs.
const ENTRIES: Entries =
    Entries { vcpu: || confine::enter(Role::Vcpu), devices: || confine::enter(Role::Devices) };

/// What is behind a console's ports.
struct Ends {
    log: LogPort,
    control: UnixStream,
    streams: StreamTable,
    resolver: Option<UnixStream>,
    sockets: Option<UnixStream>,
    /// The ports that the machine has even if it does not use them.
    ports: [bool; 2],
}

impl Assembly {
    /// Starts to open KVM in a thread, which takes a while. Signals must be blocked before this call.
    pub fn begin() -> Result<Assembly> {
        // A process at its limit of descriptors fails later, at the first that it needs.
        environment::reserve_descriptors().unwrap_or_else(|error| log::debug!("{error}"));
        let pending = PendingVm::start().map_err(vmm::Error::from)?;
        Ok(Assembly { pending, timeline: None, kernel_marks: None, continued: None, alone: false })
    }

    /// No template is to be made for the machine if there is none, provided that `alone`.
    pub fn alone(self, alone: bool) -> Assembly {
        Assembly { alone, ..self }
    }

    pub fn with_marks(self, timeline: Option<Arc<Timeline>>, kernel: Option<KernelMarks>) -> Assembly {
        Assembly { timeline, kernel_marks: kernel, ..self }
    }

    /// Makes the machine continue from a checkpoint.
    pub fn continuing(self, continued: Option<Continued>) -> Assembly {
        Assembly { continued, ..self }
    }

    /// Creates the machine with its threads, which are confined. The guest runs once the machine is released. The share
    /// is empty at first.
    ///
    /// `in_namespace` is the specification of the container whose network namespace this thread has entered: its
    /// interfaces become the guest's. `patience` is the time limit of the agent's answers.
    pub fn finish(
        self,
        config: &RunConfig,
        plan: &mut VmPlan,
        in_namespace: Option<&Spec>,
        patience: Duration,
    ) -> Result<Assembled> {
        // Hooks have run, which would inherit the cookie.
        let cookie = Cookie::begin().context("start a thread")?;
        let guest = in_namespace.map(|spec| guest_network(plan, spec)).transpose()?;
        let GuestNetwork { mut network, resolver, names } = guest.unwrap_or_default();
        let spare = network.as_ref().map_or(0, Network::spare_nics);
        let present = network.as_mut().map(|network| std::mem::take(&mut network.nics)).unwrap_or_default();
        let Assembly { pending, timeline, kernel_marks, continued, alone } = self;
        let share = ShareTree::new()?;
        let (way, saved) = match continued {
            Some(continued) => {
                let (found, saved) = share_again(&share, continued)?;
                (Way::Continue(Box::new(found)), Some(saved))
            }
            None => (template::way::find(config, plan, present.len() + spare, alone)?, None),
        };
        match config.meeting.open_parent() {
            Ok((parent, directory)) => share.set_mapping_registry(parent, directory),
            Err(error) => log::debug!("shared mappings are not excluded from other machines': {error}"),
        }
        let sockets = plan.carries_sockets().then(|| serve_sockets(plan, &share)).transpose();
        let (sockets, socket) = sockets.context("open sockets of the host")?.unzip();
        let count = present.len() + spare;
        let share_of = &share;
        let outside = Outside {
            config,
            plan,
            share: share_of,
            present,
            count,
            resolver,
            socket,
            timeline,
            kernel_marks,
            saved,
        };
        let (held, wanted) = outside.create(pending, way, alone)?;
        let Held { vm, link, streams, nics, console, shape } = held;
        cookie.wait().context("give the machine's threads a core-scheduling cookie")?;
        let sandbox = Sandbox { link, streams, vm: Machine::new(vm), share, nics, console, sockets, shape };
        let session = Session::new(sandbox, patience);
        Ok(Assembled { session, network: LiveNetwork::new(network, names), wanted })
    }

    /// Creates a machine of which a template can be made, or one that continues from `tried`. Its threads are confined. The guest
    /// runs once the machine is released.
    pub fn blank(self, plan: &VmPlan, tried: Option<Found>) -> Result<Blank> {
        let (control, device_end) = UnixStream::pair().context("create a socket pair")?;
        let (table, streams) = stream_ends(Protocol::Extended, None)?;
        let tries = tried.is_some();
        let mut vm = match tried {
            Some(Found { snapshot, memory, .. }) => Vm::restored(
                self.pending,
                SavedConfig { snapshot, memory, timeline: None, entries: ENTRIES },
            )?,
            None => {
                let Images { kernel, initramfs } = Images::find(None, None, plan.kernel)?;
                let settings = VmConfig {
                    memory_mib: plan.memory_mib,
                    vcpus: plan.vcpus,
                    kernel,
                    initramfs: Some(initramfs),
                    cmdline: plan.cmdline.clone(),
                    serial: None,
                    timeline: None,
                    entries: ENTRIES,
                };
                Vm::with(self.pending, settings)?
            }
        };
        let (log, _) = LogPort::new(None);
        let ends = Ends {
            log,
            control: device_end,
            streams: table,
            resolver: None,
            sockets: None,
            ports: [true; 2],
        };
        let share = ShareTree::new()?;
        attach_devices(&mut vm, plan, ends, &share)?;
        Nics::attach(&mut vm, 0, template::NICS, plan)?;
        let link = if tries { revive(control)? } else { AgentLink::silent(control)? };
        Ok(Blank { vm: vm.hold()?, link, streams, share })
    }
}

impl Outside<'_> {
    /// Creates the machine. One that cannot continue from a template after all, and is not required to, boots, and its template
    /// is to be made anew unless `alone`.
    fn create(&self, pending: PendingVm, way: Way, alone: bool) -> Result<(Held, Option<Wanted>)> {
        let found = match way {
            Way::Continue(found) if self.saved.is_some() => {
                return Ok((self.attempt(pending, Some(*found))?, None));
            }
            Way::Continue(found) => *found,
            Way::Boot(wanted) => return Ok((self.attempt(pending, None)?, wanted)),
        };
        let path = found.path.clone();
        match self.attempt(pending, Some(found)).with_context(|| path.display().to_string()) {
            Err(error) if self.config.template != template::Use::Require => template::way::refuse(&error),
            done => return Ok((done?, None)),
        }
        let held = self.attempt(PendingVm::start().map_err(vmm::Error::from)?, None)?;
        let key = self.config.template_key(self.plan).ok().filter(|_| !alone);
        Ok((held, key.and_then(|key| Wanted::claim(self.config, self.plan, &key, true))))
    }

    /// Creates a machine that continues from `found`, or boots.
    fn attempt(&self, pending: PendingVm, found: Option<Found>) -> Result<Held> {
        let Outside { config, plan, .. } = *self;
        let revived = found.is_some();
        let writers = ConsoleWriters::open(config.vm.console.as_ref(), self.kernel_marks.clone())
            .context("open the console's copy")?;
        let (table, streams) = match &self.saved {
            Some(saved) => link::streams::continued(&saved.specs(), &saved.streams)?,
            None => stream_ends(plan.protocol, self.timeline.clone())?,
        };
        let (control, device_end) = UnixStream::pair().context("create a socket pair")?;
        let mut vm = match found {
            Some(found) => self.saved(pending, found)?,
            None => self.unbooted(pending, writers.serial)?,
        };
        let (log, console) = LogPort::new(writers.console);
        let [resolver, sockets] = [&self.resolver, &self.socket].map(|end| second(end.as_ref()));
        let shape = match &self.saved {
            Some(saved) => saved.shape,
            None if revived => Shape { places: template::NICS, ports: [true; 2] },
            None => {
                let ports = [&self.resolver, &self.socket].map(Option::is_some);
                Shape { places: self.count, ports }
            }
        };
        let Shape { places, ports } = shape;
        let (resolver, sockets) = (resolver?.filter(|_| ports[0]), sockets?.filter(|_| ports[1]));
        let ends = Ends { log, control: device_end, streams: table, resolver, sockets, ports };
        attach_devices(&mut vm, plan, ends, self.share)?;
        let mut nics = Nics::attach(&mut vm, self.count.min(places), places, plan)?;
        // The guest of a checkpoint has none, and finds them when it is told to look for them.
        let (present, later) =
            self.present.split_at(if self.saved.is_some() { 0 } else { self.present.len() });
        for nic in present {
            let nic = nic.try_clone().context("duplicate a tap's descriptor")?;
            nics.plug(nic, vm.events(), || Vhost::open(vm.memory().clone()))?;
        }
        let link = match &self.saved {
            Some(saved) => AgentLink::continued(control, &saved.link, entropy()?, real_time)?,
            None if revived => revive(control)?,
            None => AgentLink::new(control, plan.protocol)?,
        };
        let vm = vm.hold()?;
        for nic in later {
            let nic = nic.try_clone().context("duplicate a tap's descriptor")?;
            nics.plug(nic, vm.events(), || Vhost::open(vm.memory().clone()))?;
        }
        Ok(Held { vm, link, streams, nics, console, shape })
    }

    fn saved(&self, pending: PendingVm, found: Found) -> Result<Vm> {
        let Found { snapshot, memory, .. } = found;
        let timeline = self.timeline.clone();
        Ok(Vm::restored(pending, SavedConfig { snapshot, memory, timeline, entries: ENTRIES })?)
    }

    fn unbooted(&self, pending: PendingVm, serial: Option<Box<dyn Write + Send>>) -> Result<Vm> {
        let Outside { config, plan, .. } = *self;
        let images = Images::find(config.kernel.as_deref(), config.initrd.as_deref(), plan.kernel)?;
        let settings = VmConfig {
            memory_mib: plan.memory_mib,
            vcpus: plan.vcpus,
            kernel: images.kernel,
            initramfs: Some(images.initramfs),
            cmdline: plan.cmdline.clone(),
            serial,
            timeline: self.timeline.clone(),
            entries: ENTRIES,
        };
        Ok(Vm::with(pending, settings)?)
    }
}

/// Returns another descriptor of a socket, if there is one.
fn second(end: Option<&UnixStream>) -> Result<Option<UnixStream>> {
    end.map(UnixStream::try_clone).transpose().context("duplicate a socket's descriptor")
}

/// Starts the thread that carries connections of sockets. Also returns the guest's end of its port.
fn serve_sockets(plan: &VmPlan, share: &ShareTree) -> io::Result<(Sockets, UnixStream)> {
    let (queue, requests) = socket_queue()?;
    let served = sockets::serve(&plan.sockets, requests)?;
    if plan.pod.sockets {
        share.carry_sockets(queue);
    }
    Ok(served)
}

/// Opens the channel to the agent of a machine that continues from a template.
fn revive(control: UnixStream) -> Result<AgentLink> {
    Ok(AgentLink::revived(control, entropy()?, real_time)?)
}

/// Returns bytes that no other machine has.
fn entropy() -> Result<[u8; ENTROPY_LEN]> {
    let mut entropy = [0; ENTROPY_LEN];
    sys::fill_random(&mut entropy).context("read random bytes")?;
    Ok(entropy)
}

fn real_time() -> u64 {
    clock::real().unsigned_abs()
}

/// Shares the files of a container that continues, before its guest runs: the file server must find what the guest knows.
fn share_again(share: &ShareTree, continued: Continued) -> Result<(Found, Saved)> {
    let Continued { checkpoint: Checkpoint { saved, snapshot, memory }, container } = continued;
    container.binds.iter().try_for_each(|bind| sandbox::bind_again(share, bind))?;
    ensure!(container.contents.is_empty(), "restore a container with files of its own: not supported");
    Ok((Found { path: PathBuf::new(), snapshot, memory }, saved))
}

/// Returns the streams: the devices' end and the handle.
fn stream_ends(protocol: Protocol, timeline: Option<Arc<Timeline>>) -> Result<(StreamTable, StreamHandle)> {
    let first_output = timeline
        .map(|timeline| -> Box<dyn FnOnce() + Send> { Box::new(move || timeline.mark("first_output")) });
    let (table, handle) = streams(&[], first_output).context("create the streams")?;
    Ok((if protocol == Protocol::Api4244 { table.without_credit() } else { table }, handle))
}

/// Attaches console, share, entropy device and balloon: all devices but NICs.
fn attach_devices(vm: &mut Vm, plan: &VmPlan, ends: Ends, share: &ShareTree) -> Result<()> {
    let enter_files: fn() = match plan.admin_xattrs {
        true => || confine::enter(Role::AdminFiles),
        false => || confine::enter(Role::Files),
    };
    attach_console(vm, ends)?;
    match plan.share {
        ShareType::VirtioFs => {
            Fs::new(SHARE_TAG, fs::server(share), enter_files).map(|fs| vm.attach(Box::new(fs)))
        }
        ShareType::P9 => P9::new(SHARE_TAG, p9::server(share), enter_files).map(|p9| vm.attach(Box::new(p9))),
    }
    .context("start the file server")??;
    vm.attach(Box::new(Rng::new(vm.events())))?;
    Ok(vm.attach(Box::new(Balloon::new(vm.events(), vmm::discard)))?)
}

/// Attaches the console device with its ports: kernel log, control channel, streams, and others that the guest is to
/// use.
fn attach_console(vm: &mut Vm, ends: Ends) -> Result<()> {
    let Ends { log, control, streams, resolver, sockets, ports: wanted } = ends;
    let port = |name: &str, backend: Box<dyn PortBackend>| Port { name: Some(name.to_owned()), backend };
    let mut ports = vec![
        Port { name: None, backend: Box::new(log) },
        port(CONTROL_PORT, Box::new(SocketPort::new(control))),
        port(STREAM_PORT, Box::new(streams)),
    ];
    for ((name, socket), wanted) in
        [(RESOLVER_PORT, resolver), (SOCKETS_PORT, sockets)].into_iter().zip(wanted)
    {
        match socket {
            Some(socket) => ports.push(port(name, Box::new(SocketPort::new(socket)))),
            // The guest's agent does not open a port that its pod has no use for.
            None if wanted => ports.push(port(name, Box::new(LogPort::new(None).0))),
            None => {}
        }
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
