//! `vmm pod run`: the process of a pod.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use agent_proto::command::Protocol;
use anyhow::{Context, Result};
use host::confine::{self, Role};
use host::signals::Signals;
use host::{environment, sys};

use crate::assembly::{self, Assembled, Assembly};
use crate::cli::RunArgs;
use crate::cli::pod::PodRunArgs;
use crate::commands::{inherited, own_users, print};
use crate::config::RunConfig;
use crate::exit::{self, CodedError};
use crate::logging;
use crate::pod::output::PodOutput;
use crate::pod::plan::{ContainerSpec, PodPlan};
use crate::pod::podfile;
use crate::pod::supervisor::{Started, Supervisor};
use crate::report::{self, Forked, Reporter};
use crate::state::{StateDir, StateRoot};
use crate::template::{Wanted, maker};

/// A pod that is about to run.
struct PlannedPod {
    config: RunConfig,
    pod: PodPlan,
    containers: Vec<ContainerSpec>,
    state: StateDir,
}

/// Runs a podfile. Returns the pod's exit code, or in the background 0 once every container runs.
pub fn run(root: &StateRoot, args: PodRunArgs) -> Result<u8> {
    let settings = RunArgs { bundle: Some(".".into()), settings: args.settings, ..RunArgs::default() };
    let mut config = RunConfig::resolve(settings, |name| std::env::var_os(name))?;
    config.vm.inherited = inherited()?;
    if config.marks.is_some() {
        anyhow::bail!("--marks: not supported for a pod: the timeline covers the boot of one container");
    }
    if config.vm.protocol == Protocol::Api4244 {
        anyhow::bail!("--agent api-4244: not supported for a pod: it needs the extended protocol");
    }
    let file = podfile::read(&args.podfile)?;
    let path = args.podfile.canonicalize().with_context(|| format!("open {}", args.podfile.display()))?;
    let base = path.parent().unwrap_or(Path::new("/"));
    let (mut pod, containers) = PodPlan::new(file, base, &new_id()?, &config)?;
    pod.machine.fill(assembly::host());
    let state = root.create(&pod.id)?;
    let planned = PlannedPod { config, pod, containers, state };
    if args.detach { detach(planned, args.rm) } else { foreground(planned) }
}

fn foreground(planned: PlannedPod) -> Result<u8> {
    let state = planned.state.clone();
    let outputs = PodOutput::foreground().context("open stdout and stderr");
    let ended = outputs.and_then(|outputs| live(planned, outputs, None));
    let removed = state.remove();
    let code = ended?;
    removed?;
    Ok(code)
}

/// Continues in a new background process. This process waits for the report of the start.
fn detach(planned: PlannedPod, remove: bool) -> Result<u8> {
    let (state, config) = (planned.state.clone(), planned.config.clone());
    let log = state.own_log().context("start a background process");
    match log.and_then(|log| report::fork("fork the pod's process", Some(&log))) {
        Ok(Forked::Child(reporter)) => background(planned, &reporter, remove),
        Ok(Forked::Parent(_, reader)) => {
            let silent = "its process ended before the pod had started; see vmm.log in its directory";
            match report::wait(reader, silent) {
                Ok(said) => {
                    Wanted::reported(&said).into_iter().for_each(|wanted| maker::launch(&config, wanted))
                }
                Err(error) => {
                    // The report's text is complete; other errors get the pod's name.
                    let own = error.is::<CodedError>();
                    return Err(if own { error } else { error.context(format!("start pod {:?}", state.id)) });
                }
            }
            print(&format!("{}\n", state.id)).map(|()| 0)
        }
        Err(error) => {
            state.remove()?;
            Err(error)
        }
    }
}

/// Runs the pod in the background. The parent process gets the start's result; later failures go to the pod's own log.
fn background(planned: PlannedPod, reporter: &Reporter, remove: bool) -> Result<u8> {
    let state = planned.state.clone();
    let parent = reporter.clone();
    // There is no other place to report that the parent is gone.
    let started = move |wanted: Option<Wanted>| {
        let _ = parent.send(0, &Wanted::report(wanted.as_ref()));
        Ok(())
    };
    let result = live(planned, PodOutput::default(), Some(Box::new(started)));
    if remove || !reporter.has_sent() {
        state.remove()?;
    }
    if let Err(error) = &result {
        let (code, message) = exit::of_error(error);
        let _ = reporter.send(code, &message);
    }
    result
}

/// Runs the pod from the machine's start to the end of its last container. `started` is that of a pod in the background.
fn live(planned: PlannedPod, outputs: PodOutput, started: Option<Started>) -> Result<u8> {
    let PlannedPod { config, mut pod, containers, state } = planned;
    // A client may pass the terminal in which the pod was started and whose background process the pod is.
    sys::leave_terminal();
    own_users::enter(None)?;
    environment::seclude()?;
    confine::prepare(logging::forbidden).context("prepare the confinement")?;
    // Before the first thread starts, so that every thread blocks these signals.
    let signals = Signals::block().context("block signals")?;
    let assembly = Assembly::begin()?;
    let listener = state.listen()?;
    let assembled = assembly.finish(&config, &mut pod.machine, None, config.agent_timeout)?;
    let Assembled { session, network, mut wanted } = assembled;
    if started.is_none()
        && let Some(wanted) = wanted.take()
    {
        // In the foreground no other process starts it, and this one waits for no child.
        maker::launch(&config, wanted);
        sys::ignore_children();
    }
    let started = started.unwrap_or_else(|| Box::new(|_| Ok(())));
    let mut supervisor = Supervisor::new(session, signals, pod, network, started)?;
    supervisor.wanted = wanted;
    supervisor.register(state, listener);
    supervisor.role = Some(Role::Pod);
    (supervisor.outputs, supervisor.named) = (outputs, containers.len() != 1);
    containers.into_iter().try_for_each(|container| supervisor.add(container, None))?;
    supervisor.run()
}

/// Returns a name that no other pod has.
fn new_id() -> Result<String> {
    let mut bytes = [0; 6];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("read /dev/urandom")?;
    Ok(bytes.iter().fold("pod-".to_owned(), |id, byte| id + &format!("{byte:02x}")))
}
