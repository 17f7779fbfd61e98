//! A pod's virtual machine with its devices, and the host's handles of the channels into it.
//!
//! A [`Sandbox`] owns everything: dropping it stops the VM and joins its threads. There are no files, mounts or
//! processes on the host to clean up besides, so SIGKILL leaves nothing behind.

use std::fs::OpenOptions;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use agent_proto::command::{CONTROL_PORT, RESOLVER_PORT, STREAM_PORT};
use host::network::Nic;
use link::streams::{StreamHandle, StreamTable};
use link::{AgentLink, LinkError};
use plan::device_rules::{Kind, Rule};
use plan::vm::SHARE_TAG;
use plan::{ShareBind, ShareType, VmPlan};
use vmm::devices::share::{NodeKind, NodePolicy, NodeRule, ShareError, ShareTree, Terms};
use vmm::devices::virtio::console::{Console, LogPort, LogTail, Port, PortBackend, SocketPort};
use vmm::devices::virtio::fs::{self, Fs};
use vmm::devices::virtio::net::Vhost;
use vmm::devices::virtio::p9::{self, P9};
use vmm::devices::virtio::rng::Rng;
use vmm::{PendingVm, Timeline, Vm, VmConfig, VmEnd};

use crate::console::Outputs;
use crate::host_error::{HostError, failed};
use crate::image::Images;
use crate::pod::Guest;
use machine::Machine;
use nics::Nics;

mod machine;
mod nics;

/// An error of creating or changing a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The VMM could not create or start the machine.
    #[error(transparent)]
    Vm(#[from] vmm::Error),
    /// The share refused a path.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// A system call on the host failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The control channel failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The machine has no free slot for a NIC.
    #[error("a running machine is limited to {count} network interfaces")]
    NoPlace {
        /// Number of slots of the machine.
        count: usize,
    },
}

/// This module's result.
pub type Result<T, E = SandboxError> = std::result::Result<T, E>;

/// A running machine, the agent's link and the streams.
pub struct Sandbox {
    /// The control channel.
    pub link: AgentLink,
    /// The handle of the streams.
    pub streams: StreamHandle,
    vm: Machine,
    share: ShareTree,
    nics: Nics,
    console: LogTail,
}

/// Parts of a sandbox besides the plan.
pub struct Parts {
    /// KVM's part, which was started earlier.
    pub pending: PendingVm,
    /// Kernel and initramfs.
    pub images: Images,
    /// Destinations of the guest's kernel log.
    pub outputs: Outputs,
    /// The streams: the devices' end and the handle.
    pub streams: (StreamTable, StreamHandle),
    /// The NICs.
    pub nics: Vec<Nic>,
    /// Number of additional slots for NICs that are added to the running machine.
    pub spare_nics: usize,
    /// The socket for the guest's name queries, if the guest is to send them.
    pub resolver: Option<UnixStream>,
    /// The boot's marks.
    pub timeline: Option<Arc<Timeline>>,
}

impl Sandbox {
    /// Creates the machine and starts it. The share is empty at first.
    pub fn start(plan: &VmPlan, parts: Parts) -> Result<Sandbox> {
        let (table, streams) = parts.streams;
        let (ours, theirs) = UnixStream::pair().map_err(failed("create a socket pair"))?;
        let share = ShareTree::new()?;
        let config = VmConfig {
            memory_mib: plan.memory_mib,
            vcpus: plan.vcpus,
            kernel: parts.images.kernel,
            initramfs: Some(parts.images.initramfs),
            cmdline: plan.cmdline.clone(),
            serial: parts.outputs.serial,
            timeline: parts.timeline,
        };
        let mut vm = Vm::with(parts.pending, config)?;
        let (log, console) = LogPort::new(parts.outputs.console);
        let port = |name: &str, backend: Box<dyn PortBackend>| Port { name: Some(name.to_owned()), backend };
        let mut ports = vec![
            Port { name: None, backend: Box::new(log) },
            port(CONTROL_PORT, Box::new(SocketPort::new(theirs))),
            port(STREAM_PORT, Box::new(table)),
        ];
        ports.extend(parts.resolver.map(|socket| port(RESOLVER_PORT, Box::new(SocketPort::new(socket)))));
        vm.attach(Box::new(Console::new(vm.events(), ports)))?;
        match plan.share {
            ShareType::VirtioFs => vm.attach(Box::new(Fs::new(SHARE_TAG, fs::server(&share))))?,
            ShareType::P9 => vm.attach(Box::new(P9::new(SHARE_TAG, p9::server(&share))))?,
        }
        vm.attach(Box::new(Rng::new(vm.events())))?;
        let places = parts.nics.len() + parts.spare_nics;
        let mut nics = Nics::attach(&mut vm, places, plan)?;
        for nic in parts.nics {
            nics.plug(nic, vm.events(), || Vhost::open(vm.memory().clone()))?;
        }
        Ok(Sandbox {
            link: AgentLink::new(ours, plan.protocol)?,
            streams,
            vm: Machine::new(vm.start()?),
            share,
            nics,
            console,
        })
    }

