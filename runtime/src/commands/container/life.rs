//! A container's process, from its environment on the host to its end. Shared by `vmm create` and `vmm run`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use agent_proto::command::Protocol;
use anyhow::{Result, bail};
use host::cgroup::Cgroup;
use host::cgroup::kill_reporter::KillReporter;
use host::confine::{Paths, Role};
use host::hooks::Variables;
use host::network::devices::Devices;
use host::network::loopback::Loopback;
use host::signals::Signals;
use host::{environment, sys, terminal};
use oci::cgroups_path::HostCgroup;
use oci::error::unsupported;
use oci::spec::Linux;
use oci::spec::resources::positive;
use oci::{Bundle, program};
use plan::vm::Host;
use plan::{ContainerPlan, VmPlan, limits};
use vmm::Timeline;

use super::hook_points::run_first;
use crate::assembly::{self, Assembled, Assembly};
use crate::checkpoint::{Checkpoint, Continued};
use crate::config::RunConfig;
use crate::logging;
use crate::pod::plan::{ContainerSpec, PodPlan};
use crate::pod::supervisor::{OwnContainer, Started, Supervisor};
use crate::state::{CREATING, OciState, PodState, StateDir};
use crate::template::{Wanted, maker};

/// A container that this process is about to run.
pub struct Life {
    pub config: RunConfig,
    pub bundle: Bundle,
    /// The container's directory; `None` in the foreground without an id.
    pub directory: Option<StateDir>,
    /// The container's state. Names the cgroup before it is created.
    pub state: PodState,
    /// Socket to which the terminal's controller is sent.
    pub console_socket: Option<PathBuf>,
    /// The environment of hooks that have none.
    pub environment: Variables,
    /// The container starts without `vmm start`, and its directory is removed at its end.
    pub foreground: bool,
    /// The boot's marks, if `--marks` was given.
    pub timeline: Option<Arc<Timeline>>,
    /// Memory and CPUs of the host for a machine in the first cgroup of this process; `None` before they were read.
    pub host: Option<Host>,
    /// The checkpoint from which the container continues, until its machine is created.
    pub checkpoint: Option<Checkpoint>,
    /// Reports kills in the guest to the engine, for containers with a memory limit.
    pub kill_reporter: Option<KillReporter>,
    /// The cgroup of this process before it joined the container's.
    cgroup_before: Cgroup,
}

impl Life {
    /// Returns the container of a bundle. Has no effect on the host.
    pub fn new(config: RunConfig, bundle: Bundle) -> Life {
        let state = PodState {
            id: config.id.clone(),
            status: CREATING.to_owned(),
            pid: std::process::id(),
            oci: Some(oci_state(&config, &bundle)),
            ..PodState::default()
        };
        Life {
            config,
            bundle,
            directory: None,
            state,
            console_socket: None,
            environment: Variables::default(),
            foreground: false,
            timeline: None,
            host: None,
            checkpoint: None,
            kill_reporter: None,
            cgroup_before: Cgroup::default(),
        }
    }

    /// Sets up the container's environment on the host (terminal, cgroup, network namespace) and runs the hooks that
    /// precede the machine. Returns the plans, and whether this thread is in the container's network namespace.
    pub fn prepare(&mut self) -> Result<Prepared> {
        self.write_state()?;
        self.open_terminal()?;
        let mut vm = VmPlan::for_bundle(&self.bundle, &self.config.id, &self.config.vm)?;
        let saved = self.checkpoint.as_ref().map(|checkpoint| checkpoint.saved.clone());
        saved.as_ref().map_or(Ok(()), |saved| saved.resize(&mut vm))?;
        let name = saved.as_ref().map_or(&self.config.id, |saved| &saved.container);
        let container = ContainerPlan::new(&self.bundle, name, &vm, terminal::size())?;
        if let Some(wanted) = &vm.cgroup {
            self.enter_cgroup(wanted, vm.memory_mib)?;
        }
        // The limits of its own cgroup, or of another that it joined, size the machine.
        vm.fill(self.host.filter(|_| vm.cgroup.is_none()).unwrap_or_else(assembly::host));
        saved.as_ref().map_or(Ok(()), |saved| saved.resize(&mut vm))?;
        let hooks = &self.bundle.spec.hooks;
        // A new namespace without a path in the foreground stays empty unless a hook configures it.
        let linux = &self.bundle.spec.linux;
        let devices = host_devices(linux)?;
        let filled = devices.is_some() || vm.network.is_some() || hooks.has_first();
        let entered = (!self.foreground || filled) && environment::enter_network(linux)?;
        match devices {
            Some(devices) if entered => devices.take()?,
            Some(_) => return Err(unsupported("linux.netDevices", "no permission to move devices").into()),
            None => {}
        }
        if entered && vm.protocol != Protocol::Api4244 {
            plan::inherited::replace_network(&mut vm.pod.parameters, |path| fs::read_to_string(path).ok());
        }
        // Before the machine: its devices are created from what hooks add to the network namespace.
        run_first(hooks, &self.state, &self.environment)?;
        std::mem::take(&mut self.environment).forget();
        if !self.foreground {
            program::check(&self.bundle)?;
        }
        Ok(Prepared { vm, container, entered })
    }

