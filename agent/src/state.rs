//! The agent's state: the channels to the host, the pod, and the pod's containers and processes.
//!
//! The operations on the state are in the modules of their commands ([`commands`](crate::commands),
//! [`start`](crate::start) and so on). The event loop ([`agent`](crate::agent)) calls them.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use agent_proto::payload;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::channel::Control;
use crate::container::Container;
use crate::destroy::Destroy;
use crate::error::{Error, Step};
use crate::pod::Pod;
use crate::process::Process;
use crate::sockets::{Gateway, Sockets};
use crate::streams::Streams;

const EDGES: EventFlags = EventFlags::IN.union(EventFlags::OUT).union(EventFlags::ET);

/// The environment in which the agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// The agent is PID 1 of a guest: containers are isolated, and orphans become its children.
    Guest,
    /// The agent runs in a test on a host: a container is an ordinary child process without isolation.
    Host,
}

/// Source of an event: a channel, a timer, or one of the file descriptors of the process whose key is in the event's
/// token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EventSource {
    Control,
    Streams,
    /// The timer between SIGTERM and SIGKILL of DESTROYPOD.
    GracePeriod,
    Report,
    Exit,
    Stdin,
    Stdout,
    Stderr,
    Terminal,
    /// The kernel has killed a process of a container for its memory limit.
    OomKill,
    /// A connection with a socket in a shared directory, the first.
    Sockets,
}

const EVENT_SOURCES: [EventSource; 11] = [
    EventSource::Control,
    EventSource::Streams,
    EventSource::GracePeriod,
    EventSource::Report,
    EventSource::Exit,
    EventSource::Stdin,
    EventSource::Stdout,
    EventSource::Stderr,
    EventSource::Terminal,
    EventSource::OomKill,
    EventSource::Sockets,
];

impl EventSource {
    /// Returns the source of the event with this token, and the key of its process.
    pub(crate) fn from_token(token: u64) -> Option<(EventSource, u32)> {
        let source = EVENT_SOURCES.get((token & 0xf) as usize)?;
        Some((*source, (token >> 4) as u32))
    }

    fn token(self, key: u32) -> u64 {
        u64::from(key) << 4 | self as u64
    }
}

/// The pod with its containers and processes, and the channels to the host.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) setting: Setting,
    pub(crate) control: Control,
    pub(crate) streams: Streams,
    pub(crate) pod: Option<Pod>,
    pub(crate) containers: Vec<Container>,
    /// Containers of STARTPOD that have not been started yet.
    pub(crate) to_start: VecDeque<payload::Container>,
    pub(crate) processes: BTreeMap<u32, Process>,
    pub(crate) destroy: Option<Destroy>,
    /// Carries connections to sockets of the host.
    pub(crate) sockets: Option<Sockets>,
    /// Waits for the first connection with a socket in a shared directory.
    pub(crate) gateway: Option<Gateway>,
    /// The machine must be reset once everything queued for the host has been sent.
    pub(crate) power_off: bool,
    pub(crate) next_key: u32,
    /// A child has exited and must be reaped.
    pub(crate) child_exited: bool,
    /// The kernel has killed a process of some container for its memory limit.
    pub(crate) oom_killed: bool,
    pub(crate) epoll: OwnedFd,
}

impl State {
    /// Returns the state without a pod, and sends READY.
    pub(crate) fn new(control: OwnedFd, streams: OwnedFd, setting: Setting) -> Result<State, Error> {
        // READY first, because the host waits for it.
        let mut control = Control::new(control)?;
        let mut streams = Streams::new(streams);
        let epoll = epoll::create(CreateFlags::CLOEXEC).step("create", "epoll instance")?;
        watch(&epoll, control.port().as_fd(), 0, EventSource::Control, EDGES)?;
        watch(&epoll, streams.port().as_fd(), 0, EventSource::Streams, EDGES)?;
        Ok(State {
            setting,
            control,
            streams,
            pod: None,
            containers: Vec::new(),
            to_start: VecDeque::new(),
            processes: BTreeMap::new(),
            destroy: None,
            sockets: None,
            gateway: None,
            power_off: false,
            next_key: 1,
            child_exited: false,
            oom_killed: false,
            epoll,
        })
    }

    /// Returns container `id`.
    pub(crate) fn container(&self, id: &str) -> Result<&Container, Error> {
        let found = self.containers.iter().find(|container| container.id == id);
        found.ok_or_else(|| Error::not_found("container", id))
    }

    /// Whether a process of container `id` runs.
    pub(crate) fn is_running(&self, id: &str) -> bool {
        self.processes.values().any(|process| process.container == id && process.pidfd.is_some())
    }

    /// Returns process `id` of a container.
    pub(crate) fn process(&mut self, container: &str, id: &str) -> Result<&mut Process, Error> {
        let found = self
            .processes
            .values_mut()
            .find(|process| process.container == container && process.id == id && !process.failed);
        found.ok_or_else(|| {
            let name: String = format!("{id} of container {container}");
            Error::not_found("process", &name)
        })
    }

    /// Records that the pod could not start. With API 4244 the machine then powers off; in the extended form the host
    /// decides.
    pub(crate) fn pod_failed(&mut self, error: Error) -> Error {
        self.power_off = !self.control.is_extended();
        error
    }

    /// Registers a process's file descriptors with the event loop.
    pub(crate) fn watch_process(
        &mut self,
        key: u32,
        fds: &[(Option<BorrowedFd<'_>>, EventSource)],
    ) -> Result<(), Error> {
        for (fd, source) in fds {
            let flags = match source {
                EventSource::Terminal => EDGES,
                EventSource::Stdin => EventFlags::OUT | EventFlags::ET,
                EventSource::Stdout | EventSource::Stderr => EventFlags::IN | EventFlags::ET,
                _ => EventFlags::IN,
            };
            if let Some(fd) = fd {
                watch(&self.epoll, *fd, key, *source, flags)?;
            }
        }
        Ok(())
    }
}

/// Registers a file descriptor with the event loop.
pub(crate) fn watch(
    epoll: &OwnedFd,
    fd: BorrowedFd<'_>,
    key: u32,
    source: EventSource,
    flags: EventFlags,
) -> Result<(), Error> {
    epoll::add(epoll, fd, EventData::new_u64(source.token(key)), flags).step("watch", "file descriptor")
}
