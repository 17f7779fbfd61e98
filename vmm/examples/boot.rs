//! Boots a kernel and an initramfs with a serial console on stdout, and prints the timeline on stderr.
//!
//! ```text
//! boot KERNEL [INITRAMFS] [--memory MIB] [--cpus N] [--cmdline WORDS] [--until TEXT]
//! ```
//!
//! With `--until` the machine is stopped as soon as the console has shown TEXT, which sets the mark `until`.

use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use vmm::{Image, PendingVm, Timeline, Vm, VmConfig, VmEnd};

const CMDLINE: &str = "console=ttyS0 quiet reboot=k panic=-1 nomodule noreplace-smp tsc=reliable no_timer_check \
                       cryptomgr.notests random.trust_cpu=on 8250.nr_uarts=1 rdinit=/init";

/// What the arguments say.
struct Options {
    files: Vec<String>,
    memory_mib: u32,
    vcpus: u8,
    cmdline: String,
    until: Option<String>,
}

fn options() -> Result<Options, Box<dyn std::error::Error>> {
    let mut options =
        Options { files: Vec::new(), memory_mib: 256, vcpus: 1, cmdline: CMDLINE.to_owned(), until: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--memory" => options.memory_mib = value()?.parse()?,
            "--cpus" => options.vcpus = value()?.parse()?,
            "--cmdline" => options.cmdline = value()?,
            "--until" => options.until = Some(value()?),
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

/// The serial console: copies to stdout and says when it has shown a text.
struct Console {
    until: Option<String>,
    seen: Vec<u8>,
    timeline: Arc<Timeline>,
    done: Sender<()>,
}

impl Write for Console {
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

fn boot(timeline: &Arc<Timeline>) -> Result<VmEnd, Box<dyn std::error::Error>> {
    let pending = PendingVm::start()?;
    let options = options()?;
    let (done, shown) = channel();
    let waits = options.until.is_some();
    let console = Console { until: options.until, seen: Vec::new(), timeline: timeline.clone(), done };
    let config = VmConfig {
        memory_mib: options.memory_mib,
        vcpus: options.vcpus,
        kernel: image(&options.files[0])?,
        initramfs: options.files.get(1).map(|name| image(name)).transpose()?,
        cmdline: options.cmdline,
        serial: Some(Box::new(console)),
        timeline: Some(timeline.clone()),
    };
    let vm = Vm::with(pending, config)?;
    timeline.mark("planned");
    let running = vm.start()?;
    timeline.mark("started");
    if waits {
        // The console goes with the machine: a guest that ends first closes the channel's other end in `stop`.
        shown.recv()?;
    } else {
        let mut end = File::from(running.end_fd().try_clone_to_owned()?);
        io::Read::read_exact(&mut end, &mut [0])?;
    }
    timeline.mark("ended");
    let end = running.stop();
    timeline.mark("stopped");
    Ok(end)
}

fn main() -> ExitCode {
    let timeline = Arc::new(Timeline::starting(Instant::now()));
    let end = boot(&timeline);
    for mark in timeline.marks() {
        eprintln!("{:>10.3} ms  {}", mark.at.as_secs_f64() * 1e3, mark.name);
    }
    match end {
        Ok(VmEnd::Failed(why)) => {
            eprintln!("the machine failed: {why}");
            ExitCode::FAILURE
        }
        Ok(end) => {
            eprintln!("the machine ended: {end:?}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("boot: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}
