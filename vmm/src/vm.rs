//! Assembles a machine: memory, kernel, buses, devices, vCPUs.

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use devices::mark::{MARK_PORT, MARK_PORT_LEN, MarkPort};
use devices::reset::{RESET_PORT, RESET_PORT_LEN, ResetPort};
use devices::serial::{SERIAL_PORT, SERIAL_PORT_LEN, Serial};
use devices::virtio::VirtioDevice;
use devices::virtio::mmio::page::RegisterPages;
use devices::virtio::mmio::{MMIO_SIZE, MmioTransport, NOTIFY_OFFSET};
use devices::{Bus, Decoder, EventLoop, LoopHandle, StateError};
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::VcpuFd;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::end::End;
use crate::kvm::{self, KvmVm, PendingVm};
use crate::layout::{
    self, DEVICES_MAX, DeviceResources, MEMORY_MIB_MAX, PAGE_SIZE, RamRange, SERIAL_GSI, TIMER_GSI,
    VCPUS_MAX, VIRTIO_MMIO_START,
};
use crate::loader::{Entry, Kernel};
use crate::memory::GuestRam;
use crate::pause_order::Pause;
use crate::running::RunningVm;
use crate::signal::WaitingThread;
use crate::snapshot::{Snapshot, SnapshotError, plain, vcpu as vcpu_state};
use crate::vcpu::{self, Board};
use crate::{
    Entries, Error, Result, SavedConfig, Timeline, VmConfig, boot_params, mptable, paging, pvh, segments,
};

/// Memory that a guest needs beyond its kernel image and its initramfs until it runs its first program.
const WORKING_MEMORY: u64 = 16 << 20;

/// A virtio device's interrupt and its queues' kicks, which [`connect`] registers with KVM when the machine starts.
struct Wiring {
    resources: DeviceResources,
    /// No device will ever be there: nothing is registered.
    is_placeholder: bool,
    irq: Arc<EventFd>,
    kicks: Vec<Arc<EventFd>>,
}

/// Where the guest starts.
enum Start {
    /// At the entry point of a kernel, which is loaded. The vCPUs are created when the machine starts.
    Kernel { pending: PendingVm, kernel: Kernel, initramfs: Option<RamRange>, cmdline: String },
    /// Where a saved machine stopped. The vCPUs and the devices get their state when the machine starts.
    Saved { pending: PendingVm, snapshot: Snapshot, memory: File },
}

/// A machine that does not run yet. Its memory is mapped and has its kernel; devices can be attached.
pub struct Vm {
    ram: GuestRam,
    ranges: Vec<RamRange>,
    start: Start,
    vcpus: u8,
    pio: Bus,
    mmio: Bus,
    serial_irq: Option<Arc<EventFd>>,
    wiring: Vec<Wiring>,
    pages: RegisterPages,
    events: EventLoop,
    timeline: Option<Arc<Timeline>>,
    entries: Entries,
}

impl Vm {
    /// Creates a machine with its memory, kernel and I/O ports from `config`.
    pub fn new(config: VmConfig) -> Result<Vm> {
        Vm::with(PendingVm::start()?, config)
    }

    /// Like [`Vm::new`], with a KVM machine whose creation the caller started earlier, before it had `config`.
    pub fn with(pending: PendingVm, config: VmConfig) -> Result<Vm> {
        check_shape(&config)?;
        let kernel = Kernel::read(&config.kernel)?;
        let ranges = layout::ram_ranges(config.memory_mib);
        let initramfs = plan_initramfs(&config, &kernel, &ranges)?;
        let ram = GuestRam::new(&ranges)?;
        kernel.load(&config.kernel, &ram)?;
        if let (Some(image), Some(range)) = (&config.initramfs, initramfs) {
            ram.load(image, 0, range.start, range.len)?;
        }
        let start = Start::Kernel { pending, kernel, initramfs, cmdline: config.cmdline };
        let mut vm = Vm::assemble((ram, ranges), start, config.vcpus, config.timeline, config.entries)?;
        vm.add_ports(config.serial)?;
        Ok(vm)
    }