    /// Opens the container's terminal, whose controller an engine gets.
    pub(super) fn open_terminal(&self) -> Result<()> {
        let Some(socket) = &self.console_socket else { return Ok(()) };
        Ok(environment::open_terminal(socket, self.bundle.process.console_size)?)
    }

    /// Creates the container's cgroup, limits it to a machine of this size, and joins it with the reporter of kills.
    pub(super) fn enter_cgroup(&mut self, wanted: &HostCgroup, memory_mib: u32) -> Result<()> {
        // Recorded before the cgroup exists, so that a cleanup finds it. systemd's directories are known later.
        self.state.cgroup = Cgroup::choose(wanted)?;
        self.write_state()?;
        let companion = self.kill_reporter.as_ref().map(|reporter| reporter.pid);
        self.state.cgroup.make(wanted, memory_mib, companion)?;
        self.write_state()?;
        self.state.cgroup.limit(&wanted.resources, memory_mib)?;
        self.cgroup_before = Cgroup::of_process(std::process::id())?;
        self.state.cgroup.join()?;
        Ok(companion.map_or(Ok(()), |pid| self.state.cgroup.admit(pid))?)
    }

    /// Creates the machine and the container's supervisor. `started` is called when the container was created, or when
    /// it runs if it starts at once.
    pub fn begin(
        &mut self,
        prepared: Prepared,
        signals: Signals,
        assembly: Assembly,
        started: Started,
    ) -> Result<Supervisor> {
        let Prepared { mut vm, container, entered } = prepared;
        let spec = &self.bundle.spec;
        let patience = limits::patience(&spec.linux.resources.cpu, self.config.agent_timeout);
        let listener = self.directory.as_ref().map(StateDir::listen).transpose()?;
        let role = if entered { Role::Network } else { Role::Main };
        let loopback = self.loopback(entered, vm.protocol);
        let continued = self.checkpoint.take().map(|checkpoint| {
            let mut container = container.clone();
            container.place(1);
            Continued { checkpoint, container }
        });
        let saved = continued.as_ref().map(|continued| continued.checkpoint.saved.clone());
        // In the foreground this process itself starts the one that makes a template, which must have nothing of the container's.
        let assembly =
            assembly.continuing(continued).alone(self.foreground && (entered || vm.cgroup.is_some()));
        let Assembled { session, network, wanted } =
            assembly.finish(&self.config, &mut vm, entered.then_some(spec), patience)?;
        let wanted = if self.foreground { self.make(wanted) } else { wanted };
        let pod = PodPlan::of_one(&self.config.id, vm, saved);
        let mut supervisor = Supervisor::new(session, signals, pod, network, started)?;
        if let Some((directory, listener)) = self.directory.clone().zip(listener) {
            supervisor.register(directory, listener);
        }
        supervisor.wanted = wanted;
        let oci = self.state.oci.clone();
        supervisor.own = oci.map(|oci| OwnContainer { oci, foreground: self.foreground });
        supervisor.cgroup = self.state.cgroup.clone();
        supervisor.timeline = self.timeline.clone();
        supervisor.files = self.files();
        supervisor.loopback = loopback;
        supervisor.role = Some(role).filter(|_| !self.acts_later());
        supervisor.add(ContainerSpec::unattended(container, self.bundle.process.clone()), None)?;
        Ok(supervisor)
    }

