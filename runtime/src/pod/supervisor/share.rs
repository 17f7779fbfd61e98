//! New containers: their files are put into the share before the agent is asked to start them.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use host::sys;
use plan::ContainerPlan;
use plan::mounts::Content;

use super::Supervisor;
use crate::control::{JoinRequest, Reply};
use crate::exit;
use crate::pod::ClientId;
use crate::pod::container::Phase;
use crate::pod::containers::refused;
use crate::pod::log::LogFile;
use crate::pod::plan::ContainerSpec;
use crate::pod::podfile::UserContainer;
use crate::pod::refuse::CONTAINERS_MAX;

impl Supervisor {
    /// Adds a container that a client sent.
    pub(super) fn add_sent(
        &mut self,
        client: ClientId,
        base: &str,
        container: serde_json::Value,
    ) -> Option<Reply> {
        let added = serde_json::from_value::<UserContainer>(container)
            .context("parse the container")
            .and_then(|container| Ok(self.pod.container("container", &container, Path::new(base))?))
            .and_then(|plan| self.add(plan, Some(client)));
        added.err().map(|error| {
            let (_, message) = exit::of_error(&error);
            refused(message)
        })
    }

    /// Adds a container that `client` represents. `fds` are its standard streams and the files of its binds.
    pub(super) fn join(&mut self, client: ClientId, request: JoinRequest, fds: Vec<OwnedFd>) -> Reply {
        let joined = self.try_join(client, request, fds);
        joined.map_or_else(|error| refused(exit::of_error(&error).1), |()| Reply::Done)
    }

    fn try_join(&mut self, client: ClientId, request: JoinRequest, mut fds: Vec<OwnedFd>) -> Result<()> {
        let same = self.own_name() == self.pod.id;
        ensure!(same, "the container was restored under another id: others cannot join its machine");
        let JoinRequest { container, binds, process } = request;
        let streams = if container.process.terminal { 2 } else { 3 };
        ensure!(fds.len() == streams + binds.len(), "the descriptors of the container are missing");
        let files = fds.split_off(streams);
        let process = oci::json::from_value(&process).context("parse its process")?;
        let plan = ContainerPlan { container, binds, ..ContainerPlan::default() };
        let mut spec = ContainerSpec::unattended(plan, process);
        self.place(&mut spec)?;
        let sandbox = &self.session.sandbox;
        let mut shared = spec.plan.binds.iter().zip(files);
        if let Err(error) = shared.try_for_each(|(bind, file)| sandbox.bind_opened(bind, file, true)) {
            self.unshare(&spec.plan);
            return Err(error.into());
        }
        self.containers.add_member(spec, client, fds);
        Ok(())
    }

    /// Gives a new container its part of the share, if the pod has room for it.
    fn place(&mut self, spec: &mut ContainerSpec) -> Result<()> {
        if self.containers.find(spec.name()).is_some() {
            bail!("the pod has a container {:?}", spec.name());
        }
        if self.containers.all.len() >= CONTAINERS_MAX {
            bail!("limit of {CONTAINERS_MAX} containers reached");
        }
        self.shared += 1;
        spec.plan.place(self.shared);
        Ok(())
    }

    /// Shares a container's files and queues its start.
    pub fn add(&mut self, mut spec: ContainerSpec, adder: Option<ClientId>) -> Result<()> {
        self.place(&mut spec)?;
        for notice in &spec.plan.notices {
            log::warn!("container {:?}: {notice}", spec.name());
        }
        let log = match (self.limits, &spec.log_path) {
            (None, _) => None,
            (Some(limits), path) => {
                let own = || self.directory.as_ref().map(|directory| directory.log(spec.name()));
                let path = path.clone().or_else(own).context("find a directory for the log")?;
                Some(LogFile::open(&path, limits).with_context(|| format!("open log {}", path.display()))?)
            }
        };
        if self.pod.continued.is_some() {
            return self.continue_own(spec);
        }
        if let Err(error) = self.share(&spec.plan) {
            self.unshare(&spec.plan);
            return Err(error);
        }
        self.changed = true;
        match &self.own {
            Some(own) if own.foreground => self.containers.add_own(spec, Phase::Waiting(Instant::now())),
            Some(_) => self.containers.add_own(spec, Phase::Created),
            None => self.containers.add(spec, log, adder),
        }
        Ok(())
    }

    fn share(&self, plan: &ContainerPlan) -> Result<()> {
        let sandbox = &self.session.sandbox;
        plan.binds.iter().try_for_each(|bind| sandbox.bind(bind))?;
        for content in &plan.contents {
            let file = content_file(content).with_context(|| format!("create {}", content.path))?;
            sandbox.bind_file(&content.path, file.into())?;
        }
        Ok(())
    }

    pub(super) fn unshare(&self, plan: &ContainerPlan) {
        let contents = plan.contents.iter().map(|content| content.path.as_str());
        for path in plan.binds.iter().map(|bind| bind.path.as_str()).chain(contents) {
            // A path that was never shared needs no removal.
            if let Err(error) = self.session.sandbox.unbind(path) {
                log::debug!("{error}");
            }
        }
    }
}

/// Returns an anonymous file with the bytes of `content`.
fn content_file(content: &Content) -> io::Result<File> {
    let mut file = sys::memory_file(c"vmm-content")?;
    file.write_all(&content.bytes)?;
    file.set_permissions(Permissions::from_mode(content.mode))?;
    // Without privilege, all files belong to this user, as those of an image do.
    if content.owner != (0, 0) || sys::effective_user() == 0 {
        fchown(&file, Some(content.owner.0), Some(content.owner.1))?;
    }
    Ok(file)
}
