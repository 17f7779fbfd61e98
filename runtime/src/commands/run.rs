//! `vmm run`: a bundle in a machine of its own, from the first line to the container's exit code.

use std::sync::Arc;
use std::time::Instant;

use agent_proto::command::{Code, Protocol};
use anyhow::{Context, Result};
use host::cgroup::Entered;
use host::environment;
use host::network::Network;
use host::signals::Signals;
use host::terminal::{self, RawTerminal};
use link::streams::{StreamSpec, streams};
use oci::bundle::Bundle;
use oci::refusals;
use plan::{ContainerPlan, VmPlan, limits};
use vmm::{PendingVm, Timeline};

use crate::config::RunConfig;
use crate::console::{KernelMarks, Outputs};
use crate::foreground::{Foreground, STDERR_STREAM, STDIO_STREAM};
use crate::image::{self, Images};
use crate::marks::{GUEST_MARKS, Marks};
use crate::sandbox::{Parts, Sandbox};
use crate::session::Session;
use crate::{exit, network};

/// Runs the bundle; returns the exit code. `start` is when the process began.
pub fn run(config: &RunConfig, start: Instant) -> Result<u8> {
    let marks = BootMarks::new(config, start);
    environment::seclude()?;
    // Before the first thread, so that no other takes a signal that is ours.
    let signals = Signals::block().context("block signals")?;
    // KVM takes its time to make a machine; the bundle is read meanwhile.
    let pending = PendingVm::start().map_err(vmm::Error::from)?;

    let bundle = Bundle::load(&config.bundle)?;
    refusals::check_foreground(&bundle.spec)?;
    let mut vm = VmPlan::for_bundle(&bundle, &config.id, &config.vm)?;
    let mut plan = ContainerPlan::new(&bundle, &config.id, &vm, terminal::size())?;
    plan.notices.iter().for_each(|notice| log::warn!("{notice}"));
    let terminal = plan.container.process.terminal;
    plan.container.process.stdio = STDIO_STREAM;
    plan.container.process.stderr = if terminal { 0 } else { STDERR_STREAM };
    marks.mark("planned");
    // Left and removed when all is done, whatever comes of it.
    let _cgroup = vm.cgroup.as_ref().map(|wanted| Entered::enter(wanted, vm.memory_mib)).transpose()?;

    // Before the machine's threads, so that they are in the namespace, too. It lasts longer than the machine.
    let mut network = vm.network.as_deref().map(Network::join).transpose()?.unwrap_or_default();
    network::describe(&network, &mut vm);
    let nics = std::mem::take(&mut network.nics);
    let resolver = match vm.network {
        Some(_) => match network::serve_names(&mut vm, &bundle.spec).context("serve name queries")? {
            // What comes later is not looked at.
            (_, Some(_)) => None,
            (port, None) => port,
        },
        None => None,
    };
    let parts = Parts { nics, resolver, ..parts(config, &plan, pending, &marks)? };
    let mut sandbox = Sandbox::start(&vm, &plan.binds, parts)?;
    let pod = sandbox.link.send(Code::StartPod, "start the pod", &vm.pod)?;
    let container = sandbox.link.send(Code::NewContainer, "start the container", &plan.container)?;
    sandbox.link.flush()?;

    let patience = limits::patience(&bundle.spec.linux.resources.cpu, config.agent_timeout);
    let session = Session::new(sandbox, patience);
    let mut running = Foreground::new(session, &signals, &config.id, terminal);
    running.wait_ready()?;
    marks.mark("agent_ready");
    running.wait_reply("start the pod", pod)?;
    marks.mark("pod_started");
    running.wait_reply("start the container", container)?;
    marks.mark("container_started");
    running.session.sandbox.seal(&plan.binds)?;

    let terminal = if terminal { RawTerminal::of_stdin().context("make the terminal raw")? } else { None };
    running.started()?;
    let exit = running.wait_exit()?;
    marks.mark("exited");
    let exit = running.wait_end(exit)?;
    running.wait_output(&exit)?;
    drop(terminal);

    running.session.sandbox.expect_end();
    destroy(&mut running);
    marks.mark("pod_ended");
    let streams = written(&running.session.sandbox);
    running.session.sandbox.stop();
    marks.mark("vm_ended");
    marks.write(config)?;
    streams?;
    Ok(exit::of_exit(&exit))
}

