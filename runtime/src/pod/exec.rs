//! An exec process in a container, for a client that waits for its exit.

use agent_proto::command::Code;
use agent_proto::payload::{self, ExecCommand};
use link::streams::StreamSpec;
use link::{CommandId, LinkError};
use oci::bundle::check_process;
use oci::json;

use super::container::StartError;
use super::plan::ContainerSpec;
use super::process::{Process, ProcessPhase};
use super::{ClientId, Guest};
use crate::control::ExecRequest;

#[derive(Debug)]
pub struct Exec {
    /// The client that waits for the exit; `None` if it is gone.
    pub client: Option<ClientId>,
    pub process: Process,
    /// The program's name, if the client expects runc's error texts.
    pub program: Option<String>,
}

impl Exec {
    /// Asks the agent to start `process` in `container`, with its `streams`: stdin and stdout, then stderr unless it
    /// has a terminal.
    pub fn start(
        guest: &mut Guest<'_>,
        client: ClientId,
        container: &str,
        mut process: payload::Process,
        streams: &[StreamSpec],
    ) -> Result<(Exec, CommandId), StartError> {
        let number = |index: usize| streams.get(index).map_or(0, |stream| stream.seq);
        (process.stdio, process.stderr) = (number(0), number(1));
        let opened = Process::open(guest, container, &process.id, process.terminal, streams)?;
        let command = ExecCommand { container: container.to_owned(), process };
        let command = guest.link.send(Code::ExecCmd, "exec", &command)?;
        Ok((Exec { client: Some(client), process: opened, program: None }, command))
    }

    /// Kills the process, because its client is gone.
    pub fn lose_client(&mut self, guest: &mut Guest<'_>) -> Result<(), LinkError> {
        self.client = None;
        self.process.signal(guest, libc::SIGKILL, false)
    }

    /// Whether it runs in container `name`, so that the agent must keep the container.
    pub fn keeps(&self, name: &str) -> bool {
        self.process.container == name && !matches!(self.process.phase, ProcessPhase::Draining(_))
    }

    /// Whether the process has exited, and its output was delivered or its client is gone.
    pub fn is_delivered(&self, guest: &Guest<'_>) -> bool {
        match self.process.phase {
            ProcessPhase::Draining(_) => self.client.is_none() || self.process.is_drained(guest),
            ProcessPhase::Starting | ProcessPhase::Running => false,
        }
    }
}

/// Converts a client's request to a process of the agent's protocol.
pub fn planned(
    container: &ContainerSpec,
    name: &str,
    request: &ExecRequest,
) -> Result<payload::Process, String> {
    let init = &container.plan.container.process;
    let given = match &request.process {
        Some(whole) => json::from_value(whole).map_err(|error| format!("parse its process: {error}"))?,
        None => request.changes.apply(&container.process),
    };
    let planned = check_process(&given).and_then(|()| plan::process::exec(&given, init, name));
    let mut process = planned.map_err(|error| error.to_string())?;
    process.terminal = request.terminal;
    if let Some((rows, columns)) = request.size {
        (process.rows, process.columns) = (rows, columns);
    }
    if !request.cgroup.is_empty() {
        process.oci.get_or_insert_default().cgroup.clone_from(&request.cgroup);
    }
    let same_user =
        request.process.is_none() && request.changes.uid.is_none() && request.changes.gid.is_none();
    if let Some((user, group)) = split_user(&request.user) {
        (process.user, process.group) = (user.to_owned(), group.to_owned());
        process.additional_groups.clear();
    } else if same_user {
        // A user of a podfile may be known only to the container's own /etc/passwd.
        (process.user, process.group) = (init.user.clone(), init.group.clone());
        let more = request.changes.additional_gids.iter().map(u32::to_string);
        let more = more.filter(|group| !init.additional_groups.contains(group));
        process.additional_groups = init.additional_groups.iter().cloned().chain(more).collect();
    }
    Ok(process)
}

fn split_user(text: &str) -> Option<(&str, &str)> {
    (!text.is_empty()).then(|| text.split_once(':').unwrap_or((text, "")))
}
