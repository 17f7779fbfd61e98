//! The host environment of a container's process, which it enters before it has a machine: a terminal and a network
//! namespace. The single thread enters both, and all threads of the machine inherit them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use oci::spec::{ConsoleSize, Linux};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{DumpableBehavior, Resource, getrlimit, ioctl_tiocsctty, set_dumpable_behavior};
use rustix::pty::{ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

use crate::network::{self, NetworkError};
use crate::{HostError, sys, terminal};

/// Environment variables that a machine's process keeps: they locate an ordinary user's systemd when it must stop the
/// scope.
const KEPT: [&str; 2] = ["USER", "XDG_RUNTIME_DIR"];

/// Number of descriptors for which a machine's process makes room at its start, as far as its limit permits.
const DESCRIPTORS: u64 = 1024;

/// Closes all inherited descriptors above stderr. The caller must not have opened any yet.
pub fn close_descriptors() -> Result<(), HostError> {
    sys::inherited::close_descriptors().map_err(HostError::step("close inherited descriptors"))
}

/// Clears the environment variables and forbids core dumps, because a guest may break out of this process. To be called
/// before the first thread is started, after the last hook, and after all variables were read.
pub fn seclude() -> Result<(), HostError> {
    sys::inherited::clear_environment(&KEPT).map_err(HostError::step("clear the environment"))?;
    let forbidden = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    forbidden.map_err(HostError::step("forbid core dumps"))
}

/// Makes room for descriptors, while this process has one thread: once it has more, the kernel enlarges the table of
/// descriptors (64 at first) only after an RCU grace period, for which the thread that opens a file waits.
pub fn reserve_descriptors() -> Result<(), HostError> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let last = DESCRIPTORS.min(limit).saturating_sub(1);
    let reserved = sys::eventfd().and_then(|file| Ok(fcntl_dupfd_cloexec(&file, last as i32)?));
    reserved.map(drop).map_err(HostError::step("reserve descriptors"))
}

/// Creates a terminal of this size and sends its controller over the socket at `path`. The other end, in raw mode,
/// becomes this process's controlling terminal and standard streams, so that a change of size by the controller's owner
/// raises SIGWINCH in this process.
pub fn open_terminal(path: &Path, size: Option<ConsoleSize>) -> Result<(), HostError> {
    let (controller, name) = create_terminal().map_err(HostError::step("create the container's terminal"))?;
    let open = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&name);
    let own = open.map_err(HostError::step("open the container's terminal"))?;
    configure(&own, size).map_err(HostError::step("configure the container's terminal"))?;
    send(path, &controller, &name).map_err(HostError::at("send the terminal to", path))?;
    attach(&own).map_err(HostError::step("attach to the container's terminal"))
}

/// Creates a terminal. Returns its controller and the path of its other end.
fn create_terminal() -> io::Result<(File, String)> {
    let controller = File::options().read(true).write(true).open("/dev/ptmx")?;
    unlockpt(&controller)?;
    let name = ptsname(&controller, Vec::new())?.into_string().map_err(io::Error::other)?;
    Ok((controller, name))
}

/// Sets the terminal's size, if there is one, and raw mode.
fn configure(terminal: &File, size: Option<ConsoleSize>) -> io::Result<()> {
    if let Some(size) = size.filter(|size| size.height > 0 && size.width > 0) {
        let (ws_row, ws_col) = (size.height, size.width);
        tcsetwinsize(terminal, Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 })?;
    }
    terminal::set_raw(terminal, &tcgetattr(terminal)?)
}

/// Sends the controller, with the terminal's name as the data of the message.
fn send(path: &Path, controller: &File, name: &str) -> io::Result<()> {
    let socket = UnixStream::connect(path)?;
    sys::send_with_fds(socket.as_fd(), name.as_bytes(), &[controller.as_fd()]).map(drop)
}

/// Makes the terminal this process's controlling terminal and standard streams.
fn attach(terminal: &File) -> io::Result<()> {
    ioctl_tiocsctty(terminal)?;
    sys::set_standard([terminal; 3])
}

/// Joins the network namespace that config.json names, or a new one if config.json requests one without a path. Engines
/// then find the namespace through this process. Returns whether the process is in such a namespace now. Without
/// privilege it does not create a new one, because no process could add an interface to it.
pub fn enter_network(linux: &Linux) -> Result<bool, NetworkError> {
    let Some(namespace) = linux.namespaces.iter().find(|namespace| namespace.kind == "network") else {
        return Ok(false);
    };
    if !namespace.path.is_empty() {
        network::enter(Path::new(&namespace.path))?;
        return Ok(true);
    }
    match sys::new_network() {
        Ok(()) => Ok(true),
        Err(_) if sys::effective_user() != 0 => Ok(false),
        Err(error) => Err(HostError::step("create a network namespace")(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use rustix::termios::{LocalModes, tcgetwinsize};

    use super::*;

    #[test]
    fn descriptors_have_room() {
        reserve_descriptors().unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        assert!(size.trim().parse::<u64>().unwrap() >= DESCRIPTORS.min(limit), "{size}");
    }

    #[test]
    fn a_new_terminal_is_raw_and_has_its_size() {
        let (_controller, name) = create_terminal().unwrap();
        assert!(name.starts_with("/dev/pts/"), "{name}");
        let terminal =
            File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(name).unwrap();
        configure(&terminal, Some(ConsoleSize { height: 30, width: 100 })).unwrap();
        let size = tcgetwinsize(&terminal).unwrap();
        assert_eq!((size.ws_row, size.ws_col), (30, 100));
        let modes = tcgetattr(&terminal).unwrap().local_modes;
        assert!(!modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
    }
}
