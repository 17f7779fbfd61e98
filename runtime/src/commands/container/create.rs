//! `vmm create`: makes the process that is the container, and returns once that waits for its start.

use std::cell::Cell;
use std::fs;
use std::io::{PipeWriter, pipe};
use std::os::fd::{AsFd, IntoRawFd};
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use agent_proto::command::Protocol;
use anyhow::{Context, Result, bail};
use host::cgroup::Cgroup;
use host::hooks::Environment;
use host::network::Network;
use host::signals::Signals;
use host::{environment, sys, terminal};
use link::streams::streams;
use oci::bundle::Bundle;
use oci::spec::Spec;
use oci::{program, refusals};
use plan::{ContainerPlan, VmPlan, limits};
use vmm::PendingVm;

use super::{check_console, end, finish, refuse_descriptors, run_first, run_last, take_away, write_pid};
use crate::cli::{EngineArgs, RunArgs};
use crate::config::RunConfig;
use crate::image::Images;
use crate::network::{self, LiveNetwork};
use crate::pod::output::Outputs;
use crate::pod::plan::{ContainerSpec, PodPlan};
use crate::pod::supervisor::{self, Started, Supervisor};
use crate::sandbox::{Parts, Sandbox};
use crate::session::Session;
use crate::state::{OciState, PodState, StateDir, StateRoot};
use crate::{console, deadlines, exit, logging, report};

/// What is said where the container's process could say nothing.
const SILENT: &str = "the container's process ended before the container was created";

/// A container that is about to be made.
struct Start {
    root: StateRoot,
    config: RunConfig,
    bundle: Bundle,
    console_socket: Option<PathBuf>,
}

/// Makes a container; returns 0 once it is there, and in its own process its exit code at its end.
pub fn create(root: &StateRoot, args: RunArgs) -> Result<u8> {
    let engine = args.engine;
    let args = RunArgs { engine: EngineArgs::default(), ..args };
    refuse_descriptors(engine.preserve_fds)?;
    let mut config = RunConfig::resolve(args, |name| std::env::var_os(name))?;
    config.bundle = std::path::absolute(&config.bundle)
        .with_context(|| format!("open bundle {}", config.bundle.display()))?;
    if config.marks.is_some() {
        bail!("--marks: the timeline is of a container's boot in the foreground");
    }
    if config.vm.protocol == Protocol::Api4244 {
        bail!("--agent api-4244: a container in the background is asked about by the extension");
    }
    config.vm.systemd_cgroup = engine.systemd_cgroup;
    let mut bundle = Bundle::load(&config.bundle)?;
    refusals::check_engine(&bundle.spec)?;
    lend_host_name(&mut bundle.spec)?;
    check_console(bundle.process.terminal, engine.console_socket.as_deref(), true)?;
    let start = Start { root: root.clone(), config, bundle, console_socket: engine.console_socket };
    make(start, engine.pid_file.as_deref())
}

/// Without a UTS namespace of its own a container has the host's name: a guest has it as it is now.
fn lend_host_name(spec: &mut Spec) -> Result<()> {
    let own = spec.linux.namespaces.iter().any(|namespace| namespace.kind == "uts");
    if !own && spec.hostname.is_empty() {
        let name = fs::read_to_string("/proc/sys/kernel/hostname").context("read the host's name")?;
        name.trim_end().clone_into(&mut spec.hostname);
    }
    Ok(())
}

/// Takes away what the process `pid` has left of a container that could not be made: what its first hooks did has its end,
/// too. Another container of that name is none of its.
fn clear(start: &Start, pid: u32) -> Result<()> {
    let Some(directory) = start.root.claimed_by(&start.config.id, pid) else { return Ok(()) };
    end(&directory)?;
    let state = directory.read()?;
    take_away(&directory, &state)?;
    run_last(&start.bundle.spec.hooks.poststop, &state.stopped(), &Environment::own());
    Ok(())
}

/// Has a process of its own make the container, from its directory on: if this one is killed, that one notices.
fn make(start: Start, pid_file: Option<&Path>) -> Result<u8> {
    let (reader, writer) = pipe().context("make a pipe")?;
    match sys::fork_detached(None).context("make the container's process")? {
        0 => {
            drop(reader);
            Ok(container(start, writer))
        }
        pid => {
            drop(writer);
            let made = report::wait(reader, SILENT)
                .and_then(|()| pid_file.map_or(Ok(()), |path| write_pid(path, pid)));
            if made.is_err() {
                // It is our child: its number is nobody else's. What it has said may not have been its end.
                let ended = sys::process(pid)
                    .and_then(|process| sys::kill_and_wait(process.as_fd(), deadlines::GONE));
                ended.unwrap_or_else(|error| log::warn!("kill process {pid}: {error}"));
                clear(&start, pid).unwrap_or_else(|error| log::warn!("{error:#}"));
            }
            made.map(|()| 0)
        }
    }
}

