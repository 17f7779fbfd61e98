//! What comes from the agent: the replies to what it was asked, and its events.

use std::time::Instant;

use agent_proto::payload::usage::{ContainerProcesses, ContainerUsage};
use agent_proto::payload::{ErrorCode, Exit, ProcessEvent};
use host::text::printable;
use link::LinkError;
use plan::INIT_PROCESS;
use serde::de::DeserializeOwned;

use super::{Awaited, Crew, Happened, Result, is_meant, refused, start_failed};
use crate::control::Reply;
use crate::exit;
use crate::pod::exec::Phase as ExecPhase;
use crate::pod::member::{Member, Phase};
use crate::pod::{Asker, Guest};

impl Crew {
    pub(super) fn take_replies(
        &mut self,
        guest: &mut Guest<'_>,
        now: Instant,
        happened: &mut Vec<Happened>,
    ) -> Result<()> {
        let mut index = 0;
        while let Some((command, _)) = self.awaited.get(index) {
            let Some(reply) = guest.link.reply(*command) else {
                index += 1;
                continue;
            };
            let (_, awaited) = self.awaited.remove(index);
            match awaited {
                Awaited::Start(name) => self.take_start(guest, &name, reply, now, happened)?,
                Awaited::Clear(name) => self.take_clear(&name, reply, happened)?,
                Awaited::Exec(name) => self.take_exec(guest, &name, reply, happened)?,
                Awaited::Stats(asker) => {
                    happened.push(answer::<Vec<ContainerUsage>>(asker, reply, Reply::Stats)?);
                }
                Awaited::Processes(asker) => {
                    happened.push(answer::<Vec<ContainerProcesses>>(asker, reply, Reply::Processes)?);
                }
                Awaited::Update(asker) => {
                    let reply = reply.map_or_else(failed, |_| Ok(Reply::Done))?;
                    happened.push(Happened::Answer(asker, reply));
                }
                Awaited::Pause { asker, container, paused } => {
                    let reply = match reply {
                        Ok(_) => {
                            let running = |member: &&mut Member| member.phase == Phase::Running;
                            let meant = self.members.iter_mut().filter(|member| is_meant(&container, member));
                            meant.filter(running).for_each(|member| member.paused = paused);
                            Reply::Done
                        }
                        Err(error) => failed(error)?,
                    };
                    happened.extend([Happened::Answer(asker, reply), Happened::Changed]);
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
        happened: &mut Vec<Happened>,
    ) -> Result<()> {
        let Some(member) = self.members.iter_mut().find(|member| member.spec.name() == name) else {
            return Ok(());
        };
        happened.push(Happened::Changed);
        let (code, message) = match reply {
            Ok(_) => {
                member.began(guest, now)?;
                happened.push(Happened::Runs(name.to_owned()));
                happened.extend(member.adder.take().map(|adder| Happened::Answer(adder, Reply::Done)));
                return Ok(());
            }
            Err(LinkError::Refused { code, message, .. }) => {
                let program = member.spec.plan.container.process.args.first();
                let message = if member.stands { explain(code, message, program) } else { message };
                (exit::of_agent_error(code), message)
            }
            Err(error) => return Err(error),
        };
        start_failed(guest, member, code, message, happened);
        Ok(())
    }

    fn take_clear(&mut self, name: &str, reply: Result<Vec<u8>>, happened: &mut Vec<Happened>) -> Result<()> {
        match reply {
            Ok(_) => {}
            Err(error @ LinkError::Refused { .. }) => log::warn!("container {name}: {error}"),
            Err(error) => return Err(error),
        }
        if let Some(member) = self.members.iter_mut().find(|member| member.spec.name() == name) {
            member.cleared();
            happened.push(Happened::Changed);
        }
        Ok(())
    }

    fn take_exec(
        &mut self,
        guest: &mut Guest<'_>,
        name: &str,
        reply: Result<Vec<u8>>,
        happened: &mut Vec<Happened>,
    ) -> Result<()> {
        let Some(index) = self.execs.iter().position(|exec| exec.process == name) else { return Ok(()) };
        match reply {
            Ok(_) => {
                self.execs[index].began(guest)?;
                let client = self.execs[index].client;
                happened.extend(client.map(|client| Happened::Answer(client, Reply::Started)));
                happened.push(Happened::Changed);
            }
            Err(error) => {
                let mut exec = self.execs.remove(index);
                exec.close(guest);
                let reply = match error {
                    LinkError::Refused { code, message, .. } if exec.program.is_some() => Reply::Failed {
                        code: exit::of_agent_error(code),
                        message: explain(code, message, exec.program.as_ref()),
                    },
                    error => failed(error)?,
                };
                happened.extend(exec.client.map(|client| Happened::Last(client, reply)));
            }
        }
        Ok(())
    }

    pub(super) fn take_event(
        &mut self,
        guest: &mut Guest<'_>,
        event: ProcessEvent,
        happened: &mut Vec<Happened>,
    ) -> Result<()> {
        let exit = event.exit.clone().unwrap_or(Exit { code: Some(event.status), ..Exit::default() });
        let member = self.members.iter_mut().find(|member| member.spec.name() == event.container);
        let exec = self.execs.iter_mut().find(|exec| exec.process == event.process);
        match (member, exec) {
            _ if event.event != "finished" => return guest.link.ignore(&event),
            (Some(member), _) if event.process == INIT_PROCESS && member.phase == Phase::Running => {
                member.exited(exit);
                happened.push(Happened::Changed);
            }
            (_, Some(exec)) if exec.phase == ExecPhase::Running => exec.phase = ExecPhase::Draining(exit),
            _ => return guest.link.ignore(&event),
        }
        Ok(())
    }
}

/// Says why a program could not be executed in the words by which engines know it from any other failure.
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
    asker: Asker,
    reply: Result<Vec<u8>>,
    shape: impl FnOnce(T) -> Reply,
) -> Result<Happened> {
    let reply = match reply {
        Ok(data) => match serde_json::from_slice(&data) {
            Ok(data) => shape(data),
            Err(error) => {
                refused(format!("the guest's answer cannot be read: {}", printable(&error.to_string())))
            }
        },
        Err(error) => failed(error)?,
    };
    Ok(Happened::Answer(asker, reply))
}

/// What the agent refused is its asker's trouble; anything else is everybody's.
fn failed(error: LinkError) -> Result<Reply> {
    match error {
        LinkError::Refused { code, message, .. } => {
            Ok(Reply::Failed { code: exit::of_agent_error(code), message })
        }
        error => Err(error),
    }
}