    /// Like [`Vm::with`], but the machine continues where a saved one stopped. Its devices must be attached as those of that
    /// machine were. KVM, which mostly waits while it creates a machine, is asked as late as for a boot: a host that differs and a
    /// state that it refuses are errors of [`Vm::hold`].
    ///
    /// # Errors
    ///
    /// The memory's file is not the one that was saved, or cannot be mapped.
    pub fn restored(pending: PendingVm, config: SavedConfig) -> Result<Vm> {
        let SavedConfig { snapshot, memory, timeline, entries } = config;
        pending.advance();
        snapshot.owns(&memory)?;
        let (ranges, vcpus) = (layout::ram_ranges(snapshot.memory_mib), snapshot.vcpus);
        let ram = GuestRam::restored(&ranges, &memory, &snapshot.extents, &snapshot.working_set)?;
        let start = Start::Saved { pending, snapshot, memory };
        let mut vm = Vm::assemble((ram, ranges), start, vcpus, timeline, entries)?;
        vm.add_ports(None)?;
        Ok(vm)
    }

    fn assemble(
        (ram, ranges): (GuestRam, Vec<RamRange>),
        start: Start,
        vcpus: u8,
        timeline: Option<Arc<Timeline>>,
        entries: Entries,
    ) -> Result<Vm> {
        let events = EventLoop::start("devices", entries.devices).map_err(host("start the device thread"))?;
        Ok(Vm {
            ram,
            ranges,
            start,
            vcpus,
            pio: Bus::new(),
            mmio: Bus::new(),
            serial_irq: None,
            wiring: Vec::new(),
            pages: RegisterPages::new(DEVICES_MAX)
                .map_err(|error| host("reserve the devices' registers")(io::Error::other(error)))?,
            events,
            timeline,
            entries,
        })
    }

    /// Adds the devices that are not virtio devices to the I/O port bus.
    fn add_ports(&mut self, serial: Option<Box<dyn io::Write + Send>>) -> Result<()> {
        self.pio.insert(RESET_PORT, RESET_PORT_LEN, Box::new(ResetPort))?;
        if let Some(timeline) = self.timeline.clone() {
            let sink = Box::new(move |byte| timeline.guest_mark(byte));
            self.pio.insert(MARK_PORT, MARK_PORT_LEN, Box::new(MarkPort::new(sink)))?;
        }
        if let Some(out) = serial {
            let irq = eventfd()?;
            let line = irq.try_clone().map_err(host("clone an interrupt's descriptor"))?;
            self.pio.insert(SERIAL_PORT, SERIAL_PORT_LEN, Box::new(Serial::new(line, out)))?;
            self.serial_irq = Some(Arc::new(irq));
        }
        Ok(())
    }

    /// Handle of the machine's event loop, for devices that are served on it.
    pub fn events(&self) -> LoopHandle {
        self.events.handle()
    }

    /// The machine's memory, for devices that the host's kernel serves (vhost).
    pub fn memory(&self) -> &GuestMemoryMmap {
        self.ram.memory()
    }

    /// Attaches a virtio device. The guest enumerates devices in the order of the calls.
    pub fn attach(&mut self, device: Box<dyn VirtioDevice>) -> Result<()> {
        self.insert(device, false)
    }

    /// Attaches a slot in which there will never be a device, so that the machine has the places of a saved one.
    pub fn attach_placeholder(&mut self, slot: Box<dyn VirtioDevice>) -> Result<()> {
        self.insert(slot, true)
    }

    fn insert(&mut self, device: Box<dyn VirtioDevice>, is_placeholder: bool) -> Result<()> {
        let resources =
            layout::device_resources(self.wiring.len()).ok_or(Error::TooManyDevices { max: DEVICES_MAX })?;
        let irq = Arc::new(eventfd()?);
        let page = self.pages.page(self.wiring.len());
        let transport = MmioTransport::new(device, self.ram.memory().clone(), irq.clone(), page)
            .map_err(host("make a device's transport"))?;
        let kicks = transport.kicks().to_vec();
        self.mmio.insert(resources.base, MMIO_SIZE, Box::new(transport))?;
        self.wiring.push(Wiring { resources, is_placeholder, irq, kicks });
        Ok(())
    }

    /// Starts the vCPUs. No device can be attached afterwards.
    pub fn start(self) -> Result<RunningVm> {
        let running = self.hold()?;
        running.release();
        Ok(running)
    }

