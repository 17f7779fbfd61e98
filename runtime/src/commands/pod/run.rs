//! `vmm pod run`: the process of a pod.

use std::cell::Cell;
use std::fs::File;
use std::io::{PipeWriter, Read, pipe};
use std::path::Path;
use std::rc::Rc;

use agent_proto::command::Protocol;
use anyhow::{Context, Result};
use host::cgroup::Cgroup;
use host::signals::Signals;
use host::{environment, sys};

use super::print;
use crate::assembly::Assembly;
use crate::cli::RunArgs;
use crate::cli::pod::PodRunArgs;
use crate::commands::inherited;
use crate::config::RunConfig;
use crate::exit::{self, CodedError};
use crate::pod::output::Outputs;
use crate::pod::plan::{ContainerSpec, PodPlan};
use crate::pod::podfile;
use crate::pod::supervisor::{Registration, Started, Supervised, Supervisor};
use crate::report;
use crate::state::{StateDir, StateRoot};

/// A pod that is about to run.
struct Start {
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
    let (pod, containers) = PodPlan::new(file, base, &new_id()?, &config)?;
    let state = root.create(&pod.id)?;
    let start = Start { config, pod, containers, state };
    if args.detach { detach(start, args.rm) } else { foreground(start) }
}

fn foreground(start: Start) -> Result<u8> {
    let state = start.state.clone();
    let outputs = Outputs::foreground().context("open stdout and stderr");
    let ended = outputs.and_then(|outputs| live(start, outputs, Box::new(|| Ok(()))));
    let removed = state.remove();
    let code = ended?;
    removed?;
    Ok(code)
}

/// Continues in a new background process. This process waits for the report of the start.
fn detach(start: Start, remove: bool) -> Result<u8> {
    let state = start.state.clone();
    let forked = state.own_log().context("start a background process").and_then(|log| {
        let (reader, writer) = pipe().context("create a pipe")?;
        let own = sys::fork_detached(Some(&log)).context("fork the pod's process")?;
        Ok((own, reader, writer))
    });
    match forked {
        Ok((0, reader, writer)) => {
            drop(reader);
            background(start, writer, remove)
        }
        Ok((_, reader, writer)) => {
            drop(writer);
            let silent = "its process ended before the pod had started; see vmm.log in its directory";
            if let Err(error) = report::wait(reader, silent) {
                // The report's text is complete; other errors get the pod's name.
                let own = error.is::<CodedError>();
                return Err(if own { error } else { error.context(format!("start pod {:?}", state.id)) });
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
fn background(start: Start, writer: PipeWriter, remove: bool) -> Result<u8> {
    let state = start.state.clone();
    let writer = Rc::new(Cell::new(Some(writer)));
    let told = writer.clone();
    let started = move || {
        report(told.take(), 0, "");
        Ok(())
    };
    let result = live(start, Outputs::default(), Box::new(started));
    let unstarted = writer.take();
    if remove || unstarted.is_some() {
        state.remove()?;
    }
    if let Err(error) = &result {
        let (code, message) = exit::of_error(error);
        report(unstarted, code, &message);
    }
    result
}

fn report(writer: Option<PipeWriter>, code: u8, message: &str) {
    // There is no other place to report an error of this write.
    let _ = writer.map(|writer| report::send(writer, code, message));
}

/// Runs the pod from the machine's start to the end of its last container.
fn live(start: Start, outputs: Outputs, started: Started) -> Result<u8> {
    let Start { config, mut pod, containers, state } = start;
    // A client may pass the terminal in which the pod was started and whose background process the pod is.
    sys::leave_terminal();
    environment::seclude()?;
    // Before the first thread starts, so that every thread blocks these signals.
    let signals = Signals::block().context("block signals")?;
    let assembly = Assembly::begin()?;
    let registration = Registration { listener: state.listen()?, directory: state };
    let machine = assembly.finish(&config, &mut pod.machine, None, config.agent_timeout)?;
    let supervised = Supervised {
        session: machine.session,
        signals,
        pod,
        containers,
        registration: Some(registration),
        outputs,
        own: None,
        cgroup: Cgroup::default(),
        network: machine.network,
        timeline: None,
    };
    Supervisor::start(supervised, started)?.run()
}

/// Returns a name that no other pod has.
fn new_id() -> Result<String> {
    let mut bytes = [0; 6];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("read /dev/urandom")?;
    Ok(bytes.iter().fold("pod-".to_owned(), |id, byte| id + &format!("{byte:02x}")))
}