    /// Returns a descriptor that is readable once the machine has ended.
    pub fn end_fd(&self) -> BorrowedFd<'_> {
        self.vm.end_fd()
    }

    /// Returns how the machine ended, once it has.
    pub fn end(&self) -> Option<VmEnd> {
        self.vm.end()
    }

    /// Returns the last part of the guest's kernel log.
    pub fn console_tail(&self) -> String {
        self.console.tail()
    }

    /// Forbids further mount points in these binds once the container runs: even a compromised guest kernel cannot
    /// create files in a read-only bind then.
    pub fn seal(&self, binds: &[ShareBind]) -> Result<()> {
        let mut open = binds.iter().filter(|bind| bind.mount_points);
        Ok(open.try_for_each(|bind| self.share.allow_mount_points(&bind.path, false))?)
    }

    /// Prepares for the machine's end: the guest's last sync(2) need not reach the host's disks, since its data is in
    /// the host's page cache, which outlives the guest.
    pub fn expect_end(&self) {
        self.share.set_host_sync(false);
    }

    /// Returns the handles of the channels into the guest.
    pub fn guest(&mut self) -> Guest<'_> {
        Guest { link: &mut self.link, streams: &mut self.streams }
    }

    /// Shares another file or directory with the guest.
    pub fn bind(&self, bind: &ShareBind) -> Result<()> {
        open_and_bind(&self.share, bind)
    }

    /// Shares an open file with the guest.
    pub fn bind_file(&self, path: &str, file: OwnedFd) -> Result<()> {
        Ok(self.share.bind(path, file, Terms::default())?)
    }

    /// Removes a file or directory from the share.
    pub fn unbind(&self, path: &str) -> Result<()> {
        Ok(self.share.unbind(path)?)
    }

    /// Adds a NIC to the machine. The guest finds it when it looks for new ones.
    pub fn plug(&mut self, nic: Nic) -> Result<()> {
        self.nics.plug(nic, self.vm.events(), || Vhost::open(self.vm.memory().clone()))
    }

    /// Restricts the NIC of an interface to these source addresses, if it has a filter.
    pub fn set_addresses(&self, link: u32, addresses: Vec<IpAddr>) {
        self.nics.set_addresses(link, addresses);
    }

    /// Removes the NIC of an interface after the guest has released it.
    pub fn unplug(&mut self, link: u32) {
        self.nics.unplug(link);
    }

    /// Stops the machine if it still runs, and waits for its threads.
    pub fn stop(self) {
        drop(self.vm);
    }
}

/// Opens a shared path with O_PATH, without access of its own: the file server opens files for the guest's requests.
fn open_and_bind(tree: &ShareTree, bind: &ShareBind) -> Result<()> {
    let open = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&bind.host);
    let file = open.map_err(failed(format_args!("share {} with the guest", bind.host.display())))?;
    let terms =
        Terms { read_only: bind.read_only, nodes: node_policy(&bind.nodes), later_mounts: bind.later_mounts };
    tree.bind(&bind.path, file.into(), terms)?;
    Ok(tree.allow_mount_points(&bind.path, bind.mount_points)?)
}

/// Converts the rules about device nodes to the file server's form.
fn node_policy(rules: &[Rule]) -> NodePolicy {
    let kind = |kind| match kind {
        Kind::Character => NodeKind::Character,
        Kind::Block => NodeKind::Block,
    };
    let rule = |rule: &Rule| NodeRule {
        allow: rule.allow,
        kind: rule.kind.map(kind),
        major: rule.major,
        minor: rule.minor,
    };
    NodePolicy(rules.iter().map(rule).collect())
}
