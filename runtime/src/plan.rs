//! Everything that `vmm run` decides, as plain data: the VM's size, its kernel's command line, what is shared, and
//! what the agent is told. Made from the bundle and the configuration, without a look at anything else.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use agent_proto::payload::{self, Container, Env, OciContainer, OciProcess, Pod};
use vmm::devices::virtio::fs::NodePolicy;

use crate::bundle::{Bundle, Result, invalid, is_bind, unsupported};
use crate::cgroup::path::CgroupPath;
use crate::cgroup::systemd::Scope;
use crate::cgroup::{Place, Wanted};
use crate::config::{RunConfig, ShareType, VhostNet};
use crate::link::Peer;
use crate::network::Network;
use crate::network::resolver::Names;
use crate::oci::{self, ConsoleSize, Linux, Spec};

pub mod base;
pub mod capabilities;
pub mod device_filter;
pub mod device_rules;
pub mod devices;
pub mod limits;
pub mod mounts;
pub mod scheduling;
pub mod seccomp;
pub mod users;

use limits::Sets;
use mounts::MountOptions;

/// Memory of a VM that nobody gave a size.
pub const DEFAULT_MEMORY_MIB: u32 = 256;
/// The least memory in which the guest's kernel, the agent and a container start.
pub const MIN_MEMORY_MIB: u32 = 64;
/// What a VM has above a container's memory limit for the guest's kernel and the agent, beside 1/64 of the limit for
/// the kernel's page structures.
pub const GUEST_OVERHEAD_MIB: u64 = 32;
/// The most vCPUs that a CPU quota or set gives.
pub const MAX_VCPUS: u8 = 32;
/// The share's mount tag.
pub const SHARE_TAG: &str = "share";
/// Stream of the first process's stdin and stdout.
pub const STDIO_STREAM: u64 = 1;
/// Stream of its stderr.
pub const STDERR_STREAM: u64 = 2;
/// The first process's name.
pub const INIT_PROCESS: &str = "init";
/// The root directory's name in the container's part of the share.
const ROOTFS: &str = "rootfs";

/// Limits that an OCI process may set (getrlimit(2)).
pub(crate) const RLIMITS: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

/// A file or directory of the host in the share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareBind {
    /// Path in the share, absolute.
    pub path: String,
    /// Path on the host.
    pub host: PathBuf,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// All the same it may make what is missing to mount something on, until the container runs.
    pub mount_points: bool,
    /// The device nodes that the guest may make.
    pub nodes: NodePolicy,
    /// What the host mounts there while the machine runs is in it.
    pub later_mounts: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Guest memory.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// The kernel's command line; the machine adds its devices.
    pub cmdline: String,
    /// By which protocol the share is served.
    pub share: ShareType,
    /// Who passes packets on.
    pub vhost_net: VhostNet,
    /// A NIC sends from its interface's addresses alone.
    pub network_filter: bool,
    /// Whose agent it is.
    pub peer: Peer,
    /// The machine's cgroup on the host; it stays in ours where there is none.
    pub cgroup: Option<Wanted>,
    /// What the share holds.
    pub binds: Vec<ShareBind>,
    /// The network namespace whose interfaces are the guest's; none: it has its loopback alone.
    pub network: Option<PathBuf>,
    /// STARTPOD.
    pub pod: Pod,
    /// NEWCONTAINER.
    pub container: Container,
    /// The first process has a terminal.
    pub terminal: bool,
}

