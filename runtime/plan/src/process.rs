//! Translates config.json's process object to the agent's payload, for init and exec processes.

use agent_proto::payload::{self, Env, OciProcess};
use oci::bundle::Bundle;
use oci::error::{Result, invalid};
use oci::spec::{self, ConsoleSize};

use crate::rlimits::{RLIMITS, add_limits};
use crate::{capabilities, scheduling, seccomp};

/// Name of the init process in the protocol.
pub const INIT_PROCESS: &str = "init";

/// Translates a bundle's init process, with the fields of `linux` that apply to every process of the container.
/// `inherited` are the limits for kinds that the process does not name.
pub fn init(
    bundle: &Bundle,
    terminal: Option<ConsoleSize>,
    inherited: &[payload::Rlimit],
) -> Result<payload::Process> {
    let linux = &bundle.spec.linux;
    let mut process = process(&bundle.process, terminal)?;
    add_limits(&mut process.rlimits, inherited);
    let oci = process.oci.get_or_insert_default();
    oci.personality = linux.personality.as_ref().map(scheduling::personality).transpose()?;
    oci.seccomp =
        linux.seccomp.as_ref().filter(|it| seccomp::is_filter(it)).map(seccomp::compile).transpose()?;
    Ok(process)
}

/// Returns additional groups, each once: Linux would list one twice.
fn groups(ids: &[u32]) -> Vec<String> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    ids.iter().map(u32::to_string).collect()
}

/// Translates one process object, without stream numbers and inherited limits.
pub fn process(from: &spec::Process, terminal: Option<ConsoleSize>) -> Result<payload::Process> {
    // As with runc, the size of `vmm`'s terminal overrides the size in config.json.
    let size = terminal.or(from.console_size).filter(|_| from.terminal).unwrap_or_default();
    Ok(payload::Process {
        id: INIT_PROCESS.to_owned(),
        user: from.user.uid.to_string(),
        group: from.user.gid.to_string(),
        additional_groups: groups(&from.user.additional_gids),
        terminal: from.terminal,
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
        ..payload::Process::default()
    })
}

/// Translates an exec process of the container whose init process is `init`. It inherits the settings for all
/// processes, and limits of kinds that it does not name.
pub fn exec(from: &spec::Process, init: &payload::Process, name: &str) -> Result<payload::Process> {
    let mut process = process(from, None)?;
    name.clone_into(&mut process.id);
    add_limits(&mut process.rlimits, &init.rlimits);
    if let (Some(oci), Some(of_all)) = (&mut process.oci, &init.oci) {
        (oci.seccomp, oci.personality) = (of_all.seccomp.clone(), of_all.personality);
    }
    Ok(process)
}

/// Returns warnings about capabilities that the process does not get, in runc's words, which engines parse.
pub fn notices(from: &spec::Process) -> Vec<String> {
    let Some(sets) = &from.capabilities else { return Vec::new() };
    let unknown = capabilities::unknown(sets);
    let unknown = (!unknown.is_empty())
        .then(|| format!("ignoring unknown or unavailable capabilities: [{}]", unknown.join(" ")));
    let not_raised = capabilities::not_raised(sets);
    let refused = not_raised
        .into_iter()
        .map(|name| format!("can't raise ambient capability {name}: not both permitted and inheritable"));
    unknown.into_iter().chain(refused).collect()
}

/// Returns the environment. Of duplicate variables the last value counts, as with runc.
pub fn environment(variables: &[String]) -> Vec<Env> {
    let mut envs: Vec<Env> = Vec::new();
    for (name, value) in variables.iter().filter_map(|variable| variable.split_once('=')) {
        match envs.iter_mut().find(|known| known.env == name) {
            Some(known) => value.clone_into(&mut known.value),
            None => envs.push(Env { env: name.to_owned(), value: value.to_owned() }),
        }
    }
    envs
}

fn rlimits(from: &spec::Process) -> Result<Vec<payload::Rlimit>> {
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
