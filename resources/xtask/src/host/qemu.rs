//! One QEMU process and the sockets to its ports.

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

/// How much of what QEMU and L1's kernel say is kept, in bytes.
const LOG_MAX: usize = 16 << 10;

/// Listening sockets for QEMU to connect to, by name. Abstract: nothing is left in any file system however this ends.
pub struct Sockets {
    /// What their names begin with.
    pub prefix: String,
    listeners: Vec<(String, UnixListener)>,
}

impl Sockets {
    /// One listener for each port and one for the monitor.
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

    /// Gives out the listener of `name`, once.
    pub fn take(&mut self, name: &str) -> UnixListener {
        let index = self.listeners.iter().position(|(this, _)| this == name);
        self.listeners.remove(index.expect("every port is taken once, by a name that it was bound by")).1
    }
}

/// A running QEMU. It ends with this value, and with the thread that started it.
pub struct Qemu {
    child: Child,
    log: Arc<Mutex<Vec<u8>>>,
}

impl Qemu {
    /// Starts QEMU with `arguments`. When it ends, whoever still waits for it at one of `sockets` gets a connection
    /// at its end of file.
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
        let (kept, also_kept) = (log.clone(), log.clone());
        thread::spawn(move || keep(out, &kept));
        thread::spawn(move || {
            keep(err, &also_kept);
            for address in addresses {
                // Refused where the port has been given out and its connection made: nobody waits there.
                let _ = UnixStream::connect_addr(&address);
            }
        });
        Ok(Qemu { child, log })
    }

    /// The last of what QEMU and L1's kernel said.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.log.lock().unwrap()).into_owned()
    }

    /// Waits until QEMU has ended by itself.
    pub fn wait(&mut self) -> anyhow::Result<()> {
        self.child.wait().context("wait for QEMU").map(|_| ())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Nothing in the machine is worth an orderly end. It fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads `from` to its end and keeps the last `LOG_MAX` bytes.
fn keep(from: Option<impl Read>, log: &Mutex<Vec<u8>>) {
    let Some(mut from) = from else { return };
    let mut chunk = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        let mut log = log.lock().unwrap();
        log.extend_from_slice(&chunk[..length]);
        let excess = log.len().saturating_sub(LOG_MAX);
        log.drain(..excess);
    }
}
