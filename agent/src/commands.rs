//! Dispatch of the host's commands.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use agent_proto::command::{API_VERSION, Code, EXTENSION_VERSION};
use agent_proto::control::ControlFrame;
use agent_proto::payload::clock::ClockAdjustment;
use agent_proto::payload::{
    self, ContainerLimits, ContainerName, ErrorCode, ExecCommand, Extend, Interface, KillCommand, Resolver,
    Routes, SignalCommand, WindowSize,
};
use rustix::io::Errno;
use rustix::process::Signal;
use serde::Deserialize;

use crate::agent::{Agent, Setting};
use crate::container;
use crate::fault::{Fault, cause};
use crate::pod::Pod;
use crate::process::{self, Process};
use crate::sys::{self, Timex};
use crate::{clock, hotplug, network, resolver};

/// The reply to a command that was accepted.
enum Reply {
    /// ACK with data, immediately.
    Now(Vec<u8>),
    /// The reply follows when the command is complete.
    Later,
}

const DONE: Result<Reply, Fault> = Ok(Reply::Now(Vec::new()));

impl Agent {
    /// Executes a command. `first` is true for the first command of the link.
    pub(crate) fn command(&mut self, frame: ControlFrame, first: bool) {
        let ControlFrame { code, id, payload } = frame;
        match self.serve(code, id, &payload, first) {
            Ok(Reply::Now(data)) => self.control.reply(id, Ok(data), code),
            Ok(Reply::Later) => {}
            Err(fault) => self.control.reply(id, Err(fault), code),
        }
    }

    fn serve(&mut self, code: u32, id: u32, payload: &[u8], first: bool) -> Result<Reply, Fault> {
        let Some(code) = Code::from_u32(code) else {
            return Err(Fault::new(ErrorCode::Unsupported, format!("no such command: {code}")));
        };
        match code {
            Code::GetVersion => Ok(Reply::Now(API_VERSION.to_be_bytes().into())),
            Code::Ping => DONE,
            // From the host, READY is a request to look for new devices.
            Code::Ready => self.in_guest(|| {
                network::look_for_devices();
                Ok(())
            }),
            Code::Extend => self.extend(payload, first),
            Code::StartPod => self.start_pod(id, parse(code, payload)?),
            Code::NewContainer => self.new_container(id, &parse(code, payload)?),
            Code::ExecCmd => self.exec(id, &parse(code, payload)?),
            Code::KillContainer => self.kill_container(&parse(code, payload)?),
            Code::SignalProcess => self.signal_process(&parse(code, payload)?),
            Code::WinSize => self.resize(&parse(code, payload)?),
            Code::RemoveContainer => self.remove_container(&parse(code, payload)?),
            Code::Stats => self.usage(&name(code, payload)?).map(Reply::Now),
            Code::Processes => self.process_list(&name(code, payload)?).map(Reply::Now),
            Code::Pause | Code::Resume => {
                self.freeze(&name(code, payload)?, code == Code::Pause).map(Reply::Now)
            }
            Code::Update => self.update(&parse(code, payload)?),
            Code::DestroyPod => self.begin_destroy(id).map(|()| Reply::Later),
            Code::WriteFile => self.write_file(payload).and(DONE),
            Code::ReadFile => self.read_file(&parse(code, payload)?).map(Reply::Now),
            Code::OnlineCpuMem => self.in_guest(hotplug::begin),
            Code::SetupInterface => self.set_up_interface(&parse(code, payload)?),
            Code::SetupRoute => self.set_routes(&parse(code, payload)?),
            Code::DeleteInterface => self.delete_interface(&parse(code, payload)?),
            Code::Resolver => self.take_queries(&parse(code, payload)?),
            Code::ReadClock => Ok(Reply::Now(clock::read())),
            Code::AdjustClock => self.adjust_clock(&parse(code, payload)?),
            Code::GetPodDeprecated
            | Code::StopPodDeprecated
            | Code::RestartContainerDeprecated
            | Code::CmdFinishedDeprecated
            | Code::PodFinishedDeprecated => {
                Err(Fault::new(ErrorCode::Unsupported, format!("{code:?} is abandoned")))
            }
            Code::Ack | Code::Error | Code::Next | Code::ProcessAsyncEvent => {
                Err(Fault::bad_request(format!("{code:?} is no command")))
            }
        }
    }

    fn extend(&mut self, payload: &[u8], first: bool) -> Result<Reply, Fault> {
        // The form changes even if the reply is an error, because the host does not wait for the reply.
        self.control.extend(first);
        let wanted: Extend = parse(Code::Extend, payload)?;
        if !first {
            return Err(Fault::bad_request("Extend must be the first command"));
        }
        if wanted.extension != EXTENSION_VERSION {
            return Err(Fault::new(
                ErrorCode::Unsupported,
                format!("extension {} is not supported, {EXTENSION_VERSION} is", wanted.extension),
            ));
        }
        DONE
    }

    fn start_pod(&mut self, id: u32, spec: payload::Pod) -> Result<Reply, Fault> {
        if self.pod.is_some() {
            return Err(Fault::new(ErrorCode::Exists, "the pod has been started"));
        }
        let started = Pod::start(&spec, self.setting == Setting::Guest);
        match started.and_then(|pod| self.fill_pod(id, pod, spec.containers)) {
            Ok(true) => DONE,
            Ok(false) => Ok(Reply::Later),
            Err(fault) => Err(self.pod_failed(fault)),
        }
    }