impl Plan {
    /// Decides. `terminal` is the size of the terminal that `vmm` was started in, if any.
    pub fn new(bundle: &Bundle, config: &RunConfig, terminal: Option<ConsoleSize>) -> Result<Plan> {
        let resources = &bundle.spec.linux.resources;
        let cgroup = host_cgroup(bundle, config)?;
        let sets = if cgroup.is_some() { Sets::Host } else { Sets::Guest };
        let vcpus = config.vcpus.map_or_else(|| limits::vcpus(resources, sets), Ok)?;
        let rules = device_rules::rules(&resources.devices)?;
        let nodes = devices::policy(&rules, bundle.process.capabilities.as_ref());
        let (mut mounts, mut binds) = mounts(bundle, &config.id, nodes);
        let mut oci = oci_container(bundle)?;
        devices::allow_made(&mut binds[0].nodes, &oci.devices, &bundle.spec.mounts);
        oci.cgroup = limits::files(resources, vcpus, sets)?;
        if let Some(maps) = &oci.user_namespace {
            users::translate_mounts(maps, &mut mounts)?;
            users::translate_devices(maps, &mut oci.devices)?;
        }
        let container = Container {
            id: config.id.clone(),
            rootfs: ROOTFS.to_owned(),
            image: config.id.clone(),
            sysctl: bundle.spec.linux.sysctl.clone(),
            process: process(bundle, terminal)?,
            read_only: bundle.readonly,
            oci: Some(OciContainer { mounts, ..oci }),
            ..Container::default()
        };
        let mut plan = Plan {
            memory_mib: config.memory_mib.unwrap_or_else(|| limits::memory_mib(resources)),
            vcpus,
            cgroup,
            binds,
            network: bundle.network().map(Path::to_owned),
            network_filter: network_filter(&bundle.spec, config.vhost_net)?,
            container,
            terminal: bundle.process.terminal,
            ..Plan::empty(config, &bundle.spec.hostname)
        };
        if plan.peer == Peer::Base {
            let left_out = base::reduce(&mut plan)?;
            log::warn!("API 4244: the container runs without {}", left_out.join(", "));
        }
        Ok(plan)
    }

    /// Tells the guest of its network.
    pub fn connect(&mut self, network: &Network) {
        network.describe(&mut self.pod);
        if self.peer == Peer::Base {
            let left_out = base::reduce_network(&mut self.pod);
            if !left_out.is_empty() {
                log::warn!("API 4244: the network is without {}", left_out.join(", "));
            }
        }
    }

    /// Has the guest's name queries asked in the network namespace, which this thread is in, where the container's
    /// resolv.conf wants a server there. Returns what the guest's port is to be tied to, and where that is not so now the
    /// queries, which may be asked later.
    pub fn serve_names(&mut self, spec: &Spec) -> io::Result<(Option<UnixStream>, Option<Names>)> {
        let names = if self.peer == Peer::Base { None } else { Names::of(spec)? };
        let Some((names, port)) = names else { return Ok((None, None)) };
        let Some(server) = names.server() else { return Ok((Some(port), Some(names))) };
        self.pod.resolver = server.to_string();
        names.serve(server)?;
        Ok((Some(port), None))
    }

    /// Decides for a machine without a container: those of a pod come while it runs.
    pub fn empty(config: &RunConfig, hostname: &str) -> Plan {
        Plan {
            memory_mib: config.memory_mib.unwrap_or(DEFAULT_MEMORY_MIB),
            vcpus: config.vcpus.unwrap_or(1),
            cmdline: cmdline(config),
            share: config.share,
            vhost_net: config.vhost_net,
            network_filter: false,
            peer: config.peer,
            cgroup: None,
            binds: Vec::new(),
            network: None,
            pod: Pod {
                hostname: hostname.to_owned(),
                share_dir: SHARE_TAG.to_owned(),
                share_type: config.share.name().to_owned(),
                ..Pod::default()
            },
            container: Container::default(),
            terminal: false,
        }
    }
}

/// The annotation that holds a container's network interfaces to their addresses.
const NETWORK_FILTER: &str = "vmm.network.filter";

/// Whether a NIC is to send from its interface's addresses alone.
fn network_filter(spec: &Spec, vhost_net: VhostNet) -> Result<bool> {
    let path = format!("annotations[{NETWORK_FILTER:?}]");
    match spec.annotations.get(NETWORK_FILTER).map(String::as_str) {
        None | Some("false") => Ok(false),
        Some("true") if vhost_net == VhostNet::On => {
            Err(unsupported(path, "with vhost-net, which is asked for, packets do not pass the filter"))
        }
        Some("true") => Ok(true),
        Some(other) => Err(invalid(&path, format!("{other:?} is neither \"true\" nor \"false\""))),
    }
}

/// The words that every boot has, each earning its place:
/// no modules and no legacy probing, the TSC trusted without a calibration, no crypto self-tests, the CPU's random
/// numbers trusted so that nobody waits for entropy, no 64 MiB set aside above 4 GiB for devices that cannot reach
/// there, a panic that resets at once by a way that this machine has.
const CMDLINE: &str = "reboot=k panic=-1 nomodule noreplace-smp tsc=reliable no_timer_check cryptomgr.notests \
                       random.trust_cpu=on swiotlb=noforce rdinit=/init";

