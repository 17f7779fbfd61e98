//! Measures the agent and the way to it from outside: the time of a PING beside that of one byte which a guest's own process
//! 1 sends back, and the memory that the agent has with one container and with more. Prints JSON.
//!
//! ```text
//! round_trips KERNEL AGENT ECHO ROOTFS COUNT
//! ```
//!
//! AGENT and ECHO are initramfs images. ECHO's process 1 sends what comes on the port of streams back. AGENT has `/busybox`
//! beside the agent, which reads the agent's `/proc/1/smaps_rollup` for us: a process in "hyperstart" is one of the guest itself
//! (API 4244), so nothing of the agent has to be there for this measurement.

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use agent_proto::command::{CONTROL_PORT, Code, EXTENSION_VERSION, STREAM_PORT};
use agent_proto::control::{ControlCodec, ControlFrame};
use agent_proto::stream::StreamSplitter;
use serde_json::{Value, json};
use vmm::devices::share::{ShareTree, Terms};
use vmm::devices::virtio::console::{Console, LogPort, Port, SocketPort};
use vmm::devices::virtio::fs::{self, Fs};
use vmm::{Image, PendingVm, RunningVm, Vm, VmConfig};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const CMDLINE: &str = "console=hvc0 quiet reboot=k panic=-1 noreplace-smp tsc=reliable rdinit=";
/// Containers whose memory is looked at.
const CONTAINERS: u32 = 16;

/// A machine and the other ends of its two ports.
struct Machine {
    _vm: RunningVm,
    control: UnixStream,
    streams: UnixStream,
}

impl Machine {
    fn boot(kernel: &str, initramfs: &str, init: &str, rootfs: Option<&str>) -> Result<Machine> {
        let image = |name: &str| -> Result<Image> {
            let file = File::open(name)?;
            Ok(Image { len: file.metadata()?.len(), file, offset: 0, name: name.into() })
        };
        let config = VmConfig {
            memory_mib: 256,
            vcpus: 1,
            kernel: image(kernel)?,
            initramfs: Some(image(initramfs)?),
            cmdline: format!("{CMDLINE}{init}"),
            serial: None,
            timeline: None,
            entries: vmm::Entries::default(),
        };
        let mut vm = Vm::with(PendingVm::start()?, config)?;
        let port = |name: &str| -> Result<(UnixStream, Port)> {
            let (ours, theirs) = UnixStream::pair()?;
            Ok((ours, Port { name: Some(name.to_owned()), backend: Box::new(SocketPort::new(theirs)) }))
        };
        let ((control, first), (streams, second)) = (port(CONTROL_PORT)?, port(STREAM_PORT)?);
        let (log, _) = LogPort::new(None);
        let ports = vec![Port { name: None, backend: Box::new(log) }, first, second];
        vm.attach(Box::new(Console::new(vm.events(), ports)))?;
        if let Some(rootfs) = rootfs {
            let share = ShareTree::new()?;
            for number in 0..CONTAINERS {
                let dir = File::options().read(true).custom_flags(libc::O_PATH).open(rootfs)?;
                share.bind(&format!("/c{number}/rootfs"), dir.into(), Terms::default())?;
            }
            vm.attach(Box::new(Fs::new("share", fs::server(&share), || {})?))?;
        }
        Ok(Machine { _vm: vm.start()?, control, streams })
    }
}

/// Microseconds of `count` calls, one after the other.
fn time(count: usize, mut call: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    (0..count)
        .map(|_| {
            let begun = Instant::now();
            call()?;
            Ok(begun.elapsed().as_secs_f64() * 1e6)
        })
        .collect()
}

/// One byte there and back.
fn echo(kernel: &str, initramfs: &str, count: usize) -> Result<Vec<f64>> {
    let mut machine = Machine::boot(kernel, initramfs, "/guest -- hostile echo", None)?;
    let mut byte = || -> Result<()> {
        machine.streams.write_all(b"x")?;
        Ok(machine.streams.read_exact(&mut [0])?)
    };
    // The first waits for the guest.
    byte()?;
    time(count, byte)
}

/// The agent, spoken to over the control port.
struct Agent {
    machine: Machine,
    codec: ControlCodec,
    id: u32,
}

