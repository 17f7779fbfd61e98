//! The end of a machine: the agent is asked to end the pod, and what clients wait for is delivered.

use std::time::Instant;

use agent_proto::command::Code;
use anyhow::{Context, Result};
use host::cgroup::kill_reporter::KillReporter;
use host::sys;

use super::{LAST_OUTPUT, Supervisor};
use crate::session::SessionError;

impl Supervisor {
    /// Ends the machine, and with it every process that still runs. Writes the last state.
    pub(super) fn shut_down(&mut self, answers: bool) -> Result<()> {
        self.stopping = true;
        self.session.sandbox.expect_end();
        if answers
            && let Err(error) = self.destroy_pod()
            && !error.downcast_ref().is_some_and(SessionError::is_reset)
        {
            log::warn!("{error:#}");
        }
        self.mark("pod_ended");
        for event in self.containers.farewells() {
            self.take(event)?;
        }
        self.flush_clients()?;
        // The engine must hear of a kill before it hears of this process's end.
        self.kill_reporter.iter_mut().for_each(KillReporter::settle);
        if let Some(directory) = self.directory.take() {
            // A directory that is about to be removed needs no last state.
            if !self.own.as_ref().is_some_and(|own| own.foreground) {
                let mut state = self.state();
                "stopped".clone_into(&mut state.status);
                directory.write(&state)?;
            }
            directory.stop_listening();
        }
        let patience = Instant::now() + LAST_OUTPUT;
        while !self.outputs.is_flushed() && Instant::now() < patience {
            let blocked: Vec<_> = self.outputs.blocked().map(|fd| (fd, libc::POLLOUT)).collect();
            sys::poll_all(blocked.iter(), Some(patience - Instant::now())).context("poll")?;
            self.outputs.flush();
        }
        Ok(())
    }

    fn destroy_pod(&mut self) -> Result<()> {
        let command = self.session.sandbox.link.send_bare(Code::DestroyPod, "end the pod")?;
        self.session.begin_end();
        loop {
            let events = self.containers.step(&mut self.session.sandbox.guest(), Instant::now())?;
            for event in events {
                // The failed start of a container has been reported already.
                self.take(event).unwrap_or_else(|error| log::debug!("{error:#}"));
            }
            self.flush_clients()?;
            if let Some(reply) = self.session.sandbox.link.reply(command) {
                reply?;
                return Ok(());
            }
            self.wait("end the pod", None)?;
        }
    }
}