    /// Like [`Vm::start`], but the guest runs only after [`RunningVm::release`], when the machine's threads have given
    /// up their rights.
    pub fn hold(self) -> Result<RunningVm> {
        self.write_tables()?;
        let end = Arc::new(End::new().map_err(host("make a pipe"))?);
        // They give up their rights while KVM creates the machine.
        let threads =
            (0..self.vcpus).map(|index| WaitingThread::spawn(format!("vcpu{index}"), self.entries.vcpu));
        let threads = threads.collect::<io::Result<Vec<_>>>().map_err(host("start a vcpu thread"))?;
        let (mut vm, fds, mapped) = match self.start {
            Start::Kernel { pending, kernel, .. } => {
                let mut vm = pending.wait()?;
                mark(&self.timeline, "vm_created");
                vm.set_memory(self.ram.memory())?;
                connect(&mut vm, &self.pages, self.ranges.len(), self.serial_irq.as_ref(), &self.wiring)?;
                let fds = create_vcpus(&vm, self.vcpus, kernel.entry)?;
                (vm, fds, Vec::new())
            }
            Start::Saved { pending, snapshot, memory } => {
                // All else that can be done before KVM has created the machine is done.
                let is_ready = || pending.is_ready();
                self.ram
                    .prepare(&memory, &snapshot.extents, &snapshot.working_set, is_ready)
                    .map_err(SnapshotError::from)?;
                let mut vm = pending.wait()?;
                mark(&self.timeline, "vm_created");
                vm.set_memory(self.ram.memory())?;
                let fds = continue_vcpus(&vm, &snapshot)?;
                // The interrupt controllers have their state.
                connect(&mut vm, &self.pages, self.ranges.len(), None, &self.wiring)?;
                // From here on the devices raise interrupts.
                let states = snapshot.devices.iter().map(|(base, state)| (*base, &state[..]));
                self.mmio.restore(states).map_err(SnapshotError::from)?;
                (vm, fds, snapshot.extents)
            }
        };
        vm.defer_destruction(&fds);
        let board = Arc::new(Board {
            pio: self.pio,
            mmio: self.mmio,
            memory: self.ram.memory().clone(),
            stopping: AtomicBool::new(false),
            pause: Pause::default(),
        });
        let gate = Arc::new(OnceLock::new());
        let mut running = RunningVm {
            vcpus: Vec::new(),
            events: self.events,
            board,
            end,
            gate,
            vm,
            mapped,
            _pages: self.pages,
        };
        for (index, (thread, fd)) in threads.into_iter().zip(fds).enumerate() {
            let gate = running.gate.clone();
            let (board, end) = (running.board.clone(), running.end.clone());
            let timeline = self.timeline.clone().filter(|_| index == 0);
            // If one thread has ended, dropping `running` stops the others.
            let thread = thread.run(fd, move |fd| {
                gate.wait();
                mark(&timeline, "vcpu_running");
                end.report(vcpu::run(fd, index, &board));
            });
            running.vcpus.push(thread.map_err(host("start a vcpu thread"))?);
        }
        Ok(running)
    }

    /// The interrupts that a device may raise, and the timer's: Linux complains if the timer has no pin.
    fn gsis(&self) -> Vec<u32> {
        let serial = self.serial_irq.as_ref().map(|_| SERIAL_GSI);
        [TIMER_GSI].into_iter().chain(serial).chain(self.wiring.iter().map(|w| w.resources.gsi)).collect()
    }

    /// Writes the boot parameters, page tables, descriptor tables and MP table that the kernel and the first vCPU read
    /// at the entry point.
    fn write_tables(&self) -> Result<()> {
        let Start::Kernel { kernel, initramfs, cmdline, .. } = &self.start else { return Ok(()) };
        let memory = self.ram.memory();
        let devices: Vec<_> = self.wiring.iter().map(|w| w.resources).collect();
        let cmdline = boot_params::command_line(cmdline, &devices)?;
        match kernel.entry {
            Entry::Linux64(_) => boot_params::write(memory, kernel.setup, &cmdline, &self.ranges, *initramfs),
            Entry::Pvh(_) => pvh::write(memory, &cmdline, &self.ranges, *initramfs),
        }
        .and_then(|()| paging::write(memory).map(drop))
        .and_then(|()| segments::write_tables(memory, kernel.entry))
        .and_then(|()| mptable::write(memory, self.vcpus, &self.gsis()))
        .map_err(|error| host("write the boot tables")(io::Error::other(error)))
    }
}