impl Agent {
    fn new(machine: Machine) -> Result<Agent> {
        let mut agent = Agent { machine, codec: ControlCodec::new(), id: 0 };
        assert_eq!(agent.next()?.code, Code::Ready as u32);
        agent.codec.set_extended(true);
        agent.say(Code::Extend, &json!({"extension": EXTENSION_VERSION}), false)?;
        agent.reply(Code::Extend)?;
        Ok(agent)
    }

    fn say(&mut self, code: Code, payload: &Value, extended: bool) -> Result<()> {
        let payload = if payload.is_null() { Vec::new() } else { serde_json::to_vec(payload)? };
        let mut bytes = Vec::new();
        ControlFrame { code: code as u32, id: self.id, payload }.encode(extended, &mut bytes);
        self.id += 1;
        Ok(self.machine.control.write_all(&bytes)?)
    }

    fn call(&mut self, code: Code, payload: &Value) -> Result<()> {
        self.say(code, payload, true)?;
        self.reply(code)
    }

    /// Waits for the answer; what happens meanwhile is of no interest.
    fn reply(&mut self, code: Code) -> Result<()> {
        loop {
            let frame = self.next()?;
            match Code::from_u32(frame.code) {
                Some(Code::Ack) => return Ok(()),
                Some(Code::Error) => {
                    return Err(format!("{code:?}: {}", String::from_utf8_lossy(&frame.payload)).into());
                }
                _ => {}
            }
        }
    }

    fn next(&mut self) -> Result<ControlFrame> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.codec.next()? {
                return Ok(frame);
            }
            match self.machine.control.read(&mut buffer)? {
                0 => return Err("the machine has ended".into()),
                count => self.codec.push(&buffer[..count]),
            }
        }
    }

    /// KiB of the agent's resident memory.
    fn resident(&mut self, number: u32) -> Result<f64> {
        let process =
            process(&format!("memory{number}"), &["/busybox", "cat", "/proc/1/smaps_rollup"], 2 * number + 1);
        self.call(Code::ExecCmd, &json!({"container": "hyperstart", "process": process}))?;
        let mut splitter = StreamSplitter::new();
        let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let count = self.machine.streams.read(&mut buffer)?;
            let mut data = &buffer[..count];
            while let Some(piece) = splitter.split(&mut data)? {
                text.extend_from_slice(piece.data);
            }
            let text = String::from_utf8_lossy(&text);
            let line = text.lines().find(|line| line.starts_with("Rss:"));
            // A line that is whole has its unit.
            if let Some(line) = line.filter(|line| line.ends_with("kB")) {
                return Ok(line.split_ascii_whitespace().nth(1).ok_or("no number")?.parse()?);
            }
        }
    }
}

/// A process whose streams no other has.
fn process(id: &str, args: &[&str], number: u32) -> Value {
    json!({"id": id, "args": args, "workdir": "/", "stdio": 2 * number + 1, "stderr": 2 * number + 2})
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initramfs, echoing, rootfs, count] =
        words.try_into().map_err(|_| "KERNEL AGENT ECHO ROOTFS COUNT")?;
    let count = count.parse()?;
    let bytes = echo(&kernel, &echoing, count)?;

    let machine = Machine::boot(&kernel, &initramfs, "/init", Some(&rootfs))?;
    let mut agent = Agent::new(machine)?;
    agent
        .call(Code::StartPod, &json!({"hostname": "bench", "shareDir": "share", "shareType": "virtiofs"}))?;
    let pings = time(count, || agent.call(Code::Ping, &Value::Null))?;

    let mut resident = Vec::new();
    for number in 0..CONTAINERS {
        let process = process("init", &["/bin/sleep", "100000"], 2 * number);
        let name = format!("c{number}");
        let container = json!({"id": name, "rootfs": "rootfs", "image": name, "process": process, "oci": {}});
        agent.call(Code::NewContainer, &container)?;
        resident.push(agent.resident(number)?);
    }
    let more = (resident[resident.len() - 1] - resident[0]) / f64::from(CONTAINERS - 1);
    let row = |name: &str, samples: &[f64]| json!({"name": name, "samples": samples});
    let groups = json!([
        {"title": "there and back", "unit": "us", "series": [row("one byte", &bytes), row("PING", &pings)]},
        {"title": "the agent's memory", "unit": "KiB", "series": [
            row("with one container", &resident[..1]), row("for each further one", &[more])
        ]},
    ]);
    println!("{}", json!({ "groups": groups }));
    Ok(())
}
