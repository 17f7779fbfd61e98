//! KVM: the file descriptors of a virtual machine, and all calls that configure it.

// UNSAFETY: memory slots hand raw mappings to KVM, and an exit's details are in C unions.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::{self, Builder, JoinHandle};
use std::time::Duration;

use devices::virtio::mmio::page::RegisterPages;
use devices::{Decoder, Encoder, StateError};
use kvm_bindings::{
    CpuId, KVM_BUS_LOCK_DETECTION_EXIT, KVM_CAP_PMU_CAPABILITY, KVM_CAP_X86_BUS_LOCK_EXIT,
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES,
    KVM_MEM_READONLY, KVM_PMU_CAP_DISABLE, Msrs, kvm_clock_data, kvm_enable_cap, kvm_irqchip, kvm_run,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemory, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::deferral::Deferral;
use crate::layout::KVM_TSS_START;
use crate::loader::Entry;
use crate::snapshot::plain::{put, take};
use crate::{cpuid, module, msrs, segments};

pub(crate) mod error;

pub use error::KvmError;
use error::{RestoreError, call};

/// How long [`PendingVm::start`] sleeps to let its thread run.
const HEAD_START: Duration = Duration::from_micros(400);
/// How long [`PendingVm::advance`] sleeps.
const PAUSE: Duration = Duration::from_micros(100);
/// Pause between two SRCU grace periods. The kernel expedites a grace period only if the domain has been idle for
/// srcutree.exp_holdoff (25 µs) since the previous one; otherwise the grace period takes milliseconds.
const HOLDOFF: Duration = Duration::from_micros(50);

/// A virtual machine that is being created in its own thread.
///
/// On many hosts KVM_CREATE_VM sleeps for milliseconds: it moves a kernel thread of the machine into the caller's
/// cgroup, which takes an RCU grace period. The caller continues its own work meanwhile.
pub struct PendingVm {
    thread: Option<JoinHandle<Result<KvmVm, KvmError>>>,
}

impl PendingVm {
    /// Starts to create a virtual machine, then sleeps until the machine is created, at most [`HEAD_START`].
    ///
    /// On a single CPU a new thread runs only when its creator sleeps or has used up its time slice; the same is true
    /// of the kernel thread that KVM starts. Without the sleep the grace period would start too late to overlap with
    /// the caller's work.
    pub fn start() -> Result<PendingVm, KvmError> {
        let (over, ended) = channel::<()>();
        // Here and not in the thread: the caller may be about to join a cgroup that forbids it.
        let kvm = open();
        let create = move || {
            let vm = kvm.and_then(|kvm| match module::foreign_kind() {
                Some(kind) => Err(KvmError::Foreign { kind }),
                None => KvmVm::create(kvm),
            });
            drop(over);
            vm
        };
        let thread = Builder::new().name("kvm-create".into()).spawn(create).map_err(KvmError::Thread)?;
        // Nothing is ever sent: this returns when the thread drops its sender, or at the timeout.
        if ended.recv_timeout(HEAD_START) == Err(RecvTimeoutError::Timeout) {
            // On a single CPU the end of the sleep interrupts the thread, which has little left to do until it waits.
            thread::yield_now();
        }
        Ok(PendingVm { thread: Some(thread) })
    }

    /// Lets the threads run that create the machine. The kernel thread that KVM starts is often created in the last moment of
    /// [`HEAD_START`], and runs only when this thread sleeps once more; then it joins the cgroup, and the grace period begins.
    pub(crate) fn advance(&self) {
        if !self.is_ready() {
            thread::sleep(PAUSE);
        }
    }

    /// Whether [`wait`](Self::wait) returns at once.
    pub(crate) fn is_ready(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the machine is created.
    pub(crate) fn wait(mut self) -> Result<KvmVm, KvmError> {
        let thread = self.thread.take().expect("only this and drop take it");
        thread.join().unwrap_or_else(|_| Err(KvmError::Thread(io::Error::other("the thread panicked"))))
    }
}

impl Drop for PendingVm {
    /// Joins the thread if `wait` was not called, so that no thread is left running.
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Opens /dev/kvm.
pub(crate) fn open() -> Result<Kvm, KvmError> {
    Kvm::new().map_err(|error| KvmError::Open(io::Error::from_raw_os_error(error.errno())))
}

/// A virtual machine with its interrupt controllers.
pub struct KvmVm {
    kvm: Kvm,
    vm: VmFd,
    /// Connected interrupts: the eventfd and its GSI.
    irqs: Vec<(Arc<EventFd>, u32)>,
    /// Dropped last, so that the kernel destroys the machine in the background.
    deferral: Option<Deferral>,
}

impl KvmVm {
    /// Creates a machine with in-kernel PICs, IOAPIC and local APICs. It has no PIT: guests do not need
    /// one, and destroying it takes milliseconds.
    pub fn create(kvm: Kvm) -> Result<KvmVm, KvmError> {
        let vm = kvm.create_vm().map_err(call("create a virtual machine"))?;
        vm.set_tss_address(KVM_TSS_START as usize).map_err(call("place the TSS pages"))?;
        vm.create_irq_chip().map_err(call("create the interrupt controllers"))?;
        for (cap, value, step) in LIMITS {
            limit(&vm, cap, value).map_err(call(step))?;
        }
        Ok(KvmVm { kvm, vm, irqs: Vec::new(), deferral: None })
    }

    /// Lets the kernel destroy the machine in the background at its end. `vcpus` are all its vCPUs. Without io_uring the end of
    /// the process waits for it.
    pub fn defer_destruction(&mut self, vcpus: &[VcpuFd]) {
        let vcpus = vcpus.iter().map(AsRawFd::as_raw_fd);
        let files: Vec<RawFd> = [self.vm.as_raw_fd()].into_iter().chain(vcpus).collect();
        match Deferral::new(&files) {
            Ok(deferral) => self.deferral = Some(deferral),
            Err(error) => log::debug!("kvm: destroy the machine in the background: {error}"),
        }
    }

    /// Registers `memory` as the guest's physical memory.
    pub fn set_memory(&self, memory: &GuestMemoryMmap) -> Result<(), KvmError> {
        for (slot, region) in memory.iter().enumerate() {
            let host = region.as_ptr();
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: the region is a mapping of this size that stays until the process ends (memory.rs). All other
            // accesses to guest memory are volatile.
            unsafe { self.vm.set_user_memory_region(slot) }.map_err(call("set a memory slot"))?;
        }
        Ok(())
    }

    /// Maps the first `len` bytes of `pages` into the guest at `addr`, in memory slot `slot`. The guest can only read
    /// them: its writes are exits, as without the mapping.
    pub fn map_registers(
        &self,
        pages: &RegisterPages,
        len: u64,
        addr: u64,
        slot: u32,
    ) -> Result<(), KvmError> {
        assert!(len <= pages.region().size() as u64);
        let slot = kvm_userspace_memory_region {
            slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: addr,
            memory_size: len,
            userspace_addr: pages.region().as_ptr() as u64,
        };
        // SAFETY: the machine keeps the pages, of which there are `len` bytes, until its vCPUs have stopped. Other threads
        // change them by atomic stores.
        unsafe { self.vm.set_user_memory_region(slot) }.map_err(call("map the devices' registers"))
    }

    /// Makes `irq` raise interrupt `gsi`. KVM's default routing connects each GSI to the IOAPIC pin of the same number.
    pub fn connect_irq(&mut self, irq: &Arc<EventFd>, gsi: u32) -> Result<(), KvmError> {
        self.vm.register_irqfd(irq, gsi).map_err(call("connect an interrupt"))?;
        self.irqs.push((irq.clone(), gsi));
        Ok(())
    }

    /// Makes a 32-bit write of `value` to guest address `addr` signal `kick` without an exit to user space.
    pub fn connect_kick(&self, kick: &EventFd, addr: u64, value: u32) -> Result<(), KvmError> {
        let at = IoEventAddress::Mmio(addr);
        self.vm.register_ioevent(kick, &at, value).map_err(call("connect a queue's notification"))
    }

    /// Returns the CPUID table that all `vcpus` vCPUs share, to be completed by [`cpuid::personalize`].
    pub fn cpuid(&self, vcpus: u8) -> Result<Vec<kvm_bindings::kvm_cpuid_entry2>, KvmError> {
        let supported =
            self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(call("read the supported cpuid"))?;
        let tsc_deadline = self.kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(cpuid::template(supported.as_slice(), vcpus, tsc_deadline))
    }

    /// Writes the interrupt controllers and the clock, of a machine whose vCPUs do not run.
    pub fn save(&self, state: &mut Encoder) -> Result<(), KvmError> {
        put(state, &self.vm.get_clock().map_err(call("read the clock"))?);
        for chip_id in IRQ_CHIPS {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            self.vm.get_irqchip(&mut chip).map_err(call("read an interrupt controller"))?;
            put(state, &chip);
        }
        Ok(())
    }

    /// Continues from what [`save`](Self::save) wrote, after the vCPUs have.
    pub fn restore(&self, state: &mut Decoder) -> Result<(), RestoreError> {
        let saved: kvm_clock_data = take(state)?;
        // Without a flag for the real time, which would let the guest's monotonic clock jump by the time since.
        let clock = kvm_clock_data { clock: saved.clock, ..Default::default() };
        self.vm.set_clock(&clock).map_err(call("set the clock"))?;
        for chip_id in IRQ_CHIPS {
            let chip: kvm_irqchip = take(state)?;
            if chip.chip_id != chip_id {
                return Err(StateError::Damaged("another interrupt controller").into());
            }
            self.vm.set_irqchip(&chip).map_err(call("set an interrupt controller"))?;
        }
        Ok(())
    }

    /// The model-specific registers that KVM lists as a guest's state.
    pub fn listed_msrs(&self) -> Result<Vec<u32>, KvmError> {
        let list = self.kvm.get_msr_index_list().map_err(call("list the model-specific registers"))?;
        Ok(list.as_slice().to_vec())
    }

    /// Creates vCPU `id` with its CPUID and MSRs. All vCPUs but the first wait until the guest starts them.
    pub fn create_vcpu(
        &self,
        id: u8,
        table: &mut [kvm_bindings::kvm_cpuid_entry2],
    ) -> Result<VcpuFd, KvmError> {
        let vcpu = self.vm.create_vcpu(u64::from(id)).map_err(call("create a vcpu"))?;
        cpuid::personalize(table, id);
        let table = CpuId::from_entries(table).expect("KVM's table fits the wrapper KVM's table came in");
        vcpu.set_cpuid2(&table).map_err(call("set a vcpu's cpuid"))?;
        let boot = msrs::boot();
        let msrs = Msrs::from_entries(&boot).expect("two entries fit");
        let taken = vcpu.set_msrs(&msrs).map_err(call("set a vcpu's model-specific registers"))?;
        match boot.get(taken) {
            Some(msr) => Err(KvmError::Msr { index: msr.index }),
            None => Ok(vcpu),
        }
    }
}

/// The interrupt controllers that KVM emulates besides the local APICs.
const IRQ_CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// What KVM takes from a guest if the host has it: a capability, its argument, and the step.
///
/// - Performance counters, with which a guest could watch the host. CPUID hides them, but KVM serves their registers all
///   the same (KVM API 8.35). A kernel before 5.18 has no such switch.
/// - Bus locks, which slow down all CPUs of the host: each is an exit (KVM API 7.26), and the vCPU loop limits them. CPUs
///   that cannot detect them have no such switch.
const LIMITS: [(u32, u32, &str); 2] = [
    (KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE, "disable the performance counters"),
    (KVM_CAP_X86_BUS_LOCK_EXIT, KVM_BUS_LOCK_DETECTION_EXIT, "detect bus locks"),
];

/// Enables a capability with an argument that is a bit of the supported ones. Does nothing if it is not supported.
fn limit(vm: &VmFd, cap: u32, value: u32) -> Result<(), kvm_ioctls::Error> {
    let supported = vm.check_extension_raw(cap.into()) as u32;
    if supported & value == 0 {
        return Ok(());
    }
    let mut enabled = kvm_enable_cap { cap, ..Default::default() };
    enabled.args[0] = value.into();
    vm.enable_cap(&enabled)
}

impl Drop for KvmVm {
    /// Unless the kernel destroys the machine in the background, disconnects the interrupts one by one, with a pause
    /// between them. Each takes a grace period of the machine's SRCU domain. Without the pauses, as when KVM disconnects
    /// them with the machine, the grace periods follow each other immediately and take 8 million instructions more.
    fn drop(&mut self) {
        if self.deferral.is_some() {
            return;
        }
        for (n, (irq, gsi)) in self.irqs.iter().enumerate() {
            if n > 0 {
                thread::sleep(HOLDOFF);
            }
            if let Err(error) = self.vm.unregister_irqfd(irq, *gsi) {
                log::warn!("kvm: disconnect interrupt {gsi}: {error}");
            }
        }
    }
}

/// Sets the registers of `vcpu` so that it starts at `entry`.
pub fn set_entry(vcpu: &VcpuFd, entry: Entry) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(call("read a vcpu's system registers"))?;
    segments::set_sregs(&mut sregs, entry);
    vcpu.set_sregs(&sregs).map_err(call("set a vcpu's system registers"))?;
    vcpu.set_regs(&segments::regs(entry)).map_err(call("set a vcpu's registers"))
}

/// Details of a KVM_EXIT_INTERNAL_ERROR (KVM API 5, `struct kvm_run`).
#[derive(Debug, PartialEq, Eq)]
pub struct InternalError {
    /// KVM_INTERNAL_ERROR_* code.
    pub suberror: u32,
    /// Words whose meaning depends on `suberror`.
    pub data: Vec<u64>,
}

/// Reads the details of a KVM_EXIT_INTERNAL_ERROR. The caller must have seen that exit reason.
pub fn internal_error(run: &kvm_run) -> InternalError {
    // SAFETY: the caller saw this exit reason, for which KVM fills this member. Any bytes are a valid value of it.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let count = (internal.ndata as usize).min(internal.data.len());
    InternalError { suberror: internal.suberror, data: internal.data[..count].to_vec() }
}
