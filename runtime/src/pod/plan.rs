//! Converts a podfile to plain data: the machine, and for each container the files in the share and the agent's
//! commands. A container is planned like a bundle ([`Plan`]), and then gets the pod's own settings.

use host::HostError;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use agent_proto::command::Protocol;
use agent_proto::payload;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use host::signals::name::signal_of;
use oci::bundle::Bundle;
use oci::error::{self, BundleError};
use oci::refusals;
use oci::spec::{self, Spec};
use plan::limits::{MAX_VCPUS, MIN_MEMORY_MIB};
use plan::member::protect_kernel;
use plan::mounts::Content;
use plan::rlimits::RLIMITS;
use plan::vm::Kernel;
use plan::{ContainerPlan, VmPlan, VmSettings};

use super::podfile::{
    File, Log, Podfile, PodfileError, RestartPolicy, Result, UserContainer, Volume, invalid, unsupported,
};
use super::refuse;
use crate::checkpoint::Saved;
use crate::config::RunConfig;

/// Docker's default config.json of a container. The root is the directory itself.
const CONTAINER: &str = include_str!("container.json");
/// Maximum size of a file for a container.
const FILE_MAX: u64 = 4 << 20;

/// A container to be started, and the pod's policies for it.
#[derive(Debug)]
pub struct ContainerSpec {
    pub plan: ContainerPlan,
    /// The init process in the form of config.json, the base of exec processes.
    pub process: spec::Process,
    pub labels: BTreeMap<String, String>,
    pub restart: RestartPolicy,
    pub stop_signal: i32,
    /// Limits and path of the log; without a path it is in the pod's directory.
    pub log_path: Option<PathBuf>,
}

impl ContainerSpec {
    /// Returns a container that is neither restarted nor logged, for an engine that does both.
    pub fn unattended(plan: ContainerPlan, process: spec::Process) -> ContainerSpec {
        ContainerSpec {
            plan,
            process,
            labels: BTreeMap::new(),
            restart: RestartPolicy::Never,
            stop_signal: libc::SIGTERM,
            log_path: None,
        }
    }

    pub fn name(&self) -> &str {
        &self.plan.container.id
    }
}

/// The plan of a pod without its containers.
#[derive(Debug)]
pub struct PodPlan {
    pub id: String,
    pub hostname: String,
    pub machine: VmPlan,
    /// The checkpoint from which the pod's machine continues.
    pub continued: Option<Saved>,
    pub log: Log,
    /// The podfile, to which containers that are added later refer.
    file: Podfile,
    /// The directory to which paths in the podfile are relative.
    base: PathBuf,
    resolv_conf: Vec<u8>,
}

impl PodPlan {
    /// Plans a pod and its containers. `id` is the pod's name if the podfile has none.
    pub fn new(
        file: Podfile,
        base: &Path,
        id: &str,
        config: &RunConfig,
    ) -> Result<(PodPlan, Vec<ContainerSpec>)> {
        refuse::check(&file)?;
        let id = if file.id.is_empty() { id.to_owned() } else { file.id.clone() };
        let hostname = match file.hostname.as_str() {
            "" if refuse::is_label(&id) => id.clone(),
            "" => "pod".to_owned(),
            given => given.to_owned(),
        };
        let mut machine = VmPlan::new(&sized(&file, &config.vm)?, &hostname);
        machine.pod.accounting = true;
        let resolv_conf = resolv_conf(&file);
        let log = file.log.clone();
        let base_dir = base.to_owned();
        let mut pod =
            PodPlan { id, hostname, machine, continued: None, log, file, base: base_dir, resolv_conf };
        let containers = pod.file.containers.iter().enumerate();
        let plans: Vec<ContainerSpec> = containers
            .map(|(index, container)| pod.container(&format!("containers[{index}]"), container, base))
            .collect::<Result<_>>()?;
        let capabilities = plans.iter().map(|plan| plan.process.capabilities.as_ref());
        pod.machine.kernel = Kernel::for_capabilities(capabilities);
        let mut binds = plans.iter().flat_map(|plan| &plan.plan.binds);
        pod.machine.admin_xattrs = binds.any(|bind| bind.admin_xattrs);
        let volumes = pod.file.containers.iter().any(|container| !container.volumes.is_empty());
        pod.machine = pod.machine.with_sockets(&config.vm, volumes);
        Ok((pod, plans))
    }