    /// Starts the process that makes the wanted template, before this one gives up the right to do so.
    fn make(&self, wanted: Option<Wanted>) -> Option<Wanted> {
        maker::launch(&self.config, wanted?);
        if !self.acts_later() {
            sys::ignore_children();
        }
        None
    }

    /// Listens for connections to the loopback interface of the network namespace that this thread has entered, which has
    /// another one than the guest. Not every host has that, and not every user may.
    fn loopback(&self, entered: bool, protocol: Protocol) -> Option<Loopback> {
        if !entered || self.foreground || protocol == Protocol::Api4244 {
            return None;
        }
        let listening = Loopback::listen();
        listening
            .inspect_err(|error| log::debug!("connections to 127.0.0.1 of the network namespace: {error}"))
            .ok()
    }

    /// Forks a process that makes kills in the guest known to the engine, if a kill can be for a limit of the container. To
    /// be called while this process has one thread.
    pub fn fork_kill_reporter(&mut self) -> Result<()> {
        let resources = &self.bundle.spec.linux.resources;
        if positive(resources.memory.limit).is_some() || resources.unified.contains_key("memory.max") {
            self.kill_reporter = KillReporter::start()?;
        }
        Ok(())
    }

    /// Returns the files that the process uses while the guest runs: cgroups that it leaves and removes, and the
    /// container's resolv.conf.
    pub(super) fn files(&self) -> Paths {
        let cgroups = self.state.cgroup.parents().chain(self.cgroup_before.directories());
        let marks = self.config.marks.iter().map(|marks| match marks.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        });
        let resolver = self.bundle.spec.mounts.iter().filter(|mount| mount.destination == "/etc/resolv.conf");
        Paths {
            write: cgroups.chain(marks).collect(),
            read: resolver.map(|mount| mount.source.clone().into()).collect(),
        }
    }

    /// Whether this process runs programs or talks to systemd after the machine was started. Then its main thread cannot
    /// give up the right to do so. A container of an engine has other commands for both.
    fn acts_later(&self) -> bool {
        let hooks = &self.bundle.spec.hooks;
        self.foreground
            && (!hooks.poststart.is_empty() || !hooks.poststop.is_empty() || self.state.cgroup.has_unit())
    }

    /// Returns to the previous cgroup, so that the container's can be removed.
    pub fn leave_cgroup(&self) -> Result<()> {
        Ok(self.cgroup_before.join()?)
    }

    pub(super) fn write_state(&self) -> Result<()> {
        self.directory.as_ref().map_or(Ok(()), |directory| Ok(directory.write(&self.state)?))
    }
}

/// Results of the steps before the machine.
pub struct Prepared {
    vm: VmPlan,
    container: ContainerPlan,
    entered: bool,
}

/// Finds the host's network devices that become the container's.
fn host_devices(linux: &Linux) -> Result<Option<Devices>> {
    let wanted = linux.net_devices.iter().map(|(name, device)| (name.as_str(), device.name_for(name)));
    let wanted: BTreeMap<&str, &str> = wanted.collect();
    Ok((!wanted.is_empty()).then(|| Devices::find(&wanted)).transpose()?)
}

/// Refuses flags of `vmm run` that `vmm create` cannot support.
pub fn refuse_foreground_flags(config: &RunConfig) -> Result<()> {
    if config.marks.is_some() {
        bail!("--marks: only supported in the foreground");
    }
    if config.vm.protocol == Protocol::Api4244 {
        bail!(
            "--agent api-4244: only supported in the foreground: other commands need the extended protocol"
        );
    }
    Ok(())
}

fn oci_state(config: &RunConfig, bundle: &Bundle) -> OciState {
    let namespaces = bundle.spec.linux.namespaces.iter();
    let pinned = namespaces.filter(|it| it.kind != "network" && !it.path.is_empty());
    OciState {
        bundle: config.bundle.clone(),
        rootfs: bundle.rootfs.clone(),
        created: logging::timestamp(SystemTime::now()),
        owner: sys::effective_user(),
        network: bundle.network().map(Path::to_owned),
        namespaces: pinned.map(|it| (it.kind.clone(), PathBuf::from(&it.path))).collect(),
        annotations: bundle.spec.annotations.clone(),
    }
}