/// What the sandbox is made from: the images, the streams over our own stdin, stdout and stderr, and the outputs.
fn parts(config: &RunConfig, plan: &ContainerPlan, pending: PendingVm, marks: &BootMarks) -> Result<Parts> {
    let images = Images::find(config.kernel.as_deref(), config.initrd.as_deref())?;
    let outputs =
        Outputs::open(config.vm.console.as_ref(), marks.kernel.clone()).context("open the console's copy")?;
    let stdio =
        StreamSpec { seq: STDIO_STREAM, source: Some(libc::STDIN_FILENO), sink: Some(libc::STDOUT_FILENO) };
    let stderr = StreamSpec { seq: STDERR_STREAM, source: None, sink: Some(libc::STDERR_FILENO) };
    let specs = if plan.container.process.terminal { &[stdio][..] } else { &[stdio, stderr][..] };
    let timeline = marks.timeline.clone();
    let first_output = timeline
        .clone()
        .map(|timeline| -> Box<dyn FnOnce() + Send> { Box::new(move || timeline.mark("first_output")) });
    let (table, handle) = streams(specs, first_output).context("open stdin, stdout and stderr")?;
    let table = if config.vm.protocol == Protocol::Api4244 { table.without_credit() } else { table };
    let streams = (table, handle);
    let (nics, spare_nics, resolver) = (Vec::new(), 0, None);
    Ok(Parts { pending, images, outputs, streams, nics, spare_nics, resolver, timeline })
}

/// Ends the pod. The container has ended and its output is out: what fails here is worth a line, not its exit code.
fn destroy(running: &mut Foreground<'_>) {
    let step = "end the pod";
    let mut end = || {
        let command = running.session.sandbox.link.send_bare(Code::DestroyPod, step)?;
        running.session.sandbox.link.flush()?;
        running.wait_reply(step, command)
    };
    match end() {
        Err(error) if !error.is_reset() => log::warn!("{error}"),
        _ => {}
    }
}

/// Fails where output could not be written, with the stream's name.
fn written(sandbox: &Sandbox) -> Result<()> {
    for (seq, name) in [(STDIO_STREAM, "stdout"), (STDERR_STREAM, "stderr")] {
        if let Some(error) = sandbox.streams.error(seq) {
            return Err(error).with_context(|| format!("write {name}"));
        }
    }
    Ok(())
}

/// The boot's marks, where somebody asked for them.
struct BootMarks {
    timeline: Option<Arc<Timeline>>,
    kernel: Option<KernelMarks>,
}

impl BootMarks {
    fn new(config: &RunConfig, start: Instant) -> BootMarks {
        let asked = config.marks.is_some();
        let timeline = asked.then(|| Arc::new(Timeline::starting(start).with_guest_marks(&GUEST_MARKS)));
        if let Some(timeline) = &timeline {
            timeline.at("start", start);
        }
        BootMarks { timeline, kernel: asked.then(KernelMarks::default) }
    }

    fn mark(&self, name: &'static str) {
        if let Some(timeline) = &self.timeline {
            timeline.mark(name);
        }
    }

    fn write(&self, config: &RunConfig) -> Result<()> {
        let (Some(to), Some(timeline)) = (&config.marks, &self.timeline) else { return Ok(()) };
        let kernel = self.kernel.as_ref().map(|marks| marks.lock().unwrap().clone()).unwrap_or_default();
        let marks = Marks { host: timeline.marks(), kernel };
        marks.write(to, std::io::stderr()).with_context(|| format!("write marks {}", to.display()))
    }
}

/// Says whether kernel and initramfs are inside the program, for `vmm --version`.
pub fn embedded() -> String {
    match image::Embedded::find() {
        Ok(found) => {
            let size = |part: &Option<vmm::Image>| {
                part.as_ref()
                    .map_or("not embedded".to_owned(), |image| format!("embedded, {} KiB", image.len >> 10))
            };
            format!("kernel: {}\nagent: {}", size(&found.kernel), size(&found.initramfs))
        }
        Err(error) => format!("kernel and agent: {error}"),
    }
}
