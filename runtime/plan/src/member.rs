//! Plan of a member: a container that joins the running machine of another one.

use std::collections::BTreeMap;

use agent_proto::payload::{Container, Namespace, POD_SHM};
use oci::bundle::Bundle;
use oci::error::{Result, unsupported};
use oci::spec::ConsoleSize;
use oci::spec::resources::{BlockIo, Resources};

use crate::limits::Sets;
use crate::vm::{KERNEL, Kernel, NETWORK_FILTER, check_pipes, host_cgroup};
use crate::{ContainerPlan, VmPlan, VmSettings, limits};

/// Paths in /proc with kernel settings, which all containers of a machine share.
const KERNEL_PATHS: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// The running machine that a container joins.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Memory in MiB above which no container of it can be limited; `None` if the machine has all memory of the host.
    pub memory_mib: Option<u32>,
    pub vcpus: u8,
    /// The kernel that it runs, if that is an embedded one.
    pub kernel: Kernel,
}

impl VmPlan {
    /// Returns what the plan of container `id` needs to know of the running machine that it joins. The cgroup is that of
    /// its process on the host. It has limits of CPU time, which `vmm update` reads; the guest keeps all of them.
    ///
    /// # Errors
    ///
    /// The bundle asks for something that only a machine of its own can have.
    pub fn for_member(bundle: &Bundle, id: &str, settings: &VmSettings, machine: Machine) -> Result<VmPlan> {
        let spec = &bundle.spec;
        if let Some(index) = bundle.socket_sources.keys().next() {
            let why = "a container that joins a running machine cannot use sockets of the host";
            return Err(unsupported(format!("mounts[{index}].source"), why));
        }
        check_pipes(bundle, settings)?;
        if !spec.linux.net_devices.is_empty() {
            let why = "the network is that of another container's virtual machine";
            return Err(unsupported("linux.netDevices", why));
        }
        if spec.annotations.contains_key(NETWORK_FILTER) {
            let why = "the network is that of another container's virtual machine";
            return Err(unsupported(format!("annotations[{NETWORK_FILTER:?}]"), why));
        }
        limits::check_memory(spec.linux.resources.memory.limit, machine.memory_mib.unwrap_or(u32::MAX))?;
        let mut cgroup = host_cgroup(bundle, id, settings.systemd_cgroup)?;
        if let Some(cgroup) = &mut cgroup {
            cgroup.resources = Resources { cpu: spec.linux.resources.cpu.clone(), ..Resources::default() };
        }
        let settings =
            VmSettings { memory_mib: machine.memory_mib, vcpus: Some(machine.vcpus), ..settings.clone() };
        let kernel = if settings.own_kernel { machine.kernel } else { Kernel::Full };
        Ok(VmPlan { cgroup, kernel, ..VmPlan::new(&settings, "") })
    }
}

impl ContainerPlan {
    /// Plans container `id`, which joins the machine `vm`. `joined` has the kinds of namespaces that it takes from other
    /// containers of the machine, with their names. All others are its own.
    pub fn member(
        bundle: &Bundle,
        id: &str,
        vm: &VmPlan,
        terminal: Option<ConsoleSize>,
        joined: &BTreeMap<String, String>,
    ) -> Result<ContainerPlan> {
        let mut plan = ContainerPlan::new(bundle, id, vm, terminal)?;
        let linux = &bundle.spec.linux;
        let own = |kind: &str| linux.has_namespace(kind) && !joined.contains_key(kind);
        let all = [
            (own("pid"), Namespace::Pid),
            (own("ipc"), Namespace::Ipc),
            (own("uts"), Namespace::Uts),
            (own("network"), Namespace::Network),
            (true, Namespace::Cgroup),
            (own("time"), Namespace::Time),
        ];
        let oci = plan.container.oci.get_or_insert_default();
        oci.namespaces = all.into_iter().filter(|(own, _)| *own).map(|(_, namespace)| namespace).collect();
        oci.joined = joined.clone();
        if own("ipc") {
            for mount in oci.mounts.iter_mut().filter(|mount| mount.kind == POD_SHM) {
                "tmpfs".clone_into(&mut mount.kind);
            }
        }
        let resources = &linux.resources;
        if resources.block_io != BlockIo::default() || !resources.rdma.is_empty() {
            let notice =
                "linux.resources: blockIO and rdma have no effect in the machine of another container";
            plan.notices.push(notice.to_owned());
        }
        let cpu = &resources.cpu;
        if vm.sets() == Sets::Host && !(cpu.cpus.is_empty() && cpu.mems.is_empty()) {
            let notice =
                "linux.resources.cpu: cpus and mems have no effect in the machine of another container";
            plan.notices.push(notice.to_owned());
        }
        if vm.kernel == Kernel::Base && Kernel::needed_by(bundle) == Kernel::Full {
            plan.notices.push(format!(
                "process.capabilities: the kernel of this machine has no bridges, packet filters and other file systems; \
                 the annotation {KERNEL} = \"full\" of its first container chooses the one that has them"
            ));
        }
        protect_kernel(&mut plan.container);
        Ok(plan)
    }
}

