//! What the process that is a container has of the host, before it has a machine: a terminal of its own, and its network
//! namespace. It enters both with its one thread, so that the machine's threads are in them, too.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use oci::spec::{ConsoleSize, Linux};

use crate::network::{self, NetworkError};
use crate::sys;

/// Why they cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// The terminal cannot be made or be used.
    #[error("{step} the container's terminal")]
    Terminal {
        /// What was attempted.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody takes the terminal's controller.
    #[error("send the terminal to {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The network namespace cannot be joined.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// There cannot be a new one.
    #[error("make a network namespace")]
    NewNetwork(#[source] io::Error),
    /// What the caller left cannot be let go of.
    #[error("{step}")]
    Inherited {
        /// What was attempted.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The variable that a machine's process keeps: an ordinary user's systemd is found by it when its scope is to end.
const KEPT: [&str; 1] = ["XDG_RUNTIME_DIR"];

/// Closes what whoever started us has open above stderr. To be called before anything of our own is open.
pub fn close_descriptors() -> Result<(), EnvironmentError> {
    let failed = |source| EnvironmentError::Inherited { step: "close inherited descriptors", source };
    sys::inherited::close_descriptors().map_err(failed)
}

/// Has this process forget its environment and leave no core: from here on it is a machine's, whose guest may break out of it.
/// To be called before its first thread, after its last hook, and once everything of the environment is read.
pub fn seclude() -> Result<(), EnvironmentError> {
    let failed = |step| move |source| EnvironmentError::Inherited { step, source };
    sys::inherited::clear_environment(&KEPT).map_err(failed("clear the environment"))?;
    sys::inherited::forbid_dumps().map_err(failed("forbid core dumps"))
}

/// Makes a terminal of this size, sends its controller over the socket at `path`, and makes the other end, raw, this
/// process's controlling terminal and standard streams: so a new size set by whoever has the controller is a SIGWINCH here.
pub fn open_terminal(path: &Path, size: Option<ConsoleSize>) -> Result<(), EnvironmentError> {
    let failed = |step| move |source| EnvironmentError::Terminal { step, source };
    let (controller, number) = sys::open_terminal().map_err(failed("make"))?;
    let name = format!("/dev/pts/{number}");
    let open = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&name);
    let own = open.map_err(failed("open"))?;
    if let Some(size) = size.filter(|size| size.height > 0 && size.width > 0) {
        sys::set_window_size(own.as_fd(), size.height, size.width).map_err(failed("size"))?;
    }
    let settings = sys::terminal_settings(own.as_fd()).map_err(failed("set"))?;
    sys::set_terminal(own.as_fd(), &settings.raw()).map_err(failed("set"))?;
    send(path, &controller, &name)
        .map_err(|source| EnvironmentError::Socket { path: path.to_owned(), source })?;
    sys::control_terminal(own.as_fd()).map_err(failed("take"))?;
    sys::set_standard([&own, &own, &own]).map_err(failed("take"))
}

/// Sends the controller, and the terminal's name as the message's data.
fn send(path: &Path, controller: &File, name: &str) -> io::Result<()> {
    let socket = UnixStream::connect(path)?;
    sys::send_with_fds(socket.as_fd(), name.as_bytes(), &[controller.as_fd()]).map(drop)
}

/// Joins the network namespace that config.json names, or a new one where it has none but asks for one: whoever
/// looks for it finds it by this process. Returns whether it is in one now: without privilege nobody could put anything into
/// a new one.
pub fn enter_network(linux: &Linux) -> Result<bool, EnvironmentError> {
    let Some(asked) = linux.namespaces.iter().find(|namespace| namespace.kind == "network") else {
        return Ok(false);
    };
    if !asked.path.is_empty() {
        network::enter(Path::new(&asked.path))?;
        return Ok(true);
    }
    match sys::new_network() {
        Ok(()) => Ok(true),
        Err(_) if sys::effective_user() != 0 => Ok(false),
        Err(source) => Err(EnvironmentError::NewNetwork(source)),
    }
}
