//! Frames from the agent: replies to commands, and events.

use std::time::Instant;

use agent_proto::payload::usage::{ContainerProcesses, ContainerUsage};
use agent_proto::payload::{ErrorCode, Exit, ProcessEvent};
use host::text::printable;
use link::LinkError;
use plan::INIT_PROCESS;
use serde::de::DeserializeOwned;

use super::{Awaited, Containers, Event, Result, refused, start_failed};
use crate::control::Reply;
use crate::exit;
use crate::pod::container::{Container, Phase, StartError};
use crate::pod::process::ProcessPhase;
use crate::pod::{ClientId, Guest};

impl Containers {
    pub(super) fn take_replies(&mut self, guest: &mut Guest<'_>, now: Instant) -> Result<()> {
        let mut index = 0;
        while let Some((command, _)) = self.awaited.get(index) {
            let Some(reply) = guest.link.reply(*command) else {
                index += 1;
                continue;
            };
            let (_, awaited) = self.awaited.remove(index);
            match awaited {
                Awaited::Start(name) => self.take_start(guest, &name, reply, now)?,
                Awaited::Clear(name) => self.take_clear(&name, reply)?,
                Awaited::Exec(name) => self.take_exec(guest, &name, reply)?,
                Awaited::Forward(name) => self.take_forward(guest, &name, reply)?,
                Awaited::Stats(client) => {
                    self.events.push(answer::<Vec<ContainerUsage>>(client, reply, Reply::Stats)?);
                }
                Awaited::Processes(client) => {
                    self.events.push(answer::<Vec<ContainerProcesses>>(client, reply, Reply::Processes)?);
                }
                Awaited::Update(client) => {
                    let reply = reply.map_or_else(failed, |_| Ok(Reply::Done))?;
                    self.events.push(Event::Answer(client, reply));
                }
                Awaited::Pause { client, container, paused } => {
                    let reply = match reply {
                        Ok(_) => {
                            let running = |it: &&mut Container| it.phase == Phase::Running;
                            let meant = self.all.iter_mut().filter(|it| it.is_meant(&container));
                            meant.filter(running).for_each(|container| container.paused = paused);
                            Reply::Done
                        }
                        Err(error) => failed(error)?,
                    };
                    self.events.extend([Event::Answer(client, reply), Event::Changed]);
                }
            }
        }
        Ok(())
    }

    fn take_start(
        &mut self,
        guest: &mut Guest<'_>,
        name: &str,
        reply: Result<Vec<u8>>,
        now: Instant,
    ) -> Result<()> {
        let found = self.all.iter_mut().find(|container| container.spec.name() == name);
        let Some(container) = found else { return Ok(()) };
        self.events.push(Event::Changed);
        let (code, message) = match reply {
            Ok(_) => {
                match container.began(guest, now) {
                    Ok(()) => {}
                    Err(StartError::Link(error)) => return Err(error),
                    Err(error) => {
                        let message = format!("{:#}", anyhow::Error::from(error));
                        start_failed(guest, container, exit::FAILED, message, &mut self.events);
                        return Ok(());
                    }
                }
                self.events.push(Event::Runs(name.to_owned()));
                self.events.extend(container.starter.take().map(|adder| Event::Answer(adder, Reply::Done)));
                return Ok(());
            }
            Err(LinkError::Refused { code, message, .. }) => {
                let program = container.spec.plan.container.process.args.first();
                let message =
                    if container.is_represented() { explain(code, message, program) } else { message };
                (exit::of_agent_error(code), message)
            }
            Err(error) => return Err(error),
        };
        start_failed(guest, container, code, message, &mut self.events);
        Ok(())
    }

    fn take_clear(&mut self, name: &str, reply: Result<Vec<u8>>) -> Result<()> {
        match reply {
            Ok(_) => {}
            Err(error @ LinkError::Refused { .. }) => log::warn!("container {name}: {error}"),
            Err(error) => return Err(error),
        }
        if let Some(container) = self.find_mut(name) {
            container.cleared();
            self.events.push(Event::Changed);
        }
        Ok(())
    }

