//! Sockets of the guest whose other end is on the host: when the agent listens on them, and when a process begins to carry their
//! connections ([`sockets`]).

use alloc::format;
use alloc::vec::Vec;

use agent_proto::payload::{self, ErrorCode, Mount};
use agent_proto::sockets::SOCKETS_MAX;
use rustix::event::epoll::{self, EventFlags};
use rustix::fs::Mode;
use rustix::io::Errno;

use crate::container::paths;
use crate::error::{Error, Step};
use crate::ports;
use crate::sockets::{self, Gateway};
use crate::state::{EventSource, State, watch};

impl State {
    /// Waits for connections with sockets in shared directories.
    pub(crate) fn open_gateway(&mut self) -> Result<(), Error> {
        self.gateway = Gateway::open()?;
        for fd in self.gateway.iter().flat_map(Gateway::fds) {
            watch(&self.epoll, fd, 0, EventSource::Sockets, EventFlags::IN | EventFlags::ET)?;
        }
        Ok(())
    }

    /// Starts to carry connections if there is one. Without a process for that they are refused.
    pub(crate) fn carry_if_asked(&mut self) {
        if self.gateway.as_ref().is_some_and(Gateway::is_asked) {
            self.sockets =
                self.take_gateway().and_then(|gateway| sockets::carry_with(Vec::new(), gateway).ok());
        }
    }

    /// Listens on the sockets that a container's mounts name, and starts to carry their connections in a process that runs
    /// as long as the guest. Only one container of a machine has such mounts.
    pub(crate) fn start_sockets(&mut self, spec: &payload::Container) -> Result<(), Error> {
        let mounts = spec.oci.iter().flat_map(|oci| &oci.mounts);
        let wanted: Vec<&Mount> = mounts.filter(|mount| mount.kind == payload::HOST_SOCKET).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        if wanted.len() > SOCKETS_MAX {
            return Err(Error::failed(format!("limit of {SOCKETS_MAX} sockets of the host reached")));
        }
        match rustix::fs::mkdir(paths::SOCKETS, Mode::RWXU) {
            Err(Errno::EXIST) => {
                let text = "sockets of the host belong to another container of the machine";
                return Err(Error::new(ErrorCode::Exists, text));
            }
            made => made.step("create", paths::SOCKETS)?,
        }
        let listeners = wanted.iter().map(|mount| sockets::listen(mount)).collect::<Result<Vec<_>, _>>()?;
        self.sockets = Some(match self.take_gateway() {
            Some(gateway) => sockets::carry_with(listeners, gateway)?,
            None => sockets::carry(listeners, ports::open_sockets()?)?,
        });
        Ok(())
    }

    fn take_gateway(&mut self) -> Option<Gateway> {
        let gateway = self.gateway.take()?;
        // The process that carries keeps the open files, and so their events.
        for fd in gateway.fds() {
            let _ = epoll::delete(&self.epoll, fd);
        }
        Some(gateway)
    }
}