fn cmdline(config: &RunConfig) -> String {
    let mut words = Vec::new();
    match &config.console {
        Some(console) if console.serial => words.push("console=ttyS0 earlyprintk=ttyS0 console=hvc0"),
        Some(_) => words.push("console=hvc0"),
        None => words.push("console=hvc0 quiet"),
    }
    words.push(CMDLINE);
    if config.marks.is_some() {
        words.push("vmm.marks");
    }
    words.extend(config.cmdline.as_deref());
    words.join(" ")
}

/// Returns the agent's words for a bundle's first process.
fn process(bundle: &Bundle, terminal: Option<ConsoleSize>) -> Result<payload::Process> {
    let linux = &bundle.spec.linux;
    let mut process = process_of(&bundle.process, terminal)?;
    let oci = process.oci.get_or_insert_default();
    oci.personality = linux.personality.as_ref().map(scheduling::personality).transpose()?;
    oci.seccomp = linux.seccomp.as_ref().map(seccomp::compile).transpose()?;
    Ok(process)
}

/// Returns the agent's words for a process as it is in config.json; what its container has for all is not in them.
pub fn process_of(from: &oci::Process, terminal: Option<ConsoleSize>) -> Result<payload::Process> {
    // As with runc, the terminal that is there wins over the size in the file.
    let size = terminal.or(from.console_size).filter(|_| from.terminal).unwrap_or_default();
    Ok(payload::Process {
        id: INIT_PROCESS.to_owned(),
        user: from.user.uid.to_string(),
        group: from.user.gid.to_string(),
        additional_groups: from.user.additional_gids.iter().map(u32::to_string).collect(),
        terminal: from.terminal,
        stdio: STDIO_STREAM,
        stderr: if from.terminal { 0 } else { STDERR_STREAM },
        args: from.args.clone(),
        envs: environment(&from.env),
        workdir: from.cwd.clone(),
        rlimits: rlimits(from)?,
        rows: size.height,
        columns: size.width,
        oci: Some(OciProcess {
            capabilities: Some(capabilities::masks(from.capabilities.as_ref())),
            no_new_privileges: from.no_new_privileges,
            umask: from.user.umask,
            oom_score_adj: from.oom_score_adj,
            scheduler: from.scheduler.as_ref().map(scheduling::scheduler).transpose()?,
            io_priority: from.io_priority.as_ref().map(scheduling::io_priority).transpose()?,
            ..OciProcess::default()
        }),
    })
}

/// Returns the environment; of a variable that is there twice the last value holds, as with runc.
fn environment(variables: &[String]) -> Vec<Env> {
    let mut envs: Vec<Env> = Vec::new();
    for (name, value) in variables.iter().filter_map(|variable| variable.split_once('=')) {
        match envs.iter_mut().find(|known| known.env == name) {
            Some(known) => value.clone_into(&mut known.value),
            None => envs.push(Env { env: name.to_owned(), value: value.to_owned() }),
        }
    }
    envs
}

fn rlimits(from: &oci::Process) -> Result<Vec<payload::Rlimit>> {
    let limits = from.rlimits.iter().enumerate();
    limits
        .map(|(index, limit)| {
            if !RLIMITS.contains(&limit.kind.as_str()) {
                return Err(invalid(&format!("process.rlimits[{index}].type"), format!("{:?}", limit.kind)));
            }
            Ok(payload::Rlimit { kind: limit.kind.clone(), hard: limit.hard, soft: limit.soft })
        })
        .collect()
}