    fn take_exec(&mut self, guest: &mut Guest<'_>, name: &str, reply: Result<Vec<u8>>) -> Result<()> {
        let Some(index) = self.execs.iter().position(|exec| exec.process.name == name) else { return Ok(()) };
        match reply {
            Ok(_) => {
                self.execs[index].process.started(guest, None)?;
                let client = self.execs[index].client;
                self.events.extend(client.map(|client| Event::Answer(client, Reply::Started)));
                self.events.push(Event::Changed);
            }
            Err(error) => {
                let mut exec = self.execs.remove(index);
                exec.process.close(guest);
                let reply = match error {
                    LinkError::Refused { code, message, .. } if exec.program.is_some() => Reply::Failed {
                        code: exit::of_agent_error(code),
                        message: explain(code, message, exec.program.as_ref()),
                    },
                    error => failed(error)?,
                };
                self.events.extend(exec.client.map(|client| Event::Last(client, reply)));
            }
        }
        Ok(())
    }

    pub(super) fn take_event(&mut self, guest: &mut Guest<'_>, event: ProcessEvent) -> Result<()> {
        let exit = event.exit.clone().unwrap_or(Exit { code: Some(event.status), ..Exit::default() });
        let container = self.all.iter_mut().find(|container| container.spec.name() == event.container);
        let exec = self.execs.iter_mut().map(|exec| &mut exec.process);
        let exec = exec.filter(|process| process.phase == ProcessPhase::Running);
        let mut forwards = self.forwards.iter_mut();
        let forward = forwards.find(|forward| forward.is_meant(&event.container, &event.process));
        let other = exec.chain(forward.map(|forward| &mut forward.process));
        let other = other.into_iter().find(|process| process.name == event.process);
        match (container, other) {
            (Some(container), _) if event.event == ProcessEvent::OOM && container.phase == Phase::Running => {
                self.events.push(match container.member() {
                    Some(member) => match member.client {
                        Some(client) => Event::Answer(client, Reply::OomKill),
                        None => Event::Changed,
                    },
                    None => Event::OomKill,
                });
            }
            _ if event.event != ProcessEvent::FINISHED => return guest.link.ignore(&event),
            (Some(container), _) if event.process == INIT_PROCESS && container.phase == Phase::Running => {
                container.exited(exit);
                self.events.extend([Event::Exited, Event::Changed]);
            }
            (_, Some(process)) => process.exited(exit),
            _ => return guest.link.ignore(&event),
        }
        Ok(())
    }
}

/// Returns runc's text for a program that cannot be executed, by which engines recognize this error.
pub(super) fn explain(code: ErrorCode, message: String, program: Option<&String>) -> String {
    let Some(program) = program else { return message };
    match code {
        ErrorCode::NotExecutableMissing if !program.contains('/') => {
            format!("exec: {program:?}: executable file not found in $PATH")
        }
        ErrorCode::NotExecutableMissing | ErrorCode::NotExecutable => format!("exec: {program:?}: {message}"),
        _ => message,
    }
}

fn answer<T: DeserializeOwned>(
    client: ClientId,
    reply: Result<Vec<u8>>,
    shape: impl FnOnce(T) -> Reply,
) -> Result<Event> {
    let reply = match reply {
        Ok(data) => match serde_json::from_slice(&data) {
            Ok(data) => shape(data),
            Err(error) => refused(format!("parse the guest's answer: {}", printable(&error.to_string()))),
        },
        Err(error) => failed(error)?,
    };
    Ok(Event::Answer(client, reply))
}

/// Returns the agent's refusal as a reply to the client. Any other error ends the pod.
fn failed(error: LinkError) -> Result<Reply> {
    match error {
        LinkError::Refused { code, message, .. } => {
            Ok(Reply::Failed { code: exit::of_agent_error(code), message })
        }
        error => Err(error),
    }
}
