//! A pod's virtual machine with its devices, and the host's handles of the channels into it.
//!
//! A [`Sandbox`] owns everything: dropping it stops the VM and joins its threads. There are no files, mounts or
//! processes on the host to clean up besides, so SIGKILL leaves nothing behind.

use host::HostError;
use std::fs::OpenOptions;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use host::network::Nic;
use link::AgentLink;
use link::streams::StreamHandle;
use plan::ShareBind;
use plan::device_rules::{Kind, Rule};
use vmm::VmEnd;
use vmm::devices::share::{
    AccessTime, MountCopy, NodeKind, NodePolicy, NodeRule, ShareTree, Terms, detached,
};
use vmm::devices::virtio::console::LogTail;
use vmm::devices::virtio::net::Vhost;

use crate::checkpoint::Shape;
use crate::pod::Guest;
use crate::sockets::Sockets;
pub use error::{Result, SandboxError};
use machine::Machine;
use nics::Nics;

mod error;
pub mod machine;
pub mod nics;

/// A running machine, the agent's link and the streams.
pub struct Sandbox {
    pub link: AgentLink,
    pub streams: StreamHandle,
    pub(crate) vm: Machine,
    pub(crate) share: ShareTree,
    pub nics: Nics,
    pub(crate) console: LogTail,
    pub(crate) sockets: Option<Sockets>,
    /// What a machine that continues from this one must have.
    pub(crate) shape: Shape,
}

impl Sandbox {
    /// Returns a descriptor that is readable once the machine has ended.
    pub fn end_fd(&self) -> BorrowedFd<'_> {
        self.vm.end_fd()
    }

    /// Returns how the machine ended, once it has.
    pub fn end(&self) -> Option<VmEnd> {
        self.vm.end()
    }

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

    pub fn guest(&mut self) -> Guest<'_> {
        Guest { link: &mut self.link, streams: &mut self.streams }
    }

    /// Shares another file or directory with the guest. It is opened with O_PATH, without access of its own: the file
    /// server opens files for the guest's requests.
    pub fn bind(&self, bind: &ShareBind) -> Result<()> {
        self.bind_opened(bind, open(bind)?, false)
    }

    /// Like [`bind`](Self::bind), for a file or directory that is open. `detached` says that it is on a mount of its own.
    pub fn bind_opened(&self, bind: &ShareBind, file: OwnedFd, detached: bool) -> Result<()> {
        bind_into(&self.share, bind, file, detached)?;
        Ok(self.share.allow_mount_points(&bind.path, bind.mount_points)?)
    }

    pub fn bind_file(&self, path: &str, file: OwnedFd) -> Result<()> {
        Ok(self.share.bind(path, file, Terms::default())?)
    }

    pub fn unbind(&self, path: &str) -> Result<()> {
        Ok(self.share.unbind(path)?)
    }

    /// Adds a NIC to the machine. The guest finds it when it looks for new ones.
    pub fn plug(&mut self, nic: Nic) -> Result<()> {
        self.nics.plug(nic, self.vm.events(), || Vhost::open(self.vm.memory().clone()))
    }

    /// Stops the machine if it still runs, and waits for its threads.
    pub fn stop(self) {
        drop(self.vm);
        self.sockets.iter().for_each(Sockets::finish);
    }
}

/// Shares a file or directory without mount points.
fn bind_into(share: &ShareTree, bind: &ShareBind, file: OwnedFd, detached: bool) -> Result<()> {
    let terms = Terms {
        read_only: bind.read_only,
        owned: bind.owned,
        nodes: node_policy(&bind.nodes),
        later_mounts: bind.later_mounts,
        detached,
        mount: mount_copy(bind),
        admin_xattrs: bind.admin_xattrs,
    };
    Ok(share.bind(&bind.path, file, terms)?)
}

/// Shares a file or directory that needs no further mount points, such as that of a container that runs already.
pub fn bind_again(share: &ShareTree, bind: &ShareBind) -> Result<()> {
    bind_into(share, bind, open(bind)?, false)
}

/// Opens a file or directory for another machine's process, whose server shares it with
/// [`bind_opened`](Sandbox::bind_opened). A directory is then on a mount of its own.
pub fn open_detached(bind: &ShareBind) -> Result<OwnedFd> {
    let file = open(bind)?;
    Ok(if bind.later_mounts { file } else { detached(&bind.path, file, mount_copy(bind))? })
}

fn mount_copy(bind: &ShareBind) -> MountCopy {
    let access_time = bind.access_time.map(|(attributes, recursive)| AccessTime { attributes, recursive });
    MountCopy { single: bind.single, access_time, read_only: bind.read_only_top }
}

fn open(bind: &ShareBind) -> Result<OwnedFd> {
    let open = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&bind.host);
    let file = open.map_err(HostError::step(format!("share {} with the guest", bind.host.display())))?;
    Ok(file.into())
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