/// Refuses a number of vCPUs or a memory size that is not supported.
fn check_shape(config: &VmConfig) -> Result<()> {
    if !(1..=VCPUS_MAX).contains(&config.vcpus) {
        return Err(Error::BadVcpus { vcpus: config.vcpus, max: VCPUS_MAX });
    }
    if config.memory_mib > MEMORY_MIB_MAX {
        return Err(Error::TooMuchMemory { have_mib: config.memory_mib, max_mib: MEMORY_MIB_MAX });
    }
    Ok(())
}

/// Chooses the initramfs's address, and refuses a machine whose kernel would run out of memory while booting.
fn plan_initramfs(config: &VmConfig, kernel: &Kernel, ranges: &[RamRange]) -> Result<Option<RamRange>> {
    let len = config.initramfs.as_ref().map_or(0, |image| image.len);
    let pages = len.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX);
    let need = kernel.end.saturating_add(pages).saturating_add(WORKING_MEMORY);
    let too_little = || Error::TooLittleMemory {
        kernel: config.kernel.name.clone(),
        have_mib: config.memory_mib,
        need_mib: need.div_ceil(1 << 20),
    };
    if need > ranges[0].len {
        return Err(too_little());
    }
    if len == 0 {
        return Ok(None);
    }
    let reach = kernel.setup.map_or(u64::from(u32::MAX), |setup| u64::from(setup.initrd_addr_max));
    let start = boot_params::initramfs_address(ranges, reach, kernel.end, len).ok_or_else(too_little)?;
    Ok(Some(RamRange { start, len }))
}

/// Maps the devices' registers into the guest, in memory slot `slot`, and registers every interrupt and kick with KVM.
fn connect(
    vm: &mut KvmVm,
    pages: &RegisterPages,
    slot: usize,
    serial_irq: Option<&Arc<EventFd>>,
    wiring: &[Wiring],
) -> Result<()> {
    if !wiring.is_empty() {
        let len = wiring.len() as u64 * MMIO_SIZE;
        vm.map_registers(pages, len, VIRTIO_MMIO_START, slot as u32)?;
    }
    if let Some(irq) = serial_irq {
        vm.connect_irq(irq, SERIAL_GSI)?;
    }
    for device in wiring.iter().filter(|device| !device.is_placeholder) {
        vm.connect_irq(&device.irq, device.resources.gsi)?;
        for (queue, kick) in device.kicks.iter().enumerate() {
            vm.connect_kick(kick, device.resources.base + NOTIFY_OFFSET, queue as u32)?;
        }
    }
    Ok(())
}

/// Creates the vCPUs. The first starts at `entry`; the others wait until the guest starts them.
fn create_vcpus(vm: &KvmVm, vcpus: u8, entry: Entry) -> Result<Vec<VcpuFd>> {
    let mut table = vm.cpuid(vcpus)?;
    let mut fds = Vec::with_capacity(vcpus.into());
    for id in 0..vcpus {
        let fd = vm.create_vcpu(id, &mut table)?;
        if id == 0 {
            kvm::set_entry(&fd, entry)?;
        }
        fds.push(fd);
    }
    Ok(fds)
}

/// Creates vCPUs that continue where those of `snapshot` stopped, and lets the interrupt controllers and the clock continue.
fn continue_vcpus(vm: &KvmVm, snapshot: &Snapshot) -> Result<Vec<VcpuFd>, SnapshotError> {
    let mut table = vm.cpuid(snapshot.vcpus)?;
    let mut state = Decoder::new(&snapshot.processors);
    let same = state.u32()? as usize == table.len();
    for entry in table.iter().take_while(|_| same) {
        let saved: kvm_cpuid_entry2 = plain::take(&mut state)?;
        if plain::bytes(&saved) != plain::bytes(entry) {
            return Err(StateError::Foreign("the host's cpu or its kvm has other features").into());
        }
    }
    if !same {
        return Err(StateError::Foreign("the host's cpu or its kvm has other features").into());
    }
    let mut fds = Vec::with_capacity(snapshot.vcpus.into());
    for id in 0..snapshot.vcpus {
        let fd = vm.create_vcpu(id, &mut table)?;
        vcpu_state::restore(&fd, id == 0, &mut state)?;
        fds.push(fd);
    }
    vm.restore(&mut state)?;
    state.end()?;
    Ok(fds)
}

fn eventfd() -> Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("make an eventfd"))
}

fn host(step: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Host { step, source }
}

fn mark(timeline: &Option<Arc<Timeline>>, name: &'static str) {
    if let Some(timeline) = timeline {
        timeline.mark(name);
    }
}

#[cfg(test)]
mod tests;
