//! A QEMU process and the sockets of its ports and monitor.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::Context;

use super::machine::{MONITOR, PORTS};

/// Maximum number of bytes kept of the log of QEMU and L1's kernel.
const LOG_MAX: usize = 16 << 10;

/// Listening sockets to which QEMU connects, by name. They are abstract, so that no file is left behind.
pub struct Sockets {
    /// Prefix of the sockets' names.
    pub prefix: String,
    listeners: Vec<(String, UnixListener)>,
}

impl Sockets {
    /// Listens on a socket for each port and one for the monitor.
    pub fn bind() -> anyhow::Result<Sockets> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("vmm-host.{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let bind = |name: &str| {
            let address = SocketAddr::from_abstract_name(format!("{prefix}.{name}"))?;
            Ok((name.to_string(), UnixListener::bind_addr(&address)?))
        };
        let listeners = PORTS
            .into_iter()
            .chain([MONITOR])
            .map(bind)
            .collect::<io::Result<_>>()
            .context("listen for QEMU")?;
        Ok(Sockets { prefix, listeners })
    }

    /// Returns the listener `name`. Panics if it was taken before.
    pub fn take(&mut self, name: &str) -> UnixListener {
        let index = self.listeners.iter().position(|(this, _)| this == name);
        self.listeners
            .remove(index.expect("a listener is taken once, by the name of a port or the monitor"))
            .1
    }
}

/// A running QEMU. It is killed when this value is dropped, or when the thread ends that started it.
pub struct Qemu {
    child: Child,
    log: Arc<Mutex<Vec<u8>>>,
}

impl Qemu {
    /// Starts QEMU with `arguments`. When it has ended, each of `sockets` that waits for its connection gets one that
    /// is at end of file, so that no thread waits forever.
    pub fn start(arguments: &[OsString], sockets: &Sockets) -> anyhow::Result<Qemu> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start qemu-system-x86_64")?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let addresses =
            sockets.listeners.iter().map(|(_, listener)| listener.local_addr()).collect::<Result<_, _>>();
        let addresses: Vec<SocketAddr> = addresses.context("listen for QEMU")?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let (of_stdout, of_stderr) = (log.clone(), log.clone());
        thread::spawn(move || read_log(out, &of_stdout));
        thread::spawn(move || {
            read_log(err, &of_stderr);
            for address in addresses {
                // It fails if the listener is gone: its connection was made, and no thread waits.
                let _ = UnixStream::connect_addr(&address);
            }
        });
        Ok(Qemu { child, log })
    }

    /// Returns the end of the log of QEMU and L1's kernel.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.log.lock().unwrap()).into_owned()
    }

    /// Waits until QEMU has ended.
    pub fn wait(&mut self) -> anyhow::Result<()> {
        self.child.wait().context("wait for QEMU").map(|_| ())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // The machine has no state to save. Both calls fail only if QEMU has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads `from` to its end. Keeps the last `LOG_MAX` bytes in `log`.
fn read_log(from: Option<impl Read>, log: &Mutex<Vec<u8>>) {
    let Some(mut from) = from else { return };
    let mut chunk = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        let mut log = log.lock().unwrap();
        log.extend_from_slice(&chunk[..length]);
        let excess = log.len().saturating_sub(LOG_MAX);
        log.drain(..excess);
    }
}