/// The container's process. Until it has said that the container is there, whoever waits for that says what is wrong.
fn container(start: Start, writer: PipeWriter) -> u8 {
    let (directory, held) = match start.root.claim(&start.config.id) {
        Ok(claimed) => claimed,
        Err(error) => {
            let (code, message) = exit::of_error(&error.into());
            // There is nothing to take away, whether anybody hears it or not.
            let _ = report::send(writer, exit::OCI_FAILED, &message);
            return code;
        }
    };
    // Whoever waits for the lock waits for this process's end, not for this function's: nobody closes it but the kernel.
    let _ = held.into_raw_fd();
    // This process forgets its own before it has a machine.
    let environment = Environment::kept_for(&start.bundle.spec.hooks.poststop);
    let writer = Rc::new(Cell::new(Some(writer)));
    let told = writer.clone();
    let created = move || match told.take().map(|writer| report::send(writer, 0, "")) {
        Some(Err(_)) => Err(Forgotten.into()),
        _ => Ok(()),
    };
    let error = match live(start, directory.clone(), Box::new(created)) {
        Ok(code) => return code,
        Err(error) => error,
    };
    let (code, message) = exit::of_error(&error);
    match writer.take().map(|writer| report::send(writer, exit::OCI_FAILED, &message)) {
        Some(Ok(())) => {}
        Some(Err(_)) => abandon(&directory, &environment),
        None if error.is::<Forgotten>() => abandon(&directory, &environment),
        None => logging::failed(&message),
    }
    code
}

/// Whoever had the container made is gone before it was.
#[derive(Debug, thiserror::Error)]
#[error("nobody waits for the container any more")]
struct Forgotten;

/// Takes away what this process, a container's, has made so far: whoever wanted the container is gone, and an engine whose
/// creation is cut short may not come to delete it. One that does ends this process first; what is still there is written
/// down.
fn abandon(directory: &StateDir, environment: &Environment) {
    // Not from within its own cgroup: in that of whoever is to reap it.
    let left = Cgroup::of_process(parent_id()).and_then(|cgroup| cgroup.join()).context("leave the cgroup");
    let taken = left.and_then(|()| finish(directory, directory.read()?, environment));
    taken.unwrap_or_else(|error| log::warn!("{error:#}"));
}

/// The container's life, from what it has of the host to its end.
fn live(start: Start, state: StateDir, created: Started) -> Result<u8> {
    let Start { config, bundle, console_socket, .. } = start;
    let oci = oci_state(&config, &bundle);
    let mut creating = PodState {
        id: config.id.clone(),
        status: "creating".to_owned(),
        pid: std::process::id(),
        oci: Some(oci.clone()),
        ..PodState::default()
    };
    state.write(&creating)?;
    if let Some(socket) = &console_socket {
        environment::open_terminal(socket, bundle.process.console_size)?;
    }
    let mut vm = VmPlan::for_bundle(&bundle, &config.id, &config.vm)?;
    let container = ContainerPlan::new(&bundle, &config.id, &vm, terminal::size())?;
    if let Some(wanted) = &vm.cgroup {
        // Known before it is there, so that whoever clears up after us finds it; systemd's directories are known after.
        creating.cgroup = Cgroup::choose(wanted)?;
        state.write(&creating)?;
        creating.cgroup.make(wanted, vm.memory_mib)?;
        state.write(&creating)?;
        creating.cgroup.limit(&wanted.resources, vm.memory_mib)?;
        creating.cgroup.join()?;
    }
    let entered = environment::enter_network(&bundle.spec.linux)?;
    // Before the signals are blocked, which a hook would inherit, and before there is a machine: what hooks do to
    // the network namespace is there when its devices are made.
    run_first(&bundle.spec.hooks, &creating)?;
    program::check(&bundle)?;

    environment::seclude()?;
    let signals = Signals::block().context("block signals")?;
    let pending = PendingVm::start().map_err(vmm::Error::from)?;
    // It lasts longer than the machine.
    let mut network = if entered { Network::followed()? } else { Network::default() };
    network::describe(&network, &mut vm);
    let (resolver, names) = match entered {
        true => network::serve_names(&mut vm, &bundle.spec).context("serve name queries")?,
        false => (None, None),
    };
    let pod = PodPlan::of_one(&config.id, vm);
    let listener = state.listen()?;
    let images = Images::find(config.kernel.as_deref(), config.initrd.as_deref())?;
    let outputs =
        console::Outputs::open(config.vm.console.as_ref(), None).context("open the console's copy")?;
    let streams = streams(&[], None).context("make the streams")?;
    let (spare_nics, nics) = (network.spare_nics(), std::mem::take(&mut network.nics));
    let parts = Parts { pending, images, outputs, streams, nics, spare_nics, resolver, timeline: None };
    let sandbox = Sandbox::start(&pod.machine, &[], parts)?;
    let patience = limits::patience(&bundle.spec.linux.resources.cpu, config.agent_timeout);
    let session = Session::new(sandbox, patience);
    let (containers, outputs) = (vec![ContainerSpec::unattended(container)], Outputs::default());
    let parts = supervisor::Parts {
        session,
        signals,
        pod,
        containers,
        state,
        listener,
        outputs,
        oci: Some(oci),
        cgroup: creating.cgroup,
        network: LiveNetwork::new(network, names),
    };
    Supervisor::start(parts, created)?.run()
}

fn oci_state(config: &RunConfig, bundle: &Bundle) -> OciState {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    OciState {
        bundle: config.bundle.clone(),
        rootfs: bundle.rootfs.clone(),
        created: logging::timestamp_exact(now),
        owner: sys::effective_user(),
        network: bundle.network().map(Path::to_owned),
        annotations: bundle.spec.annotations.clone(),
    }
}
