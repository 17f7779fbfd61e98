//! The codes of the control channel, and the rules of the base form and of the extended form.
//!
//! The agent sends the first message: READY. A READY without payload comes from a peer that speaks only API 4244. A
//! READY with a JSON [`Ready`](crate::payload::Ready) offers the extension. A host that wants the extension sends
//! [`Code::Extend`] with an [`Extend`](crate::payload::Extend) as its first command, and need not wait for the reply:
//! everything after that frame, in both directions and including its reply, is in the extended form.
//!
//! Extended control frames have a `u32` message id between header and payload. A reply has its command's id, an event
//! has id 0. There is no NEXT, not even for the bytes of the initial EXTEND. ERROR contains an
//! [`ErrorReply`](crate::payload::ErrorReply). Commands start in order. NEWCONTAINER, EXECCMD and DESTROYPOD are
//! answered when they are complete, which may be after the replies to later commands. NEWCONTAINER and EXECCMD are
//! complete when the program runs. If a program cannot be executed, the reply is ERROR and there is no exit event.
//!
//! Extended streams have credit: a sender may have at most the window (bytes of data without headers, from the offer in
//! READY) outstanding in a stream. A stream frame with sequence number [`CREDIT_SEQ`] contains
//! [`Credit`](crate::stream::Credit) records that return credit. Each stream, including stderr, ends with its own empty
//! frame. The empty frame of stdin, from the host, closes the process's stdin (on a terminal it types the end-of-file
//! character).
//!
//! The base form is that of API 4244, for a host without EXTEND or an agent whose READY has no payload. Control frames
//! have no id. Replies come in the order of the commands, so the agent starts a command only after the previous reply.
//! The agent answers each read of the control channel with NEXT and the number of bytes read; the host sends at most
//! 512 bytes that NEXT has not confirmed. ERROR has no payload, except that of KILLCONTAINER, which is a short text
//! with a NUL. Streams have no credit: a receiver that is full does not read the channel. An empty frame from the host
//! closes stdin. An empty frame from the agent on the stdio stream ends stdout and stderr together; the stderr stream
//! has no end frame. The exit report contains only the exit code (0 if a signal ended the process), and comes when all
//! processes that have the output open have closed it. It is sent on another channel than the end of the output, so the
//! host waits for both. A program that cannot be executed is reported as an exit with 125, 126 or 127.
//!
//! In the extended form a process's exit is reported when its output has been drained: when all writers have closed it,
//! or, if a background child still has it open after the process has ended, when everything written until then has been
//! read. The exit event is sent after the last byte of output, and contains the number of bytes of each stream.

/// Version of API 4244. Both sides must report exactly this version.
pub const API_VERSION: u32 = 4244;
/// Version of the extension.
pub const EXTENSION_VERSION: u32 = 1;
/// Length of a control frame's header: code and length.
pub const CONTROL_HEADER: usize = 8;
/// Length of a stream frame's header: sequence number and length.
pub const STREAM_HEADER: usize = 12;
/// Limit of a control frame's length, including the header. The largest message is a container with a long environment
/// and a seccomp program. A peer that announces more is broken.
pub const CONTROL_FRAME_MAX: usize = 4 << 20;
/// Limit of a stream frame's length, including the header: the content of a pipe. Longer output is sent as several
/// frames.
pub const STREAM_FRAME_MAX: usize = (256 << 10) + STREAM_HEADER;
/// Number of the stream for credit in the extended form. API 4244 never uses it.
pub const CREDIT_SEQ: u64 = 0;
/// Window: bytes that a sender may have outstanding in one stream.
pub const STREAM_WINDOW: u32 = 512 << 10;
/// Port name of the control channel.
pub const CONTROL_PORT: &str = "sh.hyper.channel.0";
/// Port name of the stream channel.
pub const STREAM_PORT: &str = "sh.hyper.channel.1";
/// Port name of the channel for name queries. Only machines of a pod with a resolver have it.
pub const RESOLVER_PORT: &str = "sh.hyper.resolver";
/// Port name of the channel for connections to sockets of the host. Only machines with a bind mount of one have it.
pub const SOCKETS_PORT: &str = "sh.hyper.sockets";
/// I/O port to which the agent writes the boot's milestones (one byte, [`Mark`]).
pub const MARK_IO_PORT: u16 = 0x6e0;

/// The protocol that a host uses with an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// The extension, with an agent that is known to have it: the host sends without waiting for READY.
    #[default]
    Extended,
    /// The extension, after READY has offered it. The host sends nothing before that.
    Negotiated,
    /// Only API 4244, even if READY offers the extension.
    Api4244,
}

