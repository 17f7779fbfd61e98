//! Saving a machine and continuing from it, without a container: only the monitor, its devices, the kernel and the agent of
//! the program under test.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use agent_proto::command::{CONTROL_PORT, Code, EXTENSION_VERSION, STREAM_PORT};
use agent_proto::control::{ControlCodec, ControlFrame};
use agent_proto::payload::Extend;
use agent_proto::payload::clock::ClockReading;
use tests::program;
use vmm::devices::StateError;
use vmm::devices::share::ShareTree;
use vmm::devices::virtio::balloon::Balloon;
use vmm::devices::virtio::console::{Console, LogPort, Port, PortBackend, SocketPort};
use vmm::devices::virtio::fs::{self, Fs};
use vmm::devices::virtio::net::Slot;
use vmm::devices::virtio::rng::Rng;
use vmm::{Entries, Error, Image, PendingVm, RunningVm, SavedConfig, Snapshot, SnapshotError, Vm, VmConfig};

/// Time for an answer of the guest.
const PATIENCE: Duration = Duration::from_secs(120);
const MEMORY_MIB: u32 = 256;
const CMDLINE: &str =
    "console=hvc0 quiet reboot=k panic=-1 noreplace-smp tsc=reliable cryptomgr.notests random.trust_cpu=on";

/// A machine and the host's end of its agent's control channel.
struct Guest {
    vm: RunningVm,
    control: UnixStream,
    codec: ControlCodec,
    sent: u32,
}

impl Guest {
    /// Starts a machine after attaching its devices, of which `slots` are places for NICs.
    fn start(mut vm: Vm, slots: usize) -> Result<Guest, Error> {
        let (control, device_end) = UnixStream::pair().unwrap();
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = |name: &str, backend: Box<dyn PortBackend>| Port { name: Some(name.to_owned()), backend };
        let ports = vec![
            Port { name: None, backend: Box::new(LogPort::new(None).0) },
            port(CONTROL_PORT, Box::new(SocketPort::new(device_end))),
            port(STREAM_PORT, Box::new(LogPort::new(None).0)),
        ];
        vm.attach(Box::new(Console::new(vm.events(), ports)))?;
        let share = ShareTree::new().unwrap();
        vm.attach(Box::new(Fs::new("share", fs::server(&share), || {}).unwrap()))?;
        vm.attach(Box::new(Rng::new(vm.events())))?;
        vm.attach(Box::new(Balloon::new(vm.events(), vmm::discard)))?;
        for _ in 0..slots {
            vm.attach(Box::new(Slot::default()))?;
        }
        Ok(Guest { vm: vm.start()?, control, codec: ControlCodec::new(), sent: 0 })
    }

    fn boot(vcpus: u8) -> Guest {
        let config = VmConfig {
            memory_mib: MEMORY_MIB,
            vcpus,
            kernel: section(".linux"),
            initramfs: Some(section(".initrd")),
            cmdline: CMDLINE.to_owned(),
            serial: None,
            timeline: None,
            entries: Entries::default(),
        };
        let mut guest = Guest::start(Vm::new(config).unwrap(), 1).unwrap();
        assert_eq!(guest.receive().code, Code::Ready as u32);
        guest
    }

    fn restore(saved: &Saved) -> Guest {
        Guest::try_restore(saved, &saved.state, 1).unwrap()
    }

    fn try_restore(saved: &Saved, state: &[u8], slots: usize) -> Result<Guest, Error> {
        let snapshot = Snapshot::decode(state)?;
        let memory = saved.memory.try_clone().unwrap();
        let config = SavedConfig { snapshot, memory, timeline: None, entries: Entries::default() };
        Guest::start(Vm::restored(PendingVm::start()?, config)?, slots)
    }

    fn save(self) -> Result<Saved, SnapshotError> {
        let memory = tempfile::tempfile().unwrap();
        let snapshot = self.vm.save(&memory, b"test".to_vec(), |_| Ok(()))?;
        Ok(Saved { state: snapshot.encode(), memory })
    }

    fn extend(&mut self) {
        let mut bytes = Vec::new();
        let payload = serde_json::to_vec(&Extend { extension: EXTENSION_VERSION }).unwrap();
        ControlFrame { code: Code::Extend as u32, id: 0, payload }.encode(false, &mut bytes);
        self.control.write_all(&bytes).unwrap();
        self.codec.set_extended(true);
        assert_eq!(self.receive().code, Code::Ack as u32);
    }

    /// Sends a command without payload and returns the data of its reply.
    fn ask(&mut self, code: Code) -> Vec<u8> {
        self.sent += 1;
        let mut bytes = Vec::new();
        ControlFrame { code: code as u32, id: self.sent, payload: Vec::new() }.encode(true, &mut bytes);
        self.control.write_all(&bytes).unwrap();
        let reply = self.receive();
        assert_eq!((reply.code, reply.id), (Code::Ack as u32, self.sent), "{code:?}");
        reply.payload
    }

