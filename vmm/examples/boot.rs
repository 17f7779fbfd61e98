//! Boots a kernel and an initramfs, shows its console on stdout, and prints the timeline on stderr.
//!
//! ```text
//! boot KERNEL [INITRAMFS] [--memory MIB] [--cpus N] [--cmdline WORDS] [--serial] [--until TEXT | --ready]
//! ```
//!
//! The machine has a virtio console with two named ports and an entropy device, or with `--serial` only a 16550 UART.
//! `--until` stops the machine when TEXT appears on the console, `--ready` when the guest sends 8 bytes on the first
//! named port.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use vmm::devices::virtio::console::{Console, LogPort, Port, SocketPort};
use vmm::devices::virtio::rng::Rng;
use vmm::{Image, PendingVm, Timeline, Vm, VmConfig, VmEnd};

const CMDLINE: &str = "quiet reboot=k panic=-1 nomodule noreplace-smp tsc=reliable no_timer_check \
                       cryptomgr.notests random.trust_cpu=on 8250.nr_uarts=1 rdinit=/init";

/// The parsed command line.
#[derive(Default)]
struct Options {
    files: Vec<String>,
    memory_mib: u32,
    vcpus: u8,
    cmdline: String,
    serial: bool,
    until: Option<String>,
    ready: bool,
}

fn options() -> Result<Options, Box<dyn Error>> {
    let mut options =
        Options { memory_mib: 256, vcpus: 1, cmdline: CMDLINE.to_owned(), ..Options::default() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--memory" => options.memory_mib = value()?.parse()?,
            "--cpus" => options.vcpus = value()?.parse()?,
            "--cmdline" => options.cmdline = value()?,
            "--serial" => options.serial = true,
            "--until" => options.until = Some(value()?),
            "--ready" => options.ready = true,
            _ => options.files.push(argument),
        }
    }
    if options.files.is_empty() { Err("no kernel".into()) } else { Ok(options) }
}

fn image(name: &str) -> io::Result<Image> {
    let file = File::open(name)?;
    let len = file.metadata()?.len();
    Ok(Image { file, offset: 0, len, name: name.into() })
}

/// Copies the console's output to stdout, and sends a message to the main thread when a text appears in it.
struct Screen {
    until: Option<String>,
    seen: Vec<u8>,
    timeline: Arc<Timeline>,
    done: Sender<()>,
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stdout().write_all(bytes)?;
        self.seen.extend_from_slice(bytes);
        if let Some(until) = &self.until
            && self.seen.windows(until.len()).any(|window| window == until.as_bytes())
        {
            self.timeline.mark("until");
            self.until = None;
            let _ = self.done.send(());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

/// Attaches the devices and returns the host's ends of the console's two named ports.
fn attach(vm: &mut Vm, screen: Screen) -> Result<[UnixStream; 2], Box<dyn Error>> {
    let (control, control_port) = UnixStream::pair()?;
    let (streams, streams_port) = UnixStream::pair()?;
    let (log, _tail) = LogPort::new(Some(Box::new(screen)));
    let named = |name: &str, socket: UnixStream| {
        socket.set_nonblocking(true)?;
        io::Result::Ok(Port { name: Some(name.to_owned()), backend: Box::new(SocketPort::new(socket)) })
    };
    let ports = vec![
        Port { name: None, backend: Box::new(log) },
        named("sh.hyper.channel.0", control_port)?,
        named("sh.hyper.channel.1", streams_port)?,
    ];
    vm.attach(Box::new(Console::new(vm.events(), ports)))?;
    vm.attach(Box::new(Rng::new(vm.events())))?;
    Ok([control, streams])
}

fn boot(timeline: &Arc<Timeline>) -> Result<VmEnd, Box<dyn Error>> {
    let pending = PendingVm::start()?;
    let options = options()?;
    let (done, shown) = channel();
    let waits = options.until.is_some();
    let mut screen =
        Some(Screen { until: options.until, seen: Vec::new(), timeline: timeline.clone(), done });
    let console = if options.serial { "console=ttyS0" } else { "console=hvc0" };
    let serial = screen.take_if(|_| options.serial);
    let config = VmConfig {
        memory_mib: options.memory_mib,
        vcpus: options.vcpus,
        kernel: image(&options.files[0])?,
        initramfs: options.files.get(1).map(|name| image(name)).transpose()?,
        cmdline: format!("{console} {}", options.cmdline),
        serial: serial.map(|screen| Box::new(screen) as Box<dyn Write + Send>),
        timeline: Some(timeline.clone()),
        entries: vmm::Entries::default(),
    };
    let mut vm = Vm::with(pending, config)?;
    timeline.mark("planned");
    let mut sockets = screen.map(|screen| attach(&mut vm, screen)).transpose()?;
    let running = vm.start()?;
    timeline.mark("started");
    if let (true, Some([control, _])) = (options.ready, &mut sockets) {
        control.read_exact(&mut [0; 8])?;
        timeline.mark("ready");
    } else if waits {
        // An error means that the machine has ended before the text appeared.
        let _ = shown.recv();
    } else {
        File::from(running.end_fd().try_clone_to_owned()?).read_exact(&mut [0])?;
    }
    timeline.mark("ended");
    let end = running.stop();
    timeline.mark("stopped");
    Ok(end)
}

fn main() -> ExitCode {
    let timeline = Arc::new(Timeline::starting(Instant::now()).with_guest_marks(&[(1, "agent_started")]));
    let end = boot(&timeline);
    for mark in timeline.marks() {
        eprintln!("{:>10.3} ms  {}", mark.at.as_secs_f64() * 1e3, mark.name);
    }
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        status.lines().filter(|line| line.starts_with("VmHWM")).for_each(|line| eprintln!("{line}"));
    }
    match end {
        Ok(VmEnd::Failed(why)) => eprintln!("the machine failed: {why}"),
        Ok(end) => {
            eprintln!("the machine ended: {end:?}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("boot: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
        }
    }
    ExitCode::FAILURE
}