/// Meaning of a byte that is written to [`MARK_IO_PORT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mark {
    /// The agent has started.
    AgentStarted = 1,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)+) => {
        /// Code of a control frame.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Code { $($(#[$doc])* $name = $value,)+ }

        impl Code {
            /// Returns the code with the number `value`.
            pub fn from_u32(value: u32) -> Option<Code> {
                match value { $($value => Some(Code::$name),)+ _ => None }
            }
        }
    };
}

codes! {
    /// Host to guest; the reply's data is the API version, `u32`.
    GetVersion = 0,
    /// Host to guest, [`Pod`](crate::payload::Pod).
    StartPod = 1,
    /// Obsolete; answered with ERROR.
    GetPodDeprecated = 2,
    /// Obsolete; answered with ERROR.
    StopPodDeprecated = 3,
    /// Host to guest; answered when all containers have been removed.
    DestroyPod = 4,
    /// Obsolete; answered with ERROR.
    RestartContainerDeprecated = 5,
    /// Host to guest, [`ExecCommand`](crate::payload::ExecCommand).
    ExecCmd = 6,
    /// Obsolete; answered with ERROR.
    CmdFinishedDeprecated = 7,
    /// Guest to host once, at the start. Host to guest: a request to look for new devices.
    Ready = 8,
    /// Guest to host: the command succeeded. The data depend on the command.
    Ack = 9,
    /// Guest to host: the command failed.
    Error = 10,
    /// Host to guest, [`WindowSize`](crate::payload::WindowSize).
    WinSize = 11,
    /// Host to guest.
    Ping = 12,
    /// Obsolete; answered with ERROR.
    PodFinishedDeprecated = 13,
    /// Guest to host, API 4244 only: `u32`, the number of control bytes just read.
    Next = 14,
    /// Host to guest, [`FileCommand`](crate::payload::FileCommand) and the file's bytes.
    WriteFile = 15,
    /// Host to guest, [`FileCommand`](crate::payload::FileCommand); the reply's data is the file.
    ReadFile = 16,
    /// Host to guest, [`Container`](crate::payload::Container).
    NewContainer = 17,
    /// Host to guest, [`KillCommand`](crate::payload::KillCommand).
    KillContainer = 18,
    /// Host to guest.
    OnlineCpuMem = 19,
    /// Host to guest.
    SetupInterface = 20,
    /// Host to guest.
    SetupRoute = 21,
    /// Host to guest, [`ContainerName`](crate::payload::ContainerName).
    RemoveContainer = 22,
    /// Guest to host, [`ProcessEvent`](crate::payload::ProcessEvent).
    ProcessAsyncEvent = 23,
    /// Host to guest, [`SignalCommand`](crate::payload::SignalCommand).
    SignalProcess = 24,
    /// Host to guest.
    DeleteInterface = 25,
    /// Extension. Host to guest, [`Extend`](crate::payload::Extend): starts the extended form.
    Extend = 64,
    /// Extension. Host to guest, [`ContainerName`](crate::payload::ContainerName); the reply's data is a list of
    /// [`ContainerUsage`](crate::payload::usage::ContainerUsage).
    Stats = 65,
    /// Extension. Host to guest, [`ContainerName`](crate::payload::ContainerName); the reply's data is a list of
    /// [`ContainerProcesses`](crate::payload::usage::ContainerProcesses).
    Processes = 66,
    /// Extension. Host to guest, [`ContainerName`](crate::payload::ContainerName): suspends all processes of the
    /// container.
    Pause = 67,
    /// Extension. Host to guest, [`ContainerName`](crate::payload::ContainerName): resumes them.
    Resume = 68,
    /// Extension. Host to guest, [`ContainerLimits`](crate::payload::oci::ContainerLimits): changes a container's
    /// limits.
    Update = 69,
    /// Extension. Host to guest, [`Resolver`](crate::payload::Resolver): starts to accept name queries.
    Resolver = 70,
    /// Extension. Host to guest; the reply's data is a [`ClockReading`](crate::payload::clock::ClockReading).
    ReadClock = 71,
    /// Extension. Host to guest, [`ClockAdjustment`](crate::payload::clock::ClockAdjustment): changes the rate of the guest's
    /// wall clock, and may step it. The reply's data is a [`ClockReading`](crate::payload::clock::ClockReading) from just
    /// before the change.
    AdjustClock = 72,
    /// Extension. Host to guest, [`Revival`](crate::revival::Revival): this machine continues from a saved one. The first command
    /// after EXTEND, or after the last one that the saved machine has got.
    Revive = 73,
    /// Extension. Host to guest, [`Connect`](crate::payload::Connect): carries a connection of the host to a TCP port of the
    /// guest's loopback interface. Answered when the server has accepted it; its end is reported like a process's exit.
    Connect = 74,
}