/// Makes the kernel's settings in /proc read-only, even if the bundle does not: a container could change them for all
/// containers of the machine. A container with SYS_ADMIN could mount /proc again, so its settings stay as they are.
pub fn protect_kernel(container: &mut Container) {
    const SYS_ADMIN: u64 = 1 << 21;
    let process = container.process.oci.as_ref();
    let sets = process.and_then(|process| process.capabilities).unwrap_or_default();
    if sets.bounding & SYS_ADMIN != 0 {
        return;
    }
    let Some(oci) = &mut container.oci else { return };
    let procs = oci.mounts.iter().filter(|mount| mount.kind == "proc");
    for path in procs.flat_map(|mount| KERNEL_PATHS.map(|path| format!("{}/{path}", mount.destination))) {
        if !oci.readonly_paths.contains(&path) {
            oci.readonly_paths.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use oci::bundle::SocketFile;
    use serde_json::{Value, json};

    use super::*;

    const MACHINE: Machine = Machine { memory_mib: Some(64), vcpus: 2, kernel: Kernel::Base };

    fn bundle(change: impl FnOnce(&mut Value)) -> Bundle {
        let mut json: Value = serde_json::from_str(oci::DEFAULT_CONFIG).unwrap();
        json["mounts"] = json!([{"destination": "/proc", "type": "proc", "source": "proc"},
                                {"destination": "/dev/shm", "type": "bind", "source": "/e/shm"}]);
        change(&mut json);
        let mut bundle = Bundle::check(Path::new("/b"), oci::json::from_value(&json).unwrap()).unwrap();
        bundle.shared_memory.insert(1, 4096);
        bundle
    }

    fn vm(bundle: &Bundle) -> Result<VmPlan> {
        VmPlan::for_member(bundle, "m", &VmSettings::default(), MACHINE)
    }

    fn planned(joined: &[&str]) -> ContainerPlan {
        let bundle = bundle(|_| {});
        let joined = joined.iter().map(|kind| ((*kind).to_owned(), "first".to_owned())).collect();
        ContainerPlan::member(&bundle, "m", &vm(&bundle).unwrap(), None, &joined).unwrap()
    }

    #[test]
    fn namespaces_that_are_not_joined_are_its_own() {
        let oci = planned(&["network", "ipc", "uts"]).container.oci.unwrap();
        assert_eq!(oci.namespaces, [Namespace::Pid, Namespace::Cgroup]);
        assert_eq!(oci.joined["ipc"], "first");
        let oci = planned(&["pid"]).container.oci.unwrap();
        assert_eq!(oci.namespaces, [Namespace::Ipc, Namespace::Uts, Namespace::Network, Namespace::Cgroup]);
        assert!(oci.readonly_paths.contains(&"/proc/sys".to_owned()));
    }

    #[test]
    fn shared_memory_belongs_to_the_ipc_namespace() {
        let of = |joined: &[&str]| {
            let mount = planned(joined).container.oci.unwrap().mounts.remove(1);
            (mount.kind, mount.data)
        };
        let size = "mode=1777,size=4096".to_owned();
        assert_eq!(of(&["ipc"]), (POD_SHM.to_owned(), size.clone()));
        assert_eq!(of(&["network"]), ("tmpfs".to_owned(), size));
    }

    #[test]
    fn what_only_a_machine_of_its_own_can_have_is_refused_by_name() {
        let refused = |bundle: &Bundle| vm(bundle).unwrap_err().to_string();
        let large = bundle(|c| c["linux"]["resources"] = json!({"memory": {"limit": 65 << 20}}));
        assert!(refused(&large).contains("linux.resources.memory.limit: not supported"));
        let filter = bundle(|c| c["annotations"] = json!({NETWORK_FILTER: "true"}));
        assert!(refused(&filter).contains("annotations[\"vmm.network.filter\"]: not supported"));
        let mut socket = bundle(|_| {});
        socket.socket_sources.insert(0, SocketFile { mode: 0o600, uid: 0, gid: 0 });
        assert!(refused(&socket).contains("mounts[0].source: not supported"));
        let fits = bundle(|c| c["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}}));
        assert_eq!(vm(&fits).unwrap().vcpus, 2);
    }

    #[test]
    fn its_process_has_a_cgroup_without_the_limits_of_the_guest() {
        let limited = bundle(|c| {
            c["linux"]["cgroupsPath"] = json!("/m");
            let cpu = json!({"quota": 1000, "period": 2000, "cpus": "0"});
            c["linux"]["resources"] = json!({"memory": {"limit": 1 << 20}, "pids": {"limit": 3}, "cpu": cpu});
        });
        let vm = vm(&limited).unwrap();
        let resources = &vm.cgroup.as_ref().unwrap().resources;
        assert_eq!((resources.memory.limit, resources.pids.limit, resources.cpu.quota), (0, 0, 1000));
        let plan = ContainerPlan::member(&limited, "m", &vm, None, &BTreeMap::new()).unwrap();
        let cgroup = plan.container.oci.unwrap().cgroup;
        assert_eq!((cgroup["memory.max"].as_str(), cgroup["cpu.max"].as_str()), ("1048576", "1000 2000"));
        assert!(plan.notices.iter().any(|notice| notice.contains("cpus and mems have no effect")));
    }
}
