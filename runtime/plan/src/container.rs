//! Plan of a container: its part of the share, and the payload of NEWCONTAINER.

use std::collections::BTreeMap;

use agent_proto::command::Protocol;
use agent_proto::payload::{Container, Namespace, OciContainer};
use oci::bundle::Bundle;
use oci::error::{Result, invalid};
use oci::mount_options;
use oci::spec::{ConsoleSize, Linux};
use oci::warnings;

use crate::mounts::{self, Content, Mounts, ROOTFS, ShareBind};
use crate::vm::VmPlan;
use crate::{api4244, device_filter, device_rules, devices, limits, process, users};

/// A container to start in a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerPlan {
    /// Payload of NEWCONTAINER, without stream numbers, which are allocated at each start.
    pub container: Container,
    /// Host directories and files in the share.
    pub binds: Vec<ShareBind>,
    /// Generated files in the share.
    pub contents: Vec<Content>,
    /// Warnings about features that the container runs without, one sentence each.
    pub notices: Vec<String>,
}

impl ContainerPlan {
    /// Plans the container `id` of `vm` from its bundle. `terminal` is the size of the terminal of `vmm`'s stdio, if
    /// any.
    ///
    /// # Errors
    ///
    /// A field of the bundle is invalid or cannot be honoured in this machine.
    pub fn new(
        bundle: &Bundle,
        id: &str,
        vm: &VmPlan,
        terminal: Option<ConsoleSize>,
    ) -> Result<ContainerPlan> {
        let spec = &bundle.spec;
        let rules = device_rules::rules(&spec.linux.resources.devices)?;
        let rules = devices::makeable(&rules, bundle.process.capabilities.as_ref());
        let Mounts { mut mounts, mut binds, devices: of_dev, notices } = mounts::mounts(bundle, id, &rules)?;
        let (nodes, missing) = devices::nodes(&spec.linux.devices, &spec.linux.resources.devices)?;
        let mut oci = OciContainer {
            namespaces: namespaces(bundle),
            joined: BTreeMap::new(),
            hostname: spec.hostname.clone(),
            domainname: spec.domainname.clone(),
            mounts: Vec::new(),
            masked_paths: spec.linux.masked_paths.clone(),
            readonly_paths: spec.linux.readonly_paths.clone(),
            time_offsets: time_offsets(&spec.linux)?,
            user_namespace: users::maps(&spec.linux)?,
            cgroup: limits::files(&spec.linux.resources, vm.vcpus, vm.sets())?,
            device_rules: device_filter::rules(&spec.linux.resources.devices)?,
            devices: nodes.into_iter().chain(of_dev).collect(),
            root_propagation: mount_options::propagation(&spec.linux.rootfs_propagation).unwrap_or(0),
        };
        devices::allow_made(&mut binds[0].nodes, &oci.devices, &spec.mounts);
        if let Some(maps) = &oci.user_namespace {
            users::translate_mounts(maps, &mut mounts)?;
            users::translate_devices(maps, &mut oci.devices)?;
        }
        let container = Container {
            id: id.to_owned(),
            rootfs: ROOTFS.to_owned(),
            image: id.to_owned(),
            sysctl: spec.linux.sysctl.clone(),
            process: process::init(bundle, terminal, &vm.limits)?,
            read_only: bundle.readonly,
            oci: Some(OciContainer { mounts, ..oci }),
            ..Container::default()
        };
        let notices = warnings::of(spec, &bundle.process).into_iter().chain(notices);
        let notices = notices.chain(process::notices(&bundle.process)).collect();
        let mut plan = ContainerPlan { container, binds, contents: Vec::new(), notices };
        if !missing.is_empty() {
            plan.notices.push(format!("linux.devices: the guest does not have {}", missing.join(", ")));
        }
        if vm.protocol == Protocol::Api4244 {
            let left_out = api4244::reduce(&mut plan.container)?;
            plan.notices.push(format!("API 4244: the container runs without {}", left_out.join(", ")));
        }
        Ok(plan)
    }

    /// Renames the container's part of the share to `number-ID`. The name must be new, because the guest caches
    /// attributes of earlier containers by name.
    pub fn place(&mut self, number: u64) {
        let (old, new) = (format!("/{}/", self.container.image), format!("{number}-{}", self.container.id));
        let moved = |path: &str| match path.strip_prefix(&old) {
            Some(rest) => format!("/{new}/{rest}"),
            None => path.to_owned(),
        };
        self.binds.iter_mut().for_each(|bind| bind.path = moved(&bind.path));
        self.contents.iter_mut().for_each(|content| content.path = moved(&content.path));
        let mounts = self.container.oci.iter_mut().flat_map(|oci| &mut oci.mounts);
        mounts.for_each(|mount| mount.source = moved(&mount.source));
        let mapped = self.container.fsmap.iter_mut();
        mapped.for_each(|map| map.source = moved(&format!("/{}", map.source))[1..].to_owned());
        self.container.image = new;
    }
}

/// The first container of a machine needs no isolation from others: it uses the network, IPC objects and host name of
/// the machine. It gets a PID namespace so that its init process is process 1 and does not see the agent, and a cgroup
/// namespace even if none is requested, because it limits the container's access to the cgroup tree. It gets a UTS
/// namespace if a domain name has to be set.
fn namespaces(bundle: &Bundle) -> Vec<Namespace> {
    let spec = &bundle.spec;
    let all = [
        (spec.linux.has_namespace("pid"), Namespace::Pid),
        (true, Namespace::Cgroup),
        (spec.linux.has_namespace("time"), Namespace::Time),
        (!spec.domainname.is_empty(), Namespace::Uts),
    ];
    all.into_iter().filter(|(wanted, _)| *wanted).map(|(_, namespace)| namespace).collect()
}

/// Returns the lines of /proc/PID/timens_offsets for a time namespace (time_namespaces(7)).
fn time_offsets(linux: &Linux) -> Result<String> {
    let lines = linux.time_offsets.iter().map(|(clock, offset)| match clock.as_str() {
        _ if !linux.has_namespace("time") => Err(invalid("linux.timeOffsets", "requires a time namespace")),
        "monotonic" | "boottime" => Ok(format!("{clock} {} {}\n", offset.secs, offset.nanosecs)),
        other => Err(invalid("linux.timeOffsets", format!("{other:?} is not a clock of a time namespace"))),
    });
    lines.collect()
}
