//! The control channel's codes, and what the extension adds.
//!
//! The agent speaks first: READY. A bare READY is a peer that speaks API 4244 alone. A READY with a JSON
//! [`Ready`](crate::payload::Ready) offers the extension; a host that wants it sends [`Code::Extend`] with an
//! [`Extend`](crate::payload::Extend) as its first command and need not wait: everything after that frame, in both
//! directions and beginning with its own reply, is in the extended form.
//!
//! Extended control frames carry a `u32` message id between header and payload. A reply has its command's id, an
//! event has id 0. There is no NEXT, not even for the bytes of a leading EXTEND. ERROR carries an
//! [`ErrorReply`](crate::payload::ErrorReply). Commands are begun in order; NEWCONTAINER, EXECCMD and DESTROYPOD are
//! answered when they are done, which may be after later commands' replies. NEWCONTAINER and EXECCMD are done once the
//! program runs: a program that cannot be executed is an ERROR and there is no exit event.
//!
//! Extended streams have credit: a sender may have at most the window (bytes of data without headers, from READY's
//! offer) outstanding in a stream. A stream frame with sequence number [`CREDIT_SEQ`] carries
//! [`Credit`](crate::stream::Credit) records that give credit back. Each stream, stderr too, ends with an empty frame
//! of its own; stdin's empty frame, from the host, closes the process's stdin (on a terminal it types the
//! end-of-file character).
//!
//! The base form is API 4244's own, for a host without EXTEND or an agent with a bare READY. Control frames have no id and
//! replies come in the order of the commands, so that the agent begins none while a reply is owed. The agent answers each
//! read of the control channel with NEXT and the number of bytes it took; the host has at most 512 bytes on their way that
//! NEXT has not told of. ERROR has no payload, but for KILLCONTAINER's short text and its NUL. Streams have no credit: who
//! cannot take more does not read the channel. An empty frame from the host closes stdin; one from the agent on stdio's
//! stream ends stdout and stderr together, and stderr's has no end of its own. The exit report has the exit code alone (0
//! where a signal ended the process), comes when everything that holds the process's output has closed it, and travels on
//! another channel than the end of the output: the host waits for both. A program that cannot be executed has run and ended
//! with 125, 126 or 127.
//!
//! In the extended form a process's exit is reported once its output is drained: until every writer has closed it, or,
//! when a background child still holds it open after the process has ended, until what was in it by then is taken. The
//! exit event is sent after the last byte of output, and says how many bytes each stream carried.

/// API 4244: both sides must say exactly this.
pub const API_VERSION: u32 = 4244;
/// The extension that this crate speaks.
pub const EXTENSION_VERSION: u32 = 1;
/// Bytes of a control frame's header: code and length.
pub const CONTROL_HEADER: usize = 8;
/// Bytes of a stream frame's header: sequence number and length.
pub const STREAM_HEADER: usize = 12;
/// The largest control frame, header included. The largest message is a container with a long environment and a
/// seccomp program; a peer that claims more is broken.
pub const CONTROL_FRAME_MAX: usize = 4 << 20;
/// The largest stream frame, header included: what a pipe holds. A longer run of output goes out as several frames.
pub const STREAM_FRAME_MAX: usize = (256 << 10) + STREAM_HEADER;
/// The stream number that carries credit in the extended form; API 4244 never uses it.
pub const CREDIT_SEQ: u64 = 0;
/// Bytes that a sender may have outstanding in one stream.
pub const STREAM_WINDOW: u32 = 512 << 10;
/// Port name of the control channel.
pub const CONTROL_PORT: &str = "sh.hyper.channel.0";
/// Port name of the stream channel.
pub const STREAM_PORT: &str = "sh.hyper.channel.1";
/// Port name of the name queries' channel; it is there for a pod with a resolver alone.
pub const RESOLVER_PORT: &str = "sh.hyper.resolver";
/// I/O port at which the agent tells the machine how far the boot is (one byte, [`Mark`]).
pub const MARK_IO_PORT: u16 = 0x6e0;

/// How a host speaks to an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// The extension, to an agent that is known to have it: the host writes without waiting for READY.
    #[default]
    Extended,
    /// The extension, once READY has offered it: nothing is written before.
    Negotiated,
    /// API 4244 alone, whatever READY offers.
    Api4244,
}

/// What a byte written to [`MARK_IO_PORT`] means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mark {
    /// The agent's first instructions.
    AgentStarted = 1,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)+) => {
        /// A control frame's code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Code { $($(#[$doc])* $name = $value,)+ }

        impl Code {
            /// Returns the code that `value` stands for.
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
    /// Abandoned; answered with ERROR.
    GetPodDeprecated = 2,
    /// Abandoned; answered with ERROR.
    StopPodDeprecated = 3,
    /// Host to guest; answered when every container is gone.
    DestroyPod = 4,
    /// Abandoned; answered with ERROR.
    RestartContainerDeprecated = 5,
    /// Host to guest, [`ExecCommand`](crate::payload::ExecCommand).
    ExecCmd = 6,
    /// Abandoned; answered with ERROR.
    CmdFinishedDeprecated = 7,
    /// Guest to host once, at start; host to guest, a request to look for new devices.
    Ready = 8,
    /// Guest to host: the command was done; data depends on the command.
    Ack = 9,
    /// Guest to host: the command was not done.
    Error = 10,
    /// Host to guest, [`WindowSize`](crate::payload::WindowSize).
    WinSize = 11,
    /// Host to guest.
    Ping = 12,
    /// Abandoned; answered with ERROR.
    PodFinishedDeprecated = 13,
    /// Guest to host, API 4244 only: `u32`, the bytes of control input just taken.
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
    /// Extension. Host to guest, [`Extend`](crate::payload::Extend): the extended form begins.
    Extend = 64,
    /// Extension. Host to guest, [`ContainerName`](crate::payload::ContainerName); the reply's data is a list of
    /// [`ContainerUsage`](crate::payload::usage::ContainerUsage).
    Stats = 65,
    /// Extension. Host to guest, [`ContainerName`](crate::payload::ContainerName); the reply's data is a list of
    /// [`ContainerProcesses`](crate::payload::usage::ContainerProcesses).
    Processes = 66,
    /// Extension. Host to guest, [`ContainerName`](crate::payload::ContainerName): its processes stop where they are.
    Pause = 67,
    /// Extension. Host to guest, [`ContainerName`](crate::payload::ContainerName): they go on.
    Resume = 68,
    /// Extension. Host to guest, [`ContainerLimits`](crate::payload::oci::ContainerLimits): other limits for it.
    Update = 69,
    /// Extension. Host to guest, [`Resolver`](crate::payload::Resolver): name queries are taken from now on.
    Resolver = 70,
}