    /// Handles a pod that could not start. With API 4244 the machine then powers off; in the extended form the host decides.
    pub(crate) fn pod_failed(&mut self, fault: Fault) -> Fault {
        self.power_off = !self.control.is_extended();
        fault
    }

    fn set_up_interface(&self, wanted: &Interface) -> Result<Reply, Fault> {
        network::check(wanted)?;
        self.in_guest(|| network::set_up(wanted))
    }

    fn set_routes(&self, wanted: &Routes) -> Result<Reply, Fault> {
        wanted.routes.iter().try_for_each(|route| network::check_route(route).map(drop))?;
        self.in_guest(|| network::each(&wanted.routes, network::set_route))
    }

    fn delete_interface(&self, unwanted: &Interface) -> Result<Reply, Fault> {
        network::check(unwanted)?;
        self.in_guest(|| network::delete(unwanted))
    }

    fn take_queries(&self, wanted: &Resolver) -> Result<Reply, Fault> {
        let address = resolver::parse(&wanted.address)?;
        self.in_guest(|| resolver::start(address))
    }

    fn adjust_clock(&self, wanted: &ClockAdjustment) -> Result<Reply, Fault> {
        let set: fn(&Timex) -> rustix::io::Result<()> =
            if self.setting == Setting::Guest { sys::adjust_clock } else { |_| Ok(()) };
        clock::adjust(wanted, set).map(Reply::Now)
    }

    /// Executes a change of the machine, except in tests, where it would change the host.
    fn in_guest(&self, change: impl FnOnce() -> Result<(), Fault>) -> Result<Reply, Fault> {
        if self.setting == Setting::Guest {
            change()?;
        }
        DONE
    }

    fn kill_container(&mut self, command: &KillCommand) -> Result<Reply, Fault> {
        let container = self.container(&command.container)?;
        let signal = process::signal(command.signal)?;
        let init = container.init.and_then(|key| self.processes.get(&key));
        if command.all_processes && self.setting == Setting::Guest {
            return sent(container.signal_all(signal));
        }
        if command.all_processes {
            let own = self.processes.values().filter(|process| process.container == command.container);
            own.for_each(|process| _ = process.signal(signal));
            return DONE;
        }
        sent(init.map_or(Err(Errno::SRCH), |init| init.signal(signal)))
    }

    fn signal_process(&mut self, command: &SignalCommand) -> Result<Reply, Fault> {
        let signal: Signal = process::signal(command.signal)?;
        sent(self.process(&command.container, &command.process)?.signal_group(signal))
    }

    fn update(&self, command: &ContainerLimits) -> Result<Reply, Fault> {
        self.container(&command.container)?.limit(&command.cgroup)?;
        DONE
    }

    fn resize(&mut self, command: &WindowSize) -> Result<Reply, Fault> {
        self.process(&command.container, &command.process)?.resize(command.row, command.column)?;
        DONE
    }

    fn exec(&mut self, id: u32, command: &ExecCommand) -> Result<Reply, Fault> {
        container::check_process(&command.process)?;
        self.start_exec(id, command)?;
        Ok(Reply::Later)
    }

    fn new_container(&mut self, id: u32, spec: &payload::Container) -> Result<Reply, Fault> {
        self.start_container((id, Code::NewContainer), spec)?;
        Ok(Reply::Later)
    }

    fn remove_container(&mut self, command: &ContainerName) -> Result<Reply, Fault> {
        self.container(&command.container)?;
        if self.is_running(&command.container) {
            return Err(Fault::failed(format!("container {} is running", command.container)));
        }
        self.containers.retain(|container| container.id != command.container);
        DONE
    }

    /// Whether a process of container `id` runs.
    pub(crate) fn is_running(&self, id: &str) -> bool {
        self.processes.values().any(|process| process.container == id && process.pidfd.is_some())
    }

    pub(crate) fn container(&self, id: &str) -> Result<&container::Container, Fault> {
        let found = self.containers.iter().find(|container| container.id == id);
        found.ok_or_else(|| Fault::not_found("container", id))
    }

    fn process(&mut self, container: &str, id: &str) -> Result<&mut Process, Fault> {
        let found = self
            .processes
            .values_mut()
            .find(|process| process.container == container && process.id == id && !process.failed);
        found.ok_or_else(|| {
            let name: String = format!("{id} of container {container}");
            Fault::not_found("process", &name)
        })
    }
}

/// Returns the reply to a signal command, with API 4244's error texts.
fn sent(result: Result<(), Errno>) -> Result<Reply, Fault> {
    match result {
        Ok(()) => DONE,
        Err(Errno::SRCH) => Err(Fault::new(ErrorCode::NotFound, "no such process")),
        Err(Errno::PERM) => Err(Fault::failed("no permission")),
        Err(Errno::INVAL) => Err(Fault::bad_request("invalid signal")),
        Err(errno) => Err(Fault::failed(format!("kill failed: {}", cause(errno)))),
    }
}

fn name(code: Code, payload: &[u8]) -> Result<String, Fault> {
    parse(code, payload).map(|name: ContainerName| name.container)
}

fn parse<'a, T: Deserialize<'a>>(code: Code, payload: &'a [u8]) -> Result<T, Fault> {
    serde_json::from_slice(payload).map_err(|error| Fault::bad_request(format!("{code:?}: {error}")))
}
