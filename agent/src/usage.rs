//! STATS, PROCESSES, PAUSE and RESUME: resource usage, processes and freezing of containers, through their cgroups, and the kills
//! for their memory limits.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use agent_proto::command::Code;
use agent_proto::payload::ProcessEvent;
use agent_proto::payload::usage::{ContainerProcesses, ContainerUsage, ProcessEntry};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::channel::json;
use crate::container::Container;
use crate::container::cgroup::field;
use crate::container::oom::OomKills;
use crate::error::{Error, Step};
use crate::state::State;
use crate::sys;

/// Limit of bytes that are read from a file of the kernel.
const FILE_MAX: usize = 4 << 10;
/// Nanoseconds in which the processes of a container are usually suspended.
const FROZEN_WITHIN: i64 = 500_000_000;
/// Nanoseconds between two looks whether they are.
const INTERVAL: i64 = 1_000_000;
/// Limit of processes of one container that are reported.
const PROCESSES_MAX: usize = 1024;
/// Limit of the length of a reported command.
const COMMAND_MAX: usize = 256;

impl State {
    /// Executes STATS for one container, or for all if `name` is empty.
    pub(crate) fn usage(&self, name: &str) -> Result<Vec<u8>, Error> {
        let all: Vec<ContainerUsage> = self.selected(name)?.map(usage_of).collect();
        Ok(json(&all))
    }

    /// Executes PROCESSES for one container, or for all if `name` is empty.
    pub(crate) fn process_list(&self, name: &str) -> Result<Vec<u8>, Error> {
        let list = |container: &Container| ContainerProcesses {
            container: container.id.clone(),
            processes: container.pids().iter().take(PROCESSES_MAX).filter_map(|pid| entry(*pid)).collect(),
        };
        let all: Vec<ContainerProcesses> = self.selected(name)?.map(list).collect();
        Ok(json(&all))
    }

    /// Executes PAUSE and RESUME: the kernel suspends or resumes all processes of a container, including new ones. A process
    /// that does not leave the kernel within [`FROZEN_WITHIN`] is suspended after the reply.
    pub(crate) fn freeze(&self, name: &str, frozen: bool) -> Result<Vec<u8>, Error> {
        for container in self.selected(name)? {
            let Some(cgroup) = container.cgroup() else { continue };
            rustix::fs::openat(cgroup, "cgroup.freeze", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .and_then(|file| rustix::io::write(&file, if frozen { b"1" } else { b"0" }))
                .step(if frozen { "pause" } else { "resume" }, &container.id)?;
            if frozen {
                await_frozen(cgroup).step("pause", &container.id)?;
            }
        }
        Ok(Vec::new())
    }

    /// Tells the host which containers have had a process killed for their memory limit. Returns whether there are any.
    /// API 4244 has no such event.
    pub(crate) fn report_oom_kills(&mut self) -> bool {
        if !core::mem::take(&mut self.oom_killed) || !self.control.is_extended() {
            return false;
        }
        let mut told = false;
        for container in &mut self.containers {
            if container.oom_kills.as_mut().is_some_and(OomKills::take_new) {
                let (container, event) = (container.id.clone(), ProcessEvent::OOM.into());
                let event = ProcessEvent { container, event, ..ProcessEvent::default() };
                self.control.send(Code::ProcessAsyncEvent, 0, json(&event));
                told = true;
            }
        }
        told
    }

    /// Returns the container of this name, or all containers for an empty name.
    fn selected(&self, name: &str) -> Result<impl Iterator<Item = &Container>, Error> {
        if !name.is_empty() {
            self.container(name)?;
        }
        Ok(self.containers.iter().filter(move |container| name.is_empty() || container.id == name))
    }
}

/// Waits until all processes of a cgroup are suspended, for a limited time.
fn await_frozen(cgroup: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let events = rustix::fs::openat(cgroup, "cgroup.events", flags, Mode::empty())?;
    let mut left = FROZEN_WITHIN;
    // The kernel reports a change of the file since it was last read.
    while !read(cgroup, "cgroup.events").contains("frozen 1") && left > 0 {
        let timeout = Timespec { tv_sec: 0, tv_nsec: INTERVAL };
        match poll(&mut [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => left -= INTERVAL,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn usage_of(container: &Container) -> ContainerUsage {
    let read = |name: &str| container.cgroup().map_or(String::new(), |cgroup| read(cgroup, name));
    let number = |name: &str| read(name).trim().parse().ok();
    let cpu = read("cpu.stat");
    ContainerUsage {
        container: container.id.clone(),
        memory: number("memory.current"),
        memory_limit: number("memory.max"),
        memory_peak: number("memory.peak"),
        cpu: field(&cpu, "usage_usec"),
        cpu_user: field(&cpu, "user_usec"),
        cpu_system: field(&cpu, "system_usec"),
        pids: number("pids.current"),
        pids_limit: number("pids.max"),
        oom_kills: field(&read("memory.events"), "oom_kill"),
    }
}

/// Returns the entry of a process; `None` if it has exited meanwhile.
fn entry(pid: i32) -> Option<ProcessEntry> {
    let status = read(CWD, &format!("/proc/{pid}/status"));
    let command = read(CWD, &format!("/proc/{pid}/cmdline"));
    parse(&status, &command)
}

fn parse(status: &str, command: &str) -> Option<ProcessEntry> {
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    let words = command.trim_end_matches('\0');
    // The kernel's name of the process in brackets, as in ps(1): a zombie has no arguments.
    let command = if words.is_empty() { format!("[{}]", line("Name")?) } else { words.replace('\0', " ") };
    Some(ProcessEntry {
        pid: line("NSpid")?.split_ascii_whitespace().last()?.parse().ok()?,
        uid: line("Uid")?.split_ascii_whitespace().next()?.parse().ok()?,
        state: line("State")?.chars().take(1).collect(),
        command: command.chars().take(COMMAND_MAX).collect(),
    })
}

fn read(directory: BorrowedFd<'_>, path: &str) -> String {
    let Ok(file) = rustix::fs::openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    else {
        return String::new();
    };
    let mut bytes = Vec::new();
    while bytes.len() < FILE_MAX && sys::read_append(file.as_fd(), &mut bytes, FILE_MAX).unwrap_or(0) > 0 {}
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_a_whole_name() {
        let text = "usage_usec 12\nuser_usec 7\nx usage_usec 9\n";
        assert_eq!(field(text, "usage_usec"), Some(12));
        assert_eq!(field(text, "user_usec"), Some(7));
        assert_eq!(field(text, "usage"), None);
    }

    #[test]
    fn a_process_is_listed_with_the_pid_of_its_container() {
        let status = "Name:\tcat\nState:\tS (sleeping)\nPid:\t70\nNSpid:\t70\t2\nUid:\t5\t0\t0\t0\n";
        let mut entry = ProcessEntry { pid: 2, uid: 5, state: "S".into(), command: "cat a b".into() };
        assert_eq!(parse(status, "cat\0a b\0"), Some(entry.clone()));
        entry.command = "[cat]".into();
        assert_eq!(parse(status, ""), Some(entry));
        assert_eq!(parse(status, &"x".repeat(1000)).unwrap().command.len(), COMMAND_MAX);
        assert_eq!(parse("", ""), None);
    }

    #[test]
    fn this_process_is_found() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        assert_eq!(entry(own).unwrap().pid, own as u32);
    }
}