/// The first container of a VM needs no namespace against others: the VM's own network (a loopback alone), IPC and
/// host name are its. It gets a PID namespace to be process 1 and not to see the agent, a cgroup namespace whether it asks for
/// one or not, because its power over the tree ends there, and a UTS namespace where a domain name has to be set.
fn oci_container(bundle: &Bundle) -> Result<OciContainer> {
    let spec = &bundle.spec;
    let asked = |kind: &str| spec.linux.namespaces.iter().any(|namespace| namespace.kind == kind);
    let mut namespaces = Vec::new();
    if asked("pid") {
        namespaces.push(payload::Namespace::Pid);
    }
    namespaces.push(payload::Namespace::Cgroup);
    if asked("time") {
        namespaces.push(payload::Namespace::Time);
    }
    if !spec.domainname.is_empty() {
        namespaces.push(payload::Namespace::Uts);
    }
    Ok(OciContainer {
        namespaces,
        hostname: spec.hostname.clone(),
        domainname: spec.domainname.clone(),
        mounts: Vec::new(),
        masked_paths: spec.linux.masked_paths.clone(),
        readonly_paths: spec.linux.readonly_paths.clone(),
        time_offsets: time_offsets(&spec.linux)?,
        user_namespace: users::maps(&spec.linux)?,
        cgroup: BTreeMap::new(),
        devices: devices::nodes(&spec.linux.devices, &spec.linux.resources.devices)?,
        device_rules: device_filter::rules(&spec.linux.resources.devices)?,
        root_propagation: mounts::propagation(&spec.linux.rootfs_propagation).unwrap_or(0),
    })
}

fn host_cgroup(bundle: &Bundle, config: &RunConfig) -> Result<Option<Wanted>> {
    let linux = &bundle.spec.linux;
    let place = match (config.systemd_cgroup, linux.cgroups_path.as_str()) {
        (false, "") => return Ok(None),
        (false, path) => Place::Path(CgroupPath::parse(path)?),
        (true, "") => Place::Scope(Scope::parse(&format!(":vmm:{}", config.id))?),
        (true, path) => Place::Scope(Scope::parse(path)?),
    };
    Ok(Some(Wanted { place, resources: linux.resources.clone() }))
}

/// Returns the kernel's lines for the clocks of a time namespace (time_namespaces(7)).
fn time_offsets(linux: &Linux) -> Result<String> {
    let asked = linux.namespaces.iter().any(|namespace| namespace.kind == "time");
    let lines = linux.time_offsets.iter().map(|(clock, offset)| match clock.as_str() {
        _ if !asked => Err(invalid("linux.timeOffsets", "without a time namespace")),
        "monotonic" | "boottime" => Ok(format!("{clock} {} {}\n", offset.secs, offset.nanosecs)),
        other => Err(invalid("linux.timeOffsets", format!("{other:?} is no clock that has one"))),
    });
    lines.collect()
}

/// Returns the agent's mounts and what the share has to hold for them, the root first.
fn mounts(bundle: &Bundle, id: &str, nodes: NodePolicy) -> (Vec<payload::Mount>, Vec<ShareBind>) {
    let mut binds = vec![ShareBind {
        path: format!("/{id}/{ROOTFS}"),
        host: bundle.rootfs.clone(),
        read_only: bundle.readonly,
        mount_points: bundle.readonly,
        nodes: nodes.clone(),
        later_mounts: false,
    }];
    let mut mounts = Vec::new();
    for mount in &bundle.spec.mounts {
        let mut options = MountOptions::parse(&mount.options);
        let (kind, source) = if is_bind(mount) {
            let path = format!("/{id}/mounts/{}", binds.len() - 1);
            let read_only = options.read_only();
            binds.push(ShareBind {
                path: path.clone(),
                host: bundle.bind_source(mount),
                read_only,
                mount_points: false,
                nodes: nodes.clone(),
                later_mounts: options.propagation & (libc::MS_SLAVE | libc::MS_SHARED) != 0,
            });
            options.flags |= libc::MS_BIND;
            ("bind", path)
        } else if mount.kind == "cgroup" {
            // A guest has the unified hierarchy alone; version 1's options mean nothing to it.
            options.data.clear();
            ("cgroup2", mount.source.clone())
        } else {
            (mount.kind.as_str(), mount.source.clone())
        };
        mounts.push(payload::Mount {
            // A destination without a leading slash is relative to the root (config.md, "Mounts").
            destination: format!("/{}", mount.destination.trim_start_matches('/')),
            kind: kind.to_owned(),
            source,
            flags: options.flags,
            propagation: options.propagation,
            recursive_set: options.recursive_set,
            recursive_clear: options.recursive_clear,
            copy_up: options.copy_up,
            data: options.data,
        });
    }
    (mounts, binds)
}

#[cfg(test)]
mod tests;