    /// Returns the pod of the one container `id` that runs in `machine`, which may continue from a checkpoint.
    pub fn of_one(id: &str, mut machine: VmPlan, continued: Option<Saved>) -> PodPlan {
        // API 4244 has no such key.
        machine.pod.accounting = machine.protocol != Protocol::Api4244;
        PodPlan {
            id: id.to_owned(),
            hostname: machine.pod.hostname.clone(),
            machine,
            continued,
            // The engine stores the container's output.
            log: Log { kind: "none".to_owned(), ..Log::default() },
            file: Podfile::default(),
            base: PathBuf::new(),
            resolv_conf: Vec::new(),
        }
    }

    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.file.labels
    }

    /// Plans one container. `at` is its JSON path, and its paths are relative to `base`.
    pub fn container(&self, at: &str, container: &UserContainer, base: &Path) -> Result<ContainerSpec> {
        refuse::check_container(at, container)?;
        let bundle = self.bundle(at, container, base)?;
        if !bundle.spec.linux.cgroups_path.is_empty() {
            let why = "the machine belongs to the pod, not to a container";
            return Err(of_bundle(at, &error::unsupported("linux.cgroupsPath", why)));
        }
        let plan = ContainerPlan::new(&bundle, &container.name, &self.machine, None);
        let mut plan = plan.map_err(|error| of_bundle(at, &error))?;
        let user = &container.user;
        let process = &mut plan.container.process;
        // Names belong to the container: the agent looks them up in its files.
        for (field, given) in [(&mut process.user, &user.name), (&mut process.group, &user.group)] {
            if !given.is_empty() {
                field.clone_from(given);
            }
        }
        if !user.name.is_empty() && user.group.is_empty() {
            process.group.clear();
        }
        process.additional_groups.extend(user.additional_groups.iter().cloned());
        share_shm(&mut plan.container);
        protect_kernel(&mut plan.container);
        self.add_files(at, container, &mut plan)?;
        let signal = Some(container.stop_signal.as_str()).filter(|name| !name.is_empty());
        Ok(ContainerSpec {
            plan,
            process: bundle.process,
            labels: container.labels.clone(),
            restart: container.restart_policy.or(self.file.restart_policy).unwrap_or_default(),
            stop_signal: signal.and_then(signal_of).unwrap_or(libc::SIGTERM),
            log_path: Some(&container.log_path).filter(|path| !path.is_empty()).map(|path| base.join(path)),
        })
    }

    /// Returns the container as a bundle: that of its image, or a default one over the image's directory.
    fn bundle(&self, at: &str, container: &UserContainer, base: &Path) -> Result<Bundle> {
        let image = base.join(&container.image);
        if !fs::metadata(&image).is_ok_and(|metadata| metadata.is_dir()) {
            let why =
                format!("{}: not a directory; expected a root file system or an OCI bundle", image.display());
            return Err(unsupported(format!("{at}.image"), why));
        }
        let mut bundle = if image.join("config.json").exists() {
            Bundle::load(&image).map_err(|error| of_bundle(&format!("{at}.image"), &error))?
        } else {
            plain_bundle(at, container, &image)?
        };
        if let Some(network) = bundle.network() {
            let why = format!("{}: its config.json names a network namespace", network.display());
            return Err(unsupported(format!("{at}.image"), why));
        }
        refusals::check_paths(&bundle.spec).map_err(|error| of_bundle(&format!("{at}.image"), &error))?;
        bundle.readonly |= container.read_only;
        bundle.process.terminal = container.tty.unwrap_or(self.file.tty);
        let namespaces = &mut bundle.spec.linux.namespaces;
        namespaces.retain(|namespace| matches!(namespace.kind.as_str(), "cgroup" | "user" | "time"));
        if container.own_pids {
            namespaces.push(spec::Namespace { kind: "pid".to_owned(), path: String::new() });
        }
        (bundle.spec.hostname, bundle.spec.domainname) = (String::new(), String::new());
        bundle.spec.linux.sysctl.extend(container.sysctl.clone());
        change_process(at, container, &mut bundle.process)?;
        for (index, mount) in container.volumes.iter().enumerate() {
            let at = format!("{at}.volumes[{index}]");
            let (at, volume) = match &mount.detail {
                Some(volume) => (format!("{at}.detail.source"), volume),
                None => (format!("{at}.volume"), self.volume(&format!("{at}.volume"), &mount.volume)?),
            };
            // Paths of the pod's volumes are relative to the podfile; those of a container's own are relative to its
            // file.
            let from = if mount.detail.is_some() { base } else { &self.base };
            let source = from.join(&volume.source);
            check_source(&at, &source)?;
            let access = if mount.read_only { "ro" } else { "rw" };
            bundle.spec.mounts.retain(|other| other.destination != mount.path);
            bundle.spec.mounts.push(spec::Mount {
                destination: mount.path.clone(),
                kind: "bind".to_owned(),
                source: source.to_string_lossy().into_owned(),
                options: vec!["rbind".to_owned(), access.to_owned()],
                ..spec::Mount::default()
            });
        }
        Ok(bundle)
    }

    fn volume(&self, at: &str, name: &str) -> Result<&Volume> {
        let found = self.file.volumes.iter().find(|volume| volume.name == name);
        found.ok_or_else(|| invalid(at, format!("the pod has no volume {name:?}")))
    }

    fn add_files(&self, at: &str, container: &UserContainer, plan: &mut ContainerPlan) -> Result<()> {
        for (index, mount) in container.files.iter().enumerate() {
            let at = format!("{at}.files[{index}]");
            let file = match &mount.detail {
                Some(file) => file,
                None => {
                    let found = self.file.files.iter().find(|file| file.name == mount.filename);
                    let why = || format!("the pod has no file {:?}", mount.filename);
                    found.ok_or_else(|| invalid(format!("{at}.filename"), why()))?
                }
            };
            let owner = (
                refuse::owner(&format!("{at}.user"), &mount.user)?,
                refuse::owner(&format!("{at}.group"), &mount.group)?,
            );
            add_content(plan, &mount.path, contents(&at, file)?, refuse::mode(&at, &mount.perm)?, owner);
        }
        let hosts = format!(
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\t{}\n",
            self.hostname
        );
        let etc = [
            ("/etc/hosts", hosts.into_bytes()),
            ("/etc/hostname", format!("{}\n", self.hostname).into_bytes()),
            ("/etc/resolv.conf", self.resolv_conf.clone()),
        ];
        for (path, bytes) in etc {
            let taken = |mount: &payload::Mount| mount.destination == path || mount.destination == "/etc";
            if !plan.container.oci.iter().any(|oci| oci.mounts.iter().any(taken)) {
                add_content(plan, path, bytes, 0o644, (0, 0));
            }
        }
        Ok(())
    }
}

