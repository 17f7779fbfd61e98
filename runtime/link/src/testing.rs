//! Fixtures for tests of this crate and its users: the host's ends of both channels, without a machine.

use std::io::{self, PipeReader, PipeWriter, Read, Write, pipe};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use agent_proto::command::Protocol;

use crate::AgentLink;
use crate::streams::{StreamHandle, StreamSpec, StreamTable, streams};

/// A test's ends of a process's standard streams.
pub struct Stdio {
    /// Writes to the process.
    pub stdin: Option<PipeWriter>,
    /// Reads what the process wrote.
    pub stdout: PipeReader,
    /// Reads its errors.
    pub stderr: PipeReader,
}

impl Stdio {
    /// Returns new pipes: the test's ends, and those of the process for stdin, stdout and stderr.
    pub fn new() -> (Stdio, [OwnedFd; 3]) {
        let (stdin_reader, stdin) = pipe().unwrap();
        let (stdout, stdout_writer) = pipe().unwrap();
        let (stderr, stderr_writer) = pipe().unwrap();
        let fds = [stdin_reader.into(), stdout_writer.into(), stderr_writer.into()];
        (Stdio { stdin: Some(stdin), stdout, stderr }, fds)
    }

    /// Reads stdout and stderr to their ends.
    pub fn output(&mut self) -> (String, String) {
        let text = |reader: &mut PipeReader| io::read_to_string(reader).unwrap();
        (text(&mut self.stdout), text(&mut self.stderr))
    }
}

/// Returns the specification of streams 1 (stdin and stdout) and 2 (stderr) over these descriptors.
pub fn specs([stdin, stdout, stderr]: &[OwnedFd; 3]) -> [StreamSpec; 2] {
    [
        StreamSpec { seq: 1, source: Some(stdin.as_raw_fd()), sink: Some(stdout.as_raw_fd()) },
        StreamSpec { seq: 2, source: None, sink: Some(stderr.as_raw_fd()) },
    ]
}

/// A stream table, run by the test instead of the devices thread.
pub struct Streams {
    /// The table.
    pub table: StreamTable,
    /// Its handle.
    pub handle: StreamHandle,
    /// Bytes of the table that the channel has not accepted.
    unsent: Vec<u8>,
}

impl Streams {
    /// Returns a table with these streams for an agent with `protocol`.
    pub fn new(specs: &[StreamSpec], protocol: Protocol) -> Streams {
        let (table, handle) = streams(specs, None).unwrap();
        let table = if protocol == Protocol::Api4244 { table.without_credit() } else { table };
        Streams { table, handle, unsent: Vec::new() }
    }

    /// Handles the descriptor with this token, which is ready; 0 is the table's own.
    pub fn ready(&mut self, token: u16) {
        self.table.ready(token, &mut |_, _, _| Ok(()));
    }

    /// Starts input of stream 1.
    pub fn start(&mut self, window: u32) {
        self.handle.start(1, window);
        self.ready(0);
    }

    /// Handles bytes from the guest.
    pub fn take(&mut self, bytes: &[u8]) {
        self.table.take(bytes, &mut |_, _, _| Ok(()));
    }

    /// Returns bytes for the guest.
    pub fn filled(&mut self) -> Vec<u8> {
        let mut buffer = vec![0; 8192];
        let count = self.table.fill(&mut buffer);
        buffer.truncate(count);
        buffer
    }

    /// Moves bytes in both directions between the table and the stream channel, which must not block. Handles the
    /// descriptors with these tokens as ready.
    pub fn carry(&mut self, mut channel: &UnixStream, tokens: Range<u16>) {
        let mut buffer = vec![0; 8192];
        while self.table.takes_output() {
            let Ok(count @ 1..) = channel.read(&mut buffer) else { break };
            self.take(&buffer[..count]);
        }
        tokens.for_each(|token| self.ready(token));
        loop {
            if self.unsent.is_empty() {
                self.unsent = self.filled();
            }
            match channel.write(&self.unsent) {
                Ok(count @ 1..) => drop(self.unsent.drain(..count)),
                _ => return,
            }
        }
    }
}

/// The host's ends of both channels.
pub struct Host {
    /// The control channel.
    pub link: AgentLink,
    /// The streams.
    pub streams: Streams,
    channel: UnixStream,
}

impl Host {
    /// Returns the host's ends for an agent with `protocol`, and the agent's ends: the control and the stream channel.
    pub fn new(specs: &[StreamSpec], protocol: Protocol) -> (Host, [UnixStream; 2]) {
        let (control, agent_control) = UnixStream::pair().unwrap();
        let (channel, agent_channel) = UnixStream::pair().unwrap();
        let ends = [agent_control, agent_channel];
        ends.iter().chain([&channel]).try_for_each(|socket| socket.set_nonblocking(true)).unwrap();
        let link = AgentLink::new(control, protocol).unwrap();
        (Host { link, streams: Streams::new(specs, protocol), channel }, ends)
    }

    /// Does the work of the devices thread: [`Streams::carry`].
    pub fn carry(&mut self, tokens: Range<u16>) {
        self.streams.carry(&self.channel, tokens);
    }
}

/// Reads `count` bytes of text.
pub fn read_text(reader: &mut impl io::Read, count: u64) -> String {
    let mut data = vec![0; count as usize];
    reader.read_exact(&mut data).unwrap();
    String::from_utf8(data).unwrap()
}
