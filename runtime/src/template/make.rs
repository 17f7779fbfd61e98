//! Makes a template: boots a machine, waits until its agent is ready and its kernel idle, saves it, and tries it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent_proto::command::Code;
use agent_proto::payload::Pod;
use anyhow::{Context, Result, anyhow, bail};
use host::sys;
use link::{CommandId, LinkError};
use plan::VmPlan;
use vmm::VmEnd;

use super::store::{Draft, Found, Locked};
use super::trial::{self, Trial};
use crate::assembly::{Assembly, Blank};
use crate::config::RunConfig;
use crate::sandbox;

/// Length of the intervals in which the machine's CPU time is looked at.
const INTERVAL: Duration = Duration::from_millis(50);
/// The machine is idle if it uses less than this part of an interval.
const IDLE_SHARE: u32 = 20;
/// Maximum number of intervals. A guest that is never idle is saved while it works.
const INTERVALS_MAX: u32 = 40;

/// Returns the directory of the template for `plan`'s machine, and whether this call made it. One that is there and can be used
/// stays unless `anew`.
pub fn make(config: &RunConfig, plan: &VmPlan, anew: bool) -> Result<(PathBuf, bool)> {
    make_in(&config.templates.lock()?, config, plan, anew)
}

/// Like [`make`], but makes nothing and returns `None` while another process makes a template.
pub fn make_if_free(config: &RunConfig, plan: &VmPlan, anew: bool) -> Result<Option<(PathBuf, bool)>> {
    let locked = config.templates.try_lock()?;
    locked.map(|locked| make_in(&locked, config, plan, anew)).transpose()
}

fn make_in(locked: &Locked<'_>, config: &RunConfig, plan: &VmPlan, anew: bool) -> Result<(PathBuf, bool)> {
    let key = config.template_key(plan).map_err(|why| anyhow!("no template for such a machine: {why}"))?;
    if !anew && let Ok(Some(found)) = config.templates.find(&key) {
        return Ok((found.path, false));
    }
    let mut draft = locked.begin()?;
    let mut machine = Assembly::begin()?.blank(plan, None)?;
    await_ready(&mut machine, config.agent_timeout)?;
    settle()?;
    let label = key.text().as_bytes().to_vec();
    let snapshot = machine.vm.save(draft.memory(), label, Draft::seal).context("save the machine")?;
    draft.reopen()?;
    let memory = draft.memory().try_clone().context("duplicate a descriptor")?;
    let tried = Found { path: PathBuf::new(), snapshot, memory };
    let tried = try_out(plan, tried, &Trial::new(draft.path(), plan)?, config.agent_timeout);
    let mut snapshot = tried.context("continue from the new template")?;
    snapshot.gather(draft.memory());
    Ok((locked.finish(draft, &snapshot, &key)?, true))
}

/// Waits for the agent's READY.
fn await_ready(machine: &mut Blank, patience: Duration) -> Result<()> {
    machine.vm.release();
    let ready = |machine: &mut Blank| machine.link.ready().is_some();
    answered(machine, patience, ready, "wait for the agent")
}

/// Continues from the template with a pod of one container. Returns its state, with what that has used.
fn try_out(plan: &VmPlan, tried: Found, trial: &Trial, patience: Duration) -> Result<vmm::Snapshot> {
    let state = tried.snapshot.encode();
    let mut machine = Assembly::begin()?.blank(plan, Some(tried))?;
    trial.plan.binds.iter().try_for_each(|bind| sandbox::bind_again(&machine.share, bind))?;
    trial.open(&mut machine.streams)?;
    let pod = Pod { hostname: trial::HOST.to_owned(), ..plan.pod.clone() };
    machine.link.notify(Code::StartPod, "start a pod from the template", &pod)?;
    let step = "start a container from the template";
    let started = machine.link.send(Code::NewContainer, step, &trial.plan.container)?;
    machine.vm.release();
    match reply(&mut machine, started, patience, step)? {
        Ok(_) => {
            let exited = |machine: &mut Blank| machine.link.event().is_some();
            answered(&mut machine, patience, exited, "run a container from the template")?;
        }
        // The template is as good, but less is known of it.
        Err(error) => log::debug!("{error}"),
    }
    let last = machine.link.send_bare(Code::DestroyPod, "try the template")?;
    reply(&mut machine, last, patience, "try the template")??;
    let working_set = machine.vm.working_set().context("find the working set")?;
    machine.vm.stop();
    let mut snapshot = vmm::Snapshot::decode(&state)?;
    snapshot.working_set = working_set;
    Ok(snapshot)
}

/// Waits for the agent's reply to a command.
fn reply(
    machine: &mut Blank,
    command: CommandId,
    patience: Duration,
    step: &'static str,
) -> Result<Result<Vec<u8>, LinkError>> {
    let mut reply = None;
    let replied = |machine: &mut Blank| {
        reply = machine.link.reply(command);
        reply.is_some()
    };
    answered(machine, patience, replied, step)?;
    reply.context("the reply is missing")
}

fn answered(
    machine: &mut Blank,
    patience: Duration,
    mut done: impl FnMut(&mut Blank) -> bool,
    step: &'static str,
) -> Result<()> {
    let begin = Instant::now();
    while !done(machine) {
        turn(machine, patience, begin, step)?;
    }
    Ok(())
}

/// Waits for the agent and reads what it has sent.
fn turn(machine: &mut Blank, patience: Duration, begin: Instant, step: &'static str) -> Result<()> {
    let rest = patience.saturating_sub(begin.elapsed());
    if rest.is_zero() {
        bail!("{step}: no answer from the guest's agent for {} s", patience.as_secs());
    }
    machine.link.flush()?;
    let polled = [(machine.link.fd(), machine.link.interest()), (machine.vm.end_fd(), libc::POLLIN)];
    let [_, ended] = sys::poll(polled, Some(rest)).context("poll")?;
    machine.link.receive()?;
    if ended {
        let end = machine.vm.end().unwrap_or(VmEnd::Stopped);
        bail!("{step}: the virtual machine ended: {end:?}");
    }
    Ok(())
}

/// Waits until the machine uses hardly any CPU time: what the guest still does after the agent is ready, every pod would have to do
/// again. The guest waits as well, for shorter than an interval, before it does all that.
fn settle() -> Result<()> {
    let mut idle = 0;
    for _ in 0..INTERVALS_MAX {
        let before = sys::clock::cpu_time();
        sys::poll([], Some(INTERVAL)).context("poll")?;
        let is_idle = sys::clock::cpu_time().saturating_sub(before) < INTERVAL / IDLE_SHARE;
        idle = if is_idle { idle + 1 } else { 0 };
        if idle == 2 {
            break;
        }
    }
    Ok(())
}
