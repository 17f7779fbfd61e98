//! Plan of a virtual machine: size, kernel command line, and pod.

use std::path::{Path, PathBuf};

use agent_proto::command::Protocol;
use agent_proto::payload::{Pod, Rlimit};
use agent_proto::sockets::SOCKETS_MAX;
use oci::cgroups_path::{CgroupLocation, CgroupPath, HostCgroup, Scope};
use oci::error::{Result, invalid, unsupported};
use oci::pod;
use oci::spec::Capabilities;
use oci::{Bundle, Spec, refusals};
use serde::{Deserialize, Serialize};

use crate::limits::{self, Sets};
use crate::settings::{ShareType, VhostNet, VmSettings};
use crate::{Inherited, hw_config, krun, mounts, pod_size};

/// Mount tag of the share.
pub const SHARE_TAG: &str = "share";

/// An embedded kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kernel {
    /// The kernel with the shortest boot. It has what a container without privileges can use.
    #[default]
    Base,
    /// The kernel of containers that administer a network, mount file systems, or set memory policies, such as container
    /// engines and databases: with bridges, tunnels, packet filters, queueing disciplines, eBPF, a memory node, and more file
    /// systems.
    Full,
}

impl Kernel {
    /// Returns the kernel for containers whose init processes have these capability sets; `None` is a process without
    /// capabilities.
    pub fn for_capabilities<'a>(sets: impl IntoIterator<Item = Option<&'a Capabilities>>) -> Kernel {
        const USERS: [&str; 5] = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SYS_ADMIN", "CAP_SYS_NICE"];
        let mut names = sets.into_iter().flatten().flat_map(|sets| &sets.bounding);
        if names.any(|name| USERS.contains(&name.as_str())) { Kernel::Full } else { Kernel::Base }
    }

    /// Returns the kernel for a bundle: the one that its annotation names, else the one that its process and mounts need. Who
    /// will join the first container of a Kubernetes pod is not known yet: service meshes, for example, set up packet filters.
    ///
    /// # Errors
    ///
    /// The annotation names no kernel.
    fn for_bundle(bundle: &Bundle) -> Result<Kernel> {
        match bundle.spec.annotations.get(KERNEL).map(String::as_str) {
            None if pod::makes_machine(&bundle.spec) => Ok(Kernel::Full),
            None => Ok(Kernel::needed_by(bundle)),
            Some("base") => Ok(Kernel::Base),
            Some("full") => Ok(Kernel::Full),
            Some(other) => {
                let why = format!("{other:?} is neither \"base\" nor \"full\"");
                Err(invalid(&format!("annotations[{KERNEL:?}]"), why))
            }
        }
    }

    /// Returns the kernel for a bundle's process and mounts, which may be of a file system that only the full kernel has.
    pub(crate) fn needed_by(bundle: &Bundle) -> Kernel {
        const FILE_SYSTEMS: [&str; 3] = ["binfmt_misc", "bpf", "hugetlbfs"];
        let mut mounts = bundle.spec.mounts.iter();
        match mounts.any(|mount| !mount.is_bind() && FILE_SYSTEMS.contains(&mount.kind.as_str())) {
            true => Kernel::Full,
            false => Kernel::for_capabilities([bundle.process.capabilities.as_ref()]),
        }
    }
}

/// Memory and CPUs that a host has for a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Memory for the guest in MiB; `None` if it is unknown.
    pub memory_mib: Option<u64>,
    /// Number of CPUs on which its threads may run.
    pub cpus: usize,
}

/// A virtual machine to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmPlan {
    pub memory_mib: u32,
    /// Maximum for [`fill`](Self::fill), in MiB. `None` if a setting determined `memory_mib`.
    pub fill_mib: Option<u32>,
    pub vcpus: u8,
    /// Maximum for [`fill`](Self::fill). `None` if a setting or a limit determined `vcpus`.
    pub fill_vcpus: Option<u8>,
    /// The kernel, unless the user names a file.
    pub kernel: Kernel,
    /// The kernel's command line. Crate `vmm` adds the devices.
    pub cmdline: String,
    pub share: ShareType,
    pub vhost_net: VhostNet,
    /// Whether a NIC may send only from the addresses of its interface.
    pub network_filter: bool,
    pub protocol: Protocol,
    /// The machine's cgroup on the host; without one the machine stays in the cgroup of this process.
    pub cgroup: Option<HostCgroup>,
    /// Network namespace whose interfaces the guest gets; without one it has only a loopback interface.
    pub network: Option<PathBuf>,
    /// Sockets of the host to which the container may connect, in the order of its mounts.
    pub sockets: Vec<PathBuf>,
    /// Whether the share's thread may set extended attributes that are reserved for CAP_SYS_ADMIN.
    pub admin_xattrs: bool,
    /// Resource limits of processes that name none.
    pub limits: Vec<Rlimit>,
    /// Payload of STARTPOD.
    pub pod: Pod,
}