/// Returns the settings with the podfile's size, unless the command line overrides it.
fn sized(file: &Podfile, settings: &VmSettings) -> Result<VmSettings> {
    let resource = &file.resource;
    if let Some(memory) = resource.memory.filter(|memory| *memory < MIN_MEMORY_MIB) {
        let why = format!("{memory} MiB: a guest needs at least {MIN_MEMORY_MIB} MiB");
        return Err(invalid("resource.memory", why));
    }
    if let Some(vcpus) = resource.vcpu.filter(|vcpus| !(1..=MAX_VCPUS).contains(vcpus)) {
        return Err(invalid("resource.vcpu", format!("{vcpus} is not from 1 to {MAX_VCPUS}")));
    }
    let mut settings = settings.clone();
    settings.memory_mib = settings.memory_mib.or(resource.memory);
    settings.vcpus = settings.vcpus.or(resource.vcpu);
    Ok(settings)
}

fn plain_bundle(at: &str, container: &UserContainer, image: &Path) -> Result<Bundle> {
    let mut spec: Spec = serde_json::from_str(CONTAINER).expect("the built-in configuration is valid");
    let args = container.entrypoint.iter().chain(&container.command).cloned().collect::<Vec<_>>();
    if args.is_empty() {
        return Err(invalid(
            format!("{at}.command"),
            "no program: neither the podfile nor the image names one",
        ));
    }
    let unprivileged = !matches!(container.user.name.as_str(), "" | "0" | "root");
    if let Some(process) = &mut spec.process {
        process.args = args;
        // As in Docker, a user other than root can gain capabilities and has none at first.
        if let Some(capabilities) = process.capabilities.as_mut().filter(|_| unprivileged) {
            capabilities.effective.clear();
            capabilities.permitted.clear();
        }
    }
    Bundle::check(image, spec).map_err(|error| of_bundle(at, &error))
}

