//! The process of a member: a container that joins the running machine of another one. It represents the member on the
//! host, as the process of an exec represents that: its standard streams, terminal, cgroup, hooks and exit code are the
//! member's.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use host::cgroup::kill_reporter::KillReporter;
use host::confine::{self, Paths, Role};
use host::signals::Signals;
use host::{environment, network, terminal};
use oci::error::unsupported;
use oci::program;
use plan::{ContainerPlan, VmPlan};
use serde_json::Value;

use super::home::Home;
use super::hook_points::run_first;
use super::life::Life;
use crate::commands::attached;
use crate::commands::request::{checked, connect, done};
use crate::control::{Connection, ControlError, JoinRequest, Request};
use crate::pod::supervisor::Started;
use crate::sandbox;
use crate::state::StateDir;
use crate::{exit, logging};

/// Status in a member's own file once it has joined. The machine's file has the status that other commands show.
const JOINED: &str = "joined";

/// Runs the member, from its environment on the host to its end. `created` is called when it has joined the machine.
/// Returns its exit code.
pub fn live(life: &mut Life, home: &Home, created: Started) -> Result<u8> {
    home.directory.id.clone_into(&mut life.state.joined);
    life.write_state()?;
    life.fork_kill_reporter()?;
    let plan = prepare(life, home)?;
    environment::seclude()?;
    confine::prepare(logging::forbidden).context("prepare the confinement")?;
    let mut kill_reporter = life.kill_reporter.take();
    // After the hooks, which would inherit blocked signals.
    let signals = Signals::block().context("block signals")?;
    let terminal = plan.container.process.terminal;
    let mut connection = join(life, home, plan)?;
    JOINED.clone_into(&mut life.state.status);
    life.write_state()?;
    confine::enter_main(Role::Main, &paths(life));
    created(None)?;
    let waited = attached::wait(&mut connection, &signals, terminal, &mut || {
        kill_reporter.iter_mut().for_each(KillReporter::report);
    });
    kill_reporter.iter_mut().for_each(KillReporter::settle);
    match waited {
        // The machine's process was killed, and with it the container.
        Err(error) if matches!(error.downcast_ref(), Some(ControlError::Ended)) => {
            Ok(exit::of_signal(libc::SIGKILL))
        }
        other => other,
    }
}

/// Returns the files that this process uses while it waits: if its caller is gone before the member is created, it deletes
/// what the member has on the host.
fn paths(life: &Life) -> Paths {
    let mut paths = life.files();
    paths.write.extend(life.directory.as_ref().map(StateDir::root));
    paths
}

/// Sets up the member's environment on the host, and runs the hooks that precede it. Returns its plan.
fn prepare(life: &mut Life, home: &Home) -> Result<ContainerPlan> {
    life.open_terminal()?;
    let (bundle, id) = (&life.bundle, life.config.id.clone());
    let vm = VmPlan::for_member(bundle, &id, &life.config.vm, home.machine())?;
    let plan = ContainerPlan::member(bundle, &id, &vm, terminal::size(), &home.joined)?;
    for notice in &plan.notices {
        log::warn!("{notice}");
    }
    if let Some(wanted) = &vm.cgroup {
        life.enter_cgroup(wanted, vm.memory_mib)?;
    }
    let in_namespace = match environment::enter_network(&life.bundle.spec.linux) {
        // An ordinary user's container is in a user namespace of its own. The guest's network is the other's anyway.
        Err(error) if home.joined.contains_key("network") && error.is_denied() => {
            log::debug!("{error}");
            false
        }
        entered => entered?,
    };
    run_first(&life.bundle.spec.hooks, &life.state, &life.environment)?;
    std::mem::take(&mut life.environment).forget();
    if in_namespace && !home.joined.contains_key("network") {
        refuse_interfaces()?;
    }
    program::check(&life.bundle)?;
    Ok(plan)
}

/// Refuses a network of its own that engine or hooks have set up: the interfaces of a machine are those of its first
/// container.
fn refuse_interfaces() -> Result<()> {
    match network::names_here()?.first() {
        None => Ok(()),
        Some(name) => {
            let why = format!(
                "interface {name}: a container that joins a virtual machine has the network of another container there, or none"
            );
            Err(unsupported("linux.namespaces", why).into())
        }
    }
}

/// Hands the member over to the machine's process: its plan, and descriptors of its streams and files. Returns the
/// connection that represents it.
fn join(life: &Life, home: &Home, plan: ContainerPlan) -> Result<Connection> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let streams = if plan.container.process.terminal { &streams[..2] } else { &streams[..] };
    let files = plan.binds.iter().map(sandbox::open_detached).collect::<sandbox::Result<Vec<_>>>()?;
    let fds: Vec<_> = streams.iter().copied().chain(files.iter().map(AsFd::as_fd)).collect();
    if fds.len() > host::sys::FDS_MAX {
        bail!("limit of {} mounts of a container that joins a virtual machine", host::sys::FDS_MAX - 4);
    }
    let ContainerPlan { container, binds, .. } = plan;
    let process = process_of(life)?;
    let request = Request::Join(Box::new(JoinRequest { container, binds, process }));
    let mut connection = connect(&home.directory)?;
    done(checked(connection.ask(&request, &fds)?)?)?;
    Ok(connection)
}

/// Reads `process` of config.json, which the bundle does not keep.
fn process_of(life: &Life) -> Result<Value> {
    let path = life.bundle.directory.join("config.json");
    let text = fs::read(&path).with_context(|| format!("read bundle {}", path.display()))?;
    let mut whole: BTreeMap<String, Value> =
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
    Ok(whole.remove("process").unwrap_or_default())
}

/// Waits until the machine has dropped a member whose process was killed, so that its files and its name are free.
pub fn wait_until_dropped(directory: &StateDir) {
    let dropped = || -> Result<()> {
        let container = directory.id.clone();
        done(connect(directory)?.ask(&Request::Remove { container, force: true }, &[])?)
    };
    // The machine may have dropped it, or may have ended.
    dropped().unwrap_or_else(|error| log::debug!("{error:#}"));
}
