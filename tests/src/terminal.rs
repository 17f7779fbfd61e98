//! Programs on a pseudo-terminal that the test controls.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::process::deadline;

/// The controlling end of a pseudo-terminal, which types and reads like a user.
pub struct Controller {
    file: File,
    pieces: Receiver<Vec<u8>>,
    seen: String,
}

impl Controller {
    fn new(file: File) -> Controller {
        let pieces = read_pieces(file.try_clone().expect("share the terminal"));
        Controller { file, pieces, seen: String::new() }
    }

    /// Types `keys`.
    pub fn type_keys(&mut self, keys: &str) {
        self.file.write_all(keys.as_bytes()).expect("type");
    }

    /// Resizes the terminal. The kernel sends SIGWINCH to the program.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        tcsetwinsize(&self.file, size(rows, columns)).expect("size the terminal");
    }

    /// Waits for `mark` in the output since the previous wait. Returns the output up to the end of `mark`.
    #[track_caller]
    pub fn wait_for(&mut self, mark: &str) -> String {
        self.look_for(mark).unwrap_or_else(|what| panic!("{what}; the terminal shows {:?}", self.seen))
    }

    fn look_for(&mut self, mark: &str) -> Result<String, String> {
        let deadline = Instant::now() + deadline();
        loop {
            if let Some(at) = self.seen.find(mark) {
                let rest = self.seen.split_off(at + mark.len());
                return Ok(std::mem::replace(&mut self.seen, rest));
            }
            match self.pieces.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(piece) => self.seen.push_str(&String::from_utf8_lossy(&piece)),
                Err(RecvTimeoutError::Timeout) => return Err(format!("no {mark:?}")),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(format!("the output ended before {mark:?}"));
                }
            }
        }
    }
}

/// A terminal and the program that runs on it.
pub struct Terminal {
    controller: Controller,
    user: OwnedFd,
    child: Child,
}

impl Terminal {
    /// Runs `command` as a session leader on a new terminal of this size.
    pub fn start(command: &Command, rows: u16, columns: u16) -> Terminal {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("open a pseudo-terminal");
        grantpt(&controller).expect("grant the terminal");
        unlockpt(&controller).expect("unlock the terminal");
        let name = ptsname(&controller, Vec::new()).expect("name the terminal");
        let user =
            rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("open the terminal");
        tcsetwinsize(&user, size(rows, columns)).expect("size the terminal");
        let end = || user.try_clone().expect("share the terminal");
        let child = Command::new("setsid")
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("start the program under test");
        Terminal { controller: Controller::new(File::from(controller)), user, child }
    }

    /// Types `keys`.
    pub fn type_keys(&mut self, keys: &str) {
        self.controller.type_keys(keys);
    }

    /// Resizes the terminal. The kernel sends SIGWINCH to the program.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        self.controller.resize(rows, columns);
    }

    /// Waits for `mark` in the output since the previous wait. Returns the output up to the end of `mark`.
    #[track_caller]
    pub fn wait_for(&mut self, mark: &str) -> String {
        match self.controller.look_for(mark) {
            Ok(seen) => seen,
            Err(what) => self.fail(&what),
        }
    }

    /// Whether the terminal echoes and edits lines, as in a shell.
    pub fn is_cooked(&self) -> bool {
        let modes = tcgetattr(self.user.as_fd()).expect("read the terminal's modes").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// Process id of the program.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end of the program.
    #[track_caller]
    pub fn finish(&mut self) -> ExitStatus {
        let pid = self.child.id();
        let (send, receive) = channel();
        let mut child = std::mem::replace(&mut self.child, Command::new("true").spawn().expect("start true"));
        thread::spawn(move || drop(send.send(child.wait())));
        match receive.recv_timeout(deadline()) {
            Ok(status) => status.expect("wait for the program under test"),
            Err(_) => self.fail(&format!("process {pid} does not end")),
        }
    }

    #[track_caller]
    fn fail(&mut self, what: &str) -> ! {
        let _ = self.child.kill();
        panic!("{what}; the terminal shows {:?}", self.controller.seen);
    }
}

/// A console socket as engines' shims create it, which receives one terminal's controlling end.
pub struct ConsoleSocket(Receiver<File>);

impl ConsoleSocket {
    /// Listens at `path`.
    pub fn at(path: &Path) -> ConsoleSocket {
        let listener = UnixListener::bind(path).expect("listen");
        let (send, receive) = channel();
        thread::spawn(move || {
            let (socket, _) = listener.accept().expect("accept");
            drop(send.send(receive_terminal(&socket)));
        });
        ConsoleSocket(receive)
    }

    /// Waits for the controlling end.
    #[track_caller]
    pub fn take(self) -> Controller {
        Controller::new(self.0.recv_timeout(deadline()).expect("the terminal arrives"))
    }
}

/// Receives the controlling end of a terminal from a socket.
fn receive_terminal(socket: &UnixStream) -> File {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    let data = &mut [IoSliceMut::new(&mut name)];
    let received = recvmsg(socket, data, &mut ancillary, RecvFlags::CMSG_CLOEXEC).expect("receive");
    assert!(name[..received.bytes].starts_with(b"/dev/pts/"), "{:?}", &name[..received.bytes]);
    let sent = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    File::from(sent.expect("the message has a descriptor"))
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Reads the terminal in another thread. The channel closes at the end of the output.
fn read_pieces(mut controller: File) -> Receiver<Vec<u8>> {
    let (send, receive) = channel();
    thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(n @ 1..) = controller.read(&mut piece) {
            if send.send(piece[..n].to_vec()).is_err() {
                break;
            }
        }
    });
    receive
}