impl VmPlan {
    /// Returns the plan of a machine whose containers are added while it runs.
    pub fn new(settings: &VmSettings, hostname: &str) -> VmPlan {
        // hyperstart refuses a pod with an unknown key.
        let extended = settings.protocol != Protocol::Api4244;
        let Inherited { limits, parameters, .. } =
            if extended { settings.inherited.clone() } else { Inherited::default() };
        let max = settings.max_memory_mib.unwrap_or(limits::MAX_MEMORY_MIB);
        let unset = if settings.own_kernel { max } else { limits::UNSET_MEMORY_MIB };
        let given = settings.memory_mib.or(settings.default_memory_mib);
        VmPlan {
            memory_mib: given.unwrap_or(limits::DEFAULT_MEMORY_MIB).min(max),
            fill_mib: given.is_none().then_some(unset.min(max)),
            vcpus: settings.vcpus.unwrap_or(1),
            fill_vcpus: settings.vcpus.is_none().then_some(settings.max_vcpus.unwrap_or(limits::UNSET_VCPUS)),
            kernel: Kernel::Base,
            cmdline: cmdline(settings),
            share: settings.share,
            vhost_net: settings.vhost_net,
            network_filter: false,
            protocol: settings.protocol,
            cgroup: None,
            network: None,
            sockets: Vec::new(),
            admin_xattrs: false,
            limits,
            pod: Pod {
                hostname: hostname.to_owned(),
                share_dir: SHARE_TAG.to_owned(),
                share_type: if extended { settings.share.name().to_owned() } else { String::new() },
                parameters,
                ..Pod::default()
            },
        }
    }

    /// Returns the machine for the bundle of container `id`. The bundle's limits determine its size, unless `settings`
    /// do.
    ///
    /// # Errors
    ///
    /// A limit or `linux.cgroupsPath` is invalid or cannot be honoured.
    pub fn for_bundle(bundle: &Bundle, id: &str, settings: &VmSettings) -> Result<VmPlan> {
        refusals::check_paths(&bundle.spec)?;
        check_pipes(bundle, settings)?;
        let spec = &bundle.spec;
        let asked = hw_config::is_asked(spec).then(|| hw_config::sized(spec, settings)).transpose()?;
        let settings = asked.as_ref().unwrap_or(settings);
        let asked = krun::is_asked(spec).then(|| krun::sized(spec, settings)).transpose()?;
        let settings = asked.as_ref().unwrap_or(settings);
        let resources = &*pod_size::resources(&bundle.spec)?;
        let cgroup = host_cgroup(bundle, id, settings.systemd_cgroup)?;
        let sets = if cgroup.is_some() { Sets::Host } else { Sets::Guest };
        let limit_mib = limits::memory_mib(resources).filter(|_| settings.memory_mib.is_none());
        let memory_mib = settings.memory_mib.or(limit_mib);
        let vcpus = settings.vcpus.map_or_else(|| limits::vcpus(resources, sets), |count| Ok(Some(count)))?;
        let sized = VmSettings { memory_mib, vcpus, ..settings.clone() };
        let vm = VmPlan::new(&sized, &bundle.spec.hostname);
        Ok(VmPlan {
            cgroup,
            // A limit may be above what the host has.
            fill_mib: limit_mib.map_or(vm.fill_mib, |_| Some(vm.memory_mib)),
            network: bundle.network().map(Path::to_owned),
            sockets: sockets(bundle, settings.protocol)?,
            admin_xattrs: mounts::may_administer(bundle.process.capabilities.as_ref()),
            kernel: Kernel::for_bundle(bundle)?,
            network_filter: network_filter(&bundle.spec, settings.vhost_net)?,
            ..vm
        }
        .with_sockets(settings, bundle.binds_directory || pod::makes_machine(&bundle.spec)))
    }

    /// Has connections of sockets in shared directories carried, if there are any and the guest's kernel asks for them. The
    /// members of a pod have directories that its first container does not have.
    #[must_use]
    pub fn with_sockets(mut self, settings: &VmSettings, has_directories: bool) -> VmPlan {
        let asks = settings.share == ShareType::VirtioFs && settings.own_kernel;
        self.pod.sockets = has_directories && asks && settings.protocol != Protocol::Api4244;
        self
    }

    /// Whether connections between sockets of the guest and of the host are carried.
    pub fn carries_sockets(&self) -> bool {
        self.pod.sockets || !self.sockets.is_empty()
    }

