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
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::process::Signal;
use serde::Deserialize;

use crate::container;
use crate::destroy::Destroy;
use crate::error::{Error, cause};
use crate::pod::Pod;
use crate::process;
use crate::start::StartCommand;
use crate::state::{EventSource, Setting, State, watch};
use crate::sys::{self, Timex};
use crate::{clock, hotplug, network, resolver, revival};

/// The reply to a command that was accepted.
enum Reply {
    /// ACK with data, immediately.
    Now(Vec<u8>),
    /// The reply follows when the command is complete.
    Later,
}

const DONE: Result<Reply, Error> = Ok(Reply::Now(Vec::new()));

impl State {
    /// Executes a command. `first` is true for the first command of the link.
    pub(crate) fn command(&mut self, frame: ControlFrame, first: bool) {
        let ControlFrame { code, id, payload } = frame;
        match self.serve(code, id, &payload, first) {
            Ok(Reply::Now(data)) => self.control.reply(id, Ok(data), code),
            Ok(Reply::Later) => {}
            Err(error) => self.control.reply(id, Err(error), code),
        }
    }

    fn serve(&mut self, code: u32, id: u32, payload: &[u8], first: bool) -> Result<Reply, Error> {
        let Some(code) = Code::from_u32(code) else {
            return Err(Error::new(ErrorCode::Unsupported, format!("unknown command {code}")));
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
            Code::DestroyPod => self.destroy_pod(id),
            Code::WriteFile => self.write_file(payload).and(DONE),
            Code::ReadFile => self.read_file(&parse(code, payload)?).map(Reply::Now),
            Code::OnlineCpuMem => self.in_guest(hotplug::start),
            Code::SetupInterface => self.set_up_interface(&parse(code, payload)?),
            Code::SetupRoute => self.set_routes(&parse(code, payload)?),
            Code::DeleteInterface => self.delete_interface(&parse(code, payload)?),
            Code::Resolver => self.start_resolver(&parse(code, payload)?),
            Code::ReadClock => Ok(Reply::Now(clock::read())),
            Code::AdjustClock => self.adjust_clock(&parse(code, payload)?),
            Code::Revive => self.revive(payload),
            Code::Connect => self.connect(id, &parse(code, payload)?).map(|()| Reply::Later),
            Code::GetPodDeprecated
            | Code::StopPodDeprecated
            | Code::RestartContainerDeprecated
            | Code::CmdFinishedDeprecated
            | Code::PodFinishedDeprecated => {
                Err(Error::new(ErrorCode::Unsupported, format!("{code:?} is obsolete and not supported")))
            }
            Code::Ack | Code::Error | Code::Next | Code::ProcessAsyncEvent => {
                Err(Error::bad_request(format!("{code:?} is not a command")))
            }
        }
    }

    fn extend(&mut self, payload: &[u8], first: bool) -> Result<Reply, Error> {
        // The form changes even if the reply is an error, because the host does not wait for the reply.
        self.control.extend(first);
        let extend: Extend = parse(Code::Extend, payload)?;
        if !first {
            return Err(Error::bad_request("Extend must be the first command"));
        }
        if extend.extension != EXTENSION_VERSION {
            return Err(Error::new(
                ErrorCode::Unsupported,
                format!(
                    "extension version {}: only version {EXTENSION_VERSION} is supported",
                    extend.extension
                ),
            ));
        }
        DONE
    }

    fn start_pod(&mut self, id: u32, spec: payload::Pod) -> Result<Reply, Error> {
        if self.pod.is_some() {
            return Err(Error::new(ErrorCode::Exists, "the pod is already started"));
        }
        let isolated = self.setting == Setting::Guest;
        if isolated && spec.sockets {
            self.open_gateway()?;
        }
        let started = Pod::start(&spec, isolated);
        match started.and_then(|pod| self.start_containers(id, pod, spec.containers)) {
            Ok(true) => DONE,
            Ok(false) => Ok(Reply::Later),
            Err(error) => Err(self.pod_failed(error)),
        }
    }

    fn set_up_interface(&self, interface: &Interface) -> Result<Reply, Error> {
        network::check(interface)?;
        self.in_guest(|| network::set_up(interface))
    }

    fn set_routes(&self, routes: &Routes) -> Result<Reply, Error> {
        routes.routes.iter().try_for_each(|route| network::check_route(route).map(drop))?;
        self.in_guest(|| network::each(&routes.routes, network::set_route))
    }

    fn delete_interface(&self, interface: &Interface) -> Result<Reply, Error> {
        network::check(interface)?;
        self.in_guest(|| network::delete(interface))
    }

