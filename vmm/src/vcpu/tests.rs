use std::time::Instant;

use devices::BusDevice;

use super::*;

/// A device that answers reads with the offset and writes with a fixed action.
struct Knob(Action);

impl BusDevice for Knob {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn write(&mut self, _offset: u64, _data: &[u8]) -> Action {
        self.0
    }
}

fn board() -> Board {
    let (mut pio, mut mmio) = (Bus::new(), Bus::new());
    pio.insert(0x64, 1, Box::new(Knob(Action::Reset))).unwrap();
    pio.insert(0x600, 4, Box::new(Knob(Action::Shutdown))).unwrap();
    mmio.insert(0xd000_0000, 0x1000, Box::new(Knob(Action::None))).unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    Board { pio, mmio, memory, stopping: AtomicBool::new(false), pause: Pause::default() }
}

#[test]
fn reads_return_the_device_s_answer_or_all_ones() {
    let board = board();
    let read = |exit: fn(&mut [u8]) -> VcpuExit<'_>| {
        let mut data = [0; 2];
        assert_eq!(handle(exit(&mut data), &board), None);
        data
    };
    assert_eq!(read(|data| VcpuExit::IoIn(0x602, data)), [2, 2]);
    assert_eq!(read(|data| VcpuExit::IoIn(0x3f8, data)), [0xff, 0xff]);
    assert_eq!(read(|data| VcpuExit::MmioRead(0xd000_0070, data)), [0x70, 0x70]);
    assert_eq!(read(|data| VcpuExit::MmioRead(0xfed0_0000, data)), [0xff, 0xff]);
}

#[test]
fn a_write_does_what_the_device_asks_for() {
    let board = board();
    assert_eq!(handle(VcpuExit::IoOut(0x64, &[0xfe]), &board), Some(Stop::Action(Action::Reset)));
    assert_eq!(handle(VcpuExit::IoOut(0x600, &[1, 2]), &board), Some(Stop::Action(Action::Shutdown)));
    assert_eq!(handle(VcpuExit::IoOut(0x80, &[0]), &board), None);
    assert_eq!(handle(VcpuExit::MmioWrite(0xd000_0070, &[0; 4]), &board), None);
    assert_eq!(handle(VcpuExit::MmioWrite(u64::MAX, &[0; 8]), &board), None);
}

#[test]
fn exits_without_a_request_continue() {
    let board = board();
    for exit in [VcpuExit::Intr, VcpuExit::Hlt, VcpuExit::IrqWindowOpen] {
        assert_eq!(handle(exit, &board), None);
    }
}

#[test]
fn a_bus_lock_takes_its_vcpu_a_millisecond() {
    let board = board();
    let start = Instant::now();
    for _ in 0..5 {
        assert_eq!(handle(VcpuExit::Unsupported(KVM_EXIT_X86_BUS_LOCK), &board), None);
    }
    assert!(start.elapsed() >= 5 * BUS_LOCK_PAUSE);
}

#[test]
fn exits_that_end_the_machine_say_why() {
    let board = board();
    assert_eq!(handle(VcpuExit::Shutdown, &board), Some(Stop::TripleFault));
    assert_eq!(handle(VcpuExit::InternalError, &board), Some(Stop::InternalError));
    assert_eq!(handle(VcpuExit::SystemEvent(2, &[]), &board), Some(Stop::SystemEvent(2)));
    assert_eq!(handle(VcpuExit::FailEntry(7, 1), &board), Some(Stop::FailEntry { reason: 7, cpu: 1 }));
    let fault = VcpuExit::MemoryFault { flags: 0, gpa: 0x1234, size: 1 };
    assert_eq!(handle(fault, &board), Some(Stop::MemoryFault { addr: 0x1234 }));
    assert!(matches!(handle(VcpuExit::Unsupported(99), &board), Some(Stop::Unexpected(_))));
}

#[test]
fn an_internal_error_names_its_kind() {
    let error = |suberror, data: &[u64]| describe(&kvm::InternalError { suberror, data: data.to_vec() });
    assert_eq!(error(1, &[]), "kvm could not emulate an instruction");
    assert_eq!(error(3, &[0x10, 2]), "kvm internal error 3, data [10, 2]");
}
