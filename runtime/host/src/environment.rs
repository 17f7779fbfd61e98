//! The host environment of a container's process, which it enters before it has a machine: a terminal and a network
//! namespace. The single thread enters both, and all threads of the machine inherit them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use oci::spec::{ConsoleSize, Linux};

use crate::network::{self, NetworkError};
use crate::sys;

/// An error of setting up the environment.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// The terminal cannot be created or used.
    #[error("{step} the container's terminal")]
    Terminal {
        /// The operation, such as `open`.
        step: &'static str,
        /// Error of the operation.
        #[source]
        source: io::Error,
    },
    /// The terminal's controller cannot be sent to the console socket.
    #[error("send the terminal to {}", path.display())]
    Socket {
        /// Path of the socket.
        path: PathBuf,
        /// Error of connect or send.
        #[source]
        source: io::Error,
    },
    /// The network namespace cannot be joined.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A new network namespace cannot be created.
    #[error("create a network namespace")]
    NewNetwork(#[source] io::Error),
    /// The process cannot be separated from what it inherited.
    #[error("{step}")]
    Inherited {
        /// The operation, such as `clear the environment`.
        step: &'static str,
        /// Error of the operation.
        #[source]
        source: io::Error,
    },
}

/// Environment variables that a machine's process keeps: they locate an ordinary user's systemd when it must stop the
/// scope.
const KEPT: [&str; 1] = ["XDG_RUNTIME_DIR"];

/// Closes all inherited descriptors above stderr. The caller must not have opened any yet.
pub fn close_descriptors() -> Result<(), EnvironmentError> {
    let failed = |source| EnvironmentError::Inherited { step: "close inherited descriptors", source };
    sys::inherited::close_descriptors().map_err(failed)
}

/// Clears the environment variables and forbids core dumps, because a guest may break out of this process. To be called
/// before the first thread is started, after the last hook, and after all variables were read.
pub fn seclude() -> Result<(), EnvironmentError> {
    let failed = |step| move |source| EnvironmentError::Inherited { step, source };
    sys::inherited::clear_environment(&KEPT).map_err(failed("clear the environment"))?;
    sys::inherited::forbid_dumps().map_err(failed("forbid core dumps"))
}

/// Creates a terminal of this size and sends its controller over the socket at `path`. The other end, in raw mode,
/// becomes this process's controlling terminal and standard streams, so that a change of size by the controller's owner
/// raises SIGWINCH in this process.
pub fn open_terminal(path: &Path, size: Option<ConsoleSize>) -> Result<(), EnvironmentError> {
    let failed = |step| move |source| EnvironmentError::Terminal { step, source };
    let (controller, number) = sys::open_terminal().map_err(failed("create"))?;
    let name = format!("/dev/pts/{number}");
    let open = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&name);
    let own = open.map_err(failed("open"))?;
    if let Some(size) = size.filter(|size| size.height > 0 && size.width > 0) {
        sys::set_window_size(own.as_fd(), size.height, size.width).map_err(failed("resize"))?;
    }
    let settings = sys::terminal_settings(own.as_fd()).map_err(failed("configure"))?;
    sys::set_terminal(own.as_fd(), &settings.raw()).map_err(failed("configure"))?;
    send(path, &controller, &name)
        .map_err(|source| EnvironmentError::Socket { path: path.to_owned(), source })?;
    sys::control_terminal(own.as_fd()).map_err(failed("attach to"))?;
    sys::set_standard([&own, &own, &own]).map_err(failed("attach to"))
}

/// Sends the controller, with the terminal's name as the data of the message.
fn send(path: &Path, controller: &File, name: &str) -> io::Result<()> {
    let socket = UnixStream::connect(path)?;
    sys::send_with_fds(socket.as_fd(), name.as_bytes(), &[controller.as_fd()]).map(drop)
}

/// Joins the network namespace that config.json names, or a new one if config.json requests one without a path. Engines
/// then find the namespace through this process. Returns whether the process is in such a namespace now. Without
/// privilege it does not create a new one, because no process could add an interface to it.
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