/// Overrides the image's process with the podfile's values.
fn change_process(at: &str, container: &UserContainer, process: &mut spec::Process) -> Result<()> {
    let args = container.entrypoint.iter().chain(&container.command).cloned().collect::<Vec<_>>();
    if !args.is_empty() {
        process.args = args;
    }
    for env in &container.envs {
        process.env.retain(|old| old.split_once('=').is_none_or(|(name, _)| name != env.env));
        process.env.push(format!("{}={}", env.env, env.value));
    }
    if process.terminal && !process.env.iter().any(|variable| variable.starts_with("TERM=")) {
        process.env.push("TERM=xterm".to_owned());
    }
    if let Some(workdir) = &container.workdir {
        process.cwd.clone_from(workdir);
    }
    for (index, limit) in container.ulimits.iter().enumerate() {
        let name = limit.name.to_ascii_uppercase();
        let kind = if name.starts_with("RLIMIT_") { name } else { format!("RLIMIT_{name}") };
        if !RLIMITS.contains(&kind.as_str()) {
            return Err(invalid(
                format!("{at}.ulimits[{index}].Name"),
                format!("{:?} is not a limit", limit.name),
            ));
        }
        let number = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
        process.rlimits.retain(|other| other.kind != kind);
        process.rlimits.push(spec::Rlimit { kind, hard: number(limit.hard), soft: number(limit.soft) });
    }
    Ok(())
}

/// Shares the pod's /dev/shm with every container.
fn share_shm(container: &mut payload::Container) {
    let mounts = container.oci.iter_mut().flat_map(|oci| &mut oci.mounts);
    for mount in mounts.filter(|mount| mount.destination == "/dev/shm" && mount.kind == "tmpfs") {
        *mount = payload::Mount {
            destination: "/dev/shm".to_owned(),
            kind: payload::POD_SHM.to_owned(),
            data: "mode=1777".to_owned(),
            ..payload::Mount::default()
        };
    }
}

fn add_content(plan: &mut ContainerPlan, path: &str, bytes: Vec<u8>, mode: u32, owner: (u32, u32)) {
    let in_share = format!("/{}/files/{}", plan.container.image, plan.contents.len());
    plan.contents.push(Content { path: in_share.clone(), bytes, mode, owner });
    plan.container.oci.get_or_insert_default().mounts.push(payload::Mount {
        destination: path.to_owned(),
        kind: "bind".to_owned(),
        source: in_share,
        flags: libc::MS_BIND,
        ..payload::Mount::default()
    });
}

fn contents(at: &str, file: &File) -> Result<Vec<u8>> {
    let bytes = match file.uri.strip_prefix("file://") {
        Some(path) => {
            let path = Path::new(path);
            check_source(&format!("{at}.uri"), path)?;
            let mut bytes = Vec::new();
            let opened = fs::File::open(path);
            let read = opened.and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut bytes));
            read.map_err(HostError::at(format!("open {at}.uri"), path))?;
            bytes
        }
        None => file.content.clone().into_bytes(),
    };
    if bytes.len() as u64 > FILE_MAX {
        return Err(invalid(at, format!("more than {FILE_MAX} bytes")));
    }
    if file.encoding != "base64" {
        return Ok(bytes);
    }
    decoded(bytes).ok_or_else(|| invalid(format!("{at}.content"), "not base64"))
}

/// Decodes base64, with line breaks as in YAML.
fn decoded(mut text: Vec<u8>) -> Option<Vec<u8>> {
    text.retain(|byte| !byte.is_ascii_whitespace());
    BASE64_STANDARD.decode(text).ok()
}

/// Refuses files that would not work in a guest, such as sockets and devices.
fn check_source(at: &str, path: &Path) -> Result<()> {
    let metadata = fs::metadata(path).map_err(HostError::at(format!("open {at}"), path))?;
    if metadata.is_dir() || metadata.is_file() {
        return Ok(());
    }
    Err(unsupported(at, format!("{} is neither a directory nor a file", path.display())))
}

/// Returns the podfile's resolv.conf, or else the host's.
fn resolv_conf(file: &Podfile) -> Vec<u8> {
    let mut text: String = file.dns.iter().map(|server| format!("nameserver {server}\n")).collect();
    for (word, list) in [("search", &file.dns_search), ("options", &file.dns_options)] {
        if !list.is_empty() {
            text += &format!("{word} {}\n", list.join(" "));
        }
    }
    if text.is_empty() { host_resolv_conf() } else { text.into_bytes() }
}

fn host_resolv_conf() -> Vec<u8> {
    let mut bytes = Vec::new();
    // A host without resolv.conf has no name servers.
    let read = fs::File::open("/etc/resolv.conf").map(|file| file.take(FILE_MAX).read_to_end(&mut bytes));
    if let Err(error) = read {
        log::debug!("read /etc/resolv.conf: {error}");
    }
    bytes
}

/// Converts an error in an image's configuration to one with the podfile's path.
fn of_bundle(at: &str, error: &BundleError) -> PodfileError {
    let cause = std::error::Error::source(error).map_or(String::new(), |cause| format!(": {cause}"));
    invalid(at, format!("{error}{cause}"))
}

#[cfg(test)]
mod tests;