    fn start_resolver(&self, resolver: &Resolver) -> Result<Reply, Error> {
        let address = resolver::parse(&resolver.address)?;
        self.in_guest(|| resolver::start(address))
    }

    fn adjust_clock(&self, wanted: &ClockAdjustment) -> Result<Reply, Error> {
        let set: fn(&Timex) -> rustix::io::Result<()> =
            if self.setting == Setting::Guest { sys::adjust_clock } else { |_| Ok(()) };
        clock::adjust(wanted, set).map(Reply::Now)
    }

    fn revive(&self, payload: &[u8]) -> Result<Reply, Error> {
        let new = revival::parse(payload)?;
        self.in_guest(|| revival::revive(&new))
    }

    /// Executes a change of the machine, except in tests, where it would change the host.
    fn in_guest(&self, change: impl FnOnce() -> Result<(), Error>) -> Result<Reply, Error> {
        if self.setting == Setting::Guest {
            change()?;
        }
        DONE
    }

    fn kill_container(&mut self, command: &KillCommand) -> Result<Reply, Error> {
        let container = self.container(&command.container)?;
        let signal = process::signal(command.signal)?;
        let init = container.init.and_then(|key| self.processes.get(&key));
        if command.all_processes && self.setting == Setting::Guest {
            return signal_reply(container.signal_all(signal));
        }
        if command.all_processes {
            let own = self.processes.values().filter(|process| process.container == command.container);
            own.for_each(|process| _ = process.signal(signal));
            return DONE;
        }
        signal_reply(init.map_or(Err(Errno::SRCH), |init| init.signal(signal)))
    }

    fn signal_process(&mut self, command: &SignalCommand) -> Result<Reply, Error> {
        let signal: Signal = process::signal(command.signal)?;
        signal_reply(self.process(&command.container, &command.process)?.signal_group(signal))
    }

    fn update(&self, command: &ContainerLimits) -> Result<Reply, Error> {
        self.container(&command.container)?.limit(&command.cgroup)?;
        DONE
    }

    fn resize(&mut self, command: &WindowSize) -> Result<Reply, Error> {
        self.process(&command.container, &command.process)?.resize(command.row, command.column)?;
        DONE
    }

    fn exec(&mut self, id: u32, command: &ExecCommand) -> Result<Reply, Error> {
        container::check_process(&command.process)?;
        self.start_exec(id, command)?;
        Ok(Reply::Later)
    }

    fn new_container(&mut self, id: u32, spec: &payload::Container) -> Result<Reply, Error> {
        self.start_container(StartCommand { id, code: Code::NewContainer }, spec)?;
        Ok(Reply::Later)
    }

    fn remove_container(&mut self, command: &ContainerName) -> Result<Reply, Error> {
        self.container(&command.container)?;
        if self.is_running(&command.container) {
            return Err(Error::failed(format!("container {} is running", command.container)));
        }
        self.containers.retain(|container| container.id != command.container);
        DONE
    }

    fn destroy_pod(&mut self, id: u32) -> Result<Reply, Error> {
        if self.destroy.is_some() {
            return Err(Error::failed("the pod is already being destroyed"));
        }
        let destroy = if self.control.is_extended() || self.processes.is_empty() {
            Destroy::kill(id, &self.processes, &self.containers)
        } else {
            Destroy::terminate(id, &self.processes)?
        };
        if let Some(timer) = destroy.timer() {
            let flags = EventFlags::IN | EventFlags::ET;
            watch(&self.epoll, timer, 0, EventSource::GracePeriod, flags)?;
        }
        self.destroy = Some(destroy);
        Ok(Reply::Later)
    }
}

/// Returns the reply to a signal command, with API 4244's error texts.
fn signal_reply(result: Result<(), Errno>) -> Result<Reply, Error> {
    match result {
        Ok(()) => DONE,
        Err(Errno::SRCH) => Err(Error::new(ErrorCode::NotFound, "no such process")),
        Err(Errno::PERM) => Err(Error::failed("no permission")),
        Err(Errno::INVAL) => Err(Error::bad_request("invalid signal")),
        Err(errno) => Err(Error::failed(format!("kill failed: {}", cause(errno)))),
    }
}

fn name(code: Code, payload: &[u8]) -> Result<String, Error> {
    parse(code, payload).map(|name: ContainerName| name.container)
}

fn parse<'a, T: Deserialize<'a>>(code: Code, payload: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(payload).map_err(|error| Error::bad_request(format!("{code:?}: {error}")))
}