    /// Gives the machine the memory and CPUs of the host, unless settings or lower limits determined its size.
    pub fn fill(&mut self, host: Host) {
        if let (Some(max), Some(mib)) = (self.fill_mib, host.memory_mib) {
            let mib = u32::try_from(mib).unwrap_or(u32::MAX);
            self.memory_mib = mib.min(max).max(limits::MIN_MEMORY_MIB);
        }
        if let Some(max) = self.fill_vcpus {
            self.vcpus = u8::try_from(host.cpus).unwrap_or(u8::MAX).clamp(1, max);
        }
    }

    /// Returns whether CPU and memory node sets refer to the host or the guest.
    pub fn sets(&self) -> Sets {
        if self.cgroup.is_some() { Sets::Host } else { Sets::Guest }
    }
}

/// Refuses named pipes, if a process in the guest would wait for ever for an end on the host: only our kernel opens the
/// host's, through virtio-fs.
pub(crate) fn check_pipes(bundle: &Bundle, settings: &VmSettings) -> Result<()> {
    let Some(index) = bundle.pipe_sources.first() else { return Ok(()) };
    if settings.share == ShareType::VirtioFs && settings.own_kernel {
        return Ok(());
    }
    let path = bundle.bind_source(&bundle.spec.mounts[*index]);
    let why = format!("{} is a named pipe of the host's kernel", path.display());
    Err(unsupported(format!("mounts[{index}].source"), why))
}

/// Returns the paths of the sockets that the bundle binds.
fn sockets(bundle: &Bundle, protocol: Protocol) -> Result<Vec<PathBuf>> {
    let refused = |index: &usize, why: String| unsupported(format!("mounts[{index}].source"), why);
    if let Some(index) = bundle.socket_sources.keys().next()
        && protocol == Protocol::Api4244
    {
        return Err(refused(index, "an agent of API 4244 carries no connections to sockets".to_owned()));
    }
    if let Some(index) = bundle.socket_sources.keys().nth(SOCKETS_MAX) {
        return Err(refused(index, format!("limit of {SOCKETS_MAX} sockets")));
    }
    Ok(bundle.socket_sources.keys().map(|index| bundle.bind_source(&bundle.spec.mounts[*index])).collect())
}

/// Annotation that chooses the kernel, for a machine that containers with other privileges than those of the first will join.
pub(crate) const KERNEL: &str = "vmm.kernel";

/// Annotation that restricts the packets of a container to the addresses of its interfaces.
pub(crate) const NETWORK_FILTER: &str = "vmm.network.filter";

/// Whether a NIC may send only from the addresses of its interface.
fn network_filter(spec: &Spec, vhost_net: VhostNet) -> Result<bool> {
    let path = format!("annotations[{NETWORK_FILTER:?}]");
    match spec.annotations.get(NETWORK_FILTER).map(String::as_str) {
        None | Some("false") => Ok(false),
        Some("true") if vhost_net == VhostNet::On => {
            Err(unsupported(path, "packets bypass the filter with vhost-net, which is enabled"))
        }
        Some("true") => Ok(true),
        Some(other) => Err(invalid(&path, format!("{other:?} is neither \"true\" nor \"false\""))),
    }
}

pub(crate) fn host_cgroup(bundle: &Bundle, id: &str, systemd: bool) -> Result<Option<HostCgroup>> {
    let linux = &bundle.spec.linux;
    let place = match (systemd, linux.cgroups_path.as_str()) {
        (false, "") => return Ok(None),
        (false, path) => CgroupLocation::Path(CgroupPath::parse(path)?),
        (true, "") => CgroupLocation::Scope(Scope::parse(&format!(":vmm:{id}"))?),
        (true, path) => CgroupLocation::Scope(Scope::parse(path)?),
    };
    Ok(Some(HostCgroup { place, resources: linux.resources.clone() }))
}

/// Parameters of every boot: a trusted TSC without calibration, no crypto self-tests, the CPU's random numbers trusted so
/// that no process waits for entropy, no 64 MiB reserved for devices that cannot address memory above 4 GiB, and an
/// immediate reset after a panic by a method that this machine supports. Each word costs the boot some 40,000 instructions.
const CMDLINE: &str =
    "reboot=k panic=-1 noreplace-smp tsc=reliable cryptomgr.notests random.trust_cpu=on swiotlb=noforce";

fn cmdline(settings: &VmSettings) -> String {
    let mut words = Vec::new();
    match &settings.console {
        Some(console) if console.serial => words.push("console=ttyS0 earlyprintk=ttyS0 console=hvc0"),
        Some(_) => words.push("console=hvc0"),
        None => words.push("console=hvc0 quiet"),
    }
    words.push(CMDLINE);
    if settings.marks {
        words.push("vmm.marks");
    }
    words.extend(settings.cmdline.as_deref());
    words.join(" ")
}