    fn wall_clock(&mut self) -> u64 {
        serde_json::from_slice::<ClockReading>(&self.ask(Code::ReadClock)).unwrap().realtime
    }

    fn receive(&mut self) -> ControlFrame {
        loop {
            if let Some(frame) = self.codec.next().unwrap() {
                return frame;
            }
            let mut bytes = [0; 4096];
            let count = match self.control.read(&mut bytes) {
                // The kernel may interrupt a read that has a deadline, to work for an io_uring of this process.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.expect("the agent answers"),
            };
            assert!(count > 0, "the guest has ended: {:?}", self.vm.end());
            self.codec.push(&bytes[..count]);
        }
    }

    /// Lets the guest reset itself.
    fn end(mut self) {
        self.ask(Code::DestroyPod);
        // The agent waits for that before the reset.
        drop(self.control);
        let mut ended = File::from(self.vm.end_fd().try_clone_to_owned().unwrap());
        ended.read_exact(&mut [0]).unwrap();
        assert_eq!(self.vm.stop(), vmm::VmEnd::Reset);
    }
}

/// A saved machine.
struct Saved {
    state: Vec<u8>,
    memory: File,
}

fn section(name: &str) -> Image {
    let file = File::open(program()).unwrap();
    let sections = vmm::elf::sections(&file).unwrap();
    let section = sections.iter().find(|section| section.name == name).expect("the program has its guest");
    Image { file, offset: section.offset, len: section.len, name: Path::new(name).to_owned() }
}

#[test]
fn two_machines_continue_where_one_was_saved() {
    let saved = Guest::boot(1).save().unwrap();
    let memory = saved.memory.metadata().unwrap().len();
    assert!(memory > 8 << 20 && memory < 64 << 20, "{memory} bytes of memory");
    let mut guests = [Guest::restore(&saved), Guest::restore(&saved)];
    for guest in &mut guests {
        // Nobody had spoken to the agent, which still waits for the first frame.
        guest.extend();
        guest.ask(Code::Ping);
    }
    guests.into_iter().for_each(Guest::end);
    // What they wrote is theirs.
    Snapshot::decode(&saved.state).unwrap().verify(&saved.memory).unwrap();
    Guest::restore(&saved).extend();
}

#[test]
fn the_guest_s_clock_goes_on_where_it_stood() {
    let mut guest = Guest::boot(1);
    guest.extend();
    let before = guest.wall_clock();
    let saved = guest.save().unwrap();
    let mut guest = Guest::restore(&saved);
    guest.codec.set_extended(true);
    let first = guest.wall_clock();
    assert!(first >= before, "{first} after {before}");
    // The time since the save has not passed: a machine that is restored later shows about the same.
    let pause = Duration::from_secs(5);
    let begin = std::time::Instant::now();
    while begin.elapsed() < pause {
        let now = guest.wall_clock();
        assert!(now >= first);
    }
    let passed = Duration::from_nanos(guest.wall_clock() - first);
    assert!(passed >= pause * 9 / 10 && passed < pause * 3, "{passed:?} in {:?}", begin.elapsed());
    let mut later = Guest::restore(&saved);
    later.codec.set_extended(true);
    let again = later.wall_clock();
    assert!(again >= before && again < first + 4_000_000_000, "{again} after {before}");
    later.end();
    guest.end();
}

#[test]
fn all_vcpus_continue() {
    let saved = Guest::boot(2).save().unwrap();
    let mut guest = Guest::restore(&saved);
    guest.extend();
    guest.ask(Code::Ping);
    guest.end();
}

#[test]
fn a_machine_that_was_restored_can_be_saved_again() {
    let saved = Guest::boot(1).save().unwrap();
    let mut guest = Guest::restore(&saved);
    guest.extend();
    let again = guest.save().unwrap();
    let mut guest = Guest::restore(&again);
    guest.codec.set_extended(true);
    guest.ask(Code::Ping);
    guest.end();
}

#[test]
fn other_devices_a_changed_file_and_damage_are_refused() {
    let saved = Guest::boot(1).save().unwrap();
    let refused = |slots, state: &[u8]| match Guest::try_restore(&saved, state, slots) {
        Err(Error::Snapshot(error)) => error,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("restored"),
    };
    for slots in [0, 2] {
        let error = refused(slots, &saved.state);
        assert!(matches!(error, SnapshotError::State(StateError::Foreign(_))), "{error}");
    }
    let mut damaged = saved.state.clone();
    damaged[300] ^= 1;
    assert!(matches!(refused(1, &damaged), SnapshotError::State(StateError::Damaged(_))));
    io::copy(&mut &[0; 9][..], &mut saved.memory.try_clone().unwrap()).unwrap();
    assert!(matches!(refused(1, &saved.state), SnapshotError::Changed));
}
