//! KVM: the virtual machine's file descriptors, and every call that shapes it.

// UNSAFETY: memory slots hand raw mappings to KVM, and an exit's details are in C unions.
#![allow(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{self, Builder, JoinHandle};
use std::time::Duration;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_run, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemory, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::layout::KVM_TSS_START;
use crate::loader::Entry;
use crate::{check, cpuid, msrs, segments};

/// How long the maker of a pending machine steps aside for it.
const HEAD_START: Duration = Duration::from_micros(300);
/// How long the kernel takes a read-copy-update domain for busy after its last grace period (srcutree.exp_holdoff is
/// 25 µs), and a bit: past it the next one is quick, within it it takes milliseconds.
const HOLDOFF: Duration = Duration::from_micros(50);

/// What KVM refused.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no KVM for this process.
    #[error("open /dev/kvm")]
    Open(#[source] io::Error),
    /// This KVM is made for guests that know it.
    #[error("/dev/kvm is {kind}")]
    Foreign {
        /// Which it is.
        kind: &'static str,
    },
    /// A call failed.
    #[error("kvm: {step}")]
    Call {
        /// What the call was for.
        step: &'static str,
        /// What KVM said.
        source: io::Error,
    },
    /// KVM took fewer registers than it was given.
    #[error("kvm: set model-specific register {index:#x}")]
    Msr {
        /// The first that it did not take.
        index: u32,
    },
    /// The thread that opens KVM could not be started or died.
    #[error("kvm: start a thread")]
    Thread(#[source] io::Error),
}

/// Names the step in a failed call's error.
fn call(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |error| KvmError::Call { step, source: io::Error::from_raw_os_error(error.errno()) }
}

/// A virtual machine that is being created in a thread of its own.
///
/// On many hosts KVM_CREATE_VM sleeps for milliseconds: it moves a kernel thread of the machine into the caller's
/// cgroup, which takes an RCU grace period. The caller has better things to do meanwhile.
pub struct PendingVm {
    thread: Option<JoinHandle<Result<KvmVm, KvmError>>>,
}

impl PendingVm {
    /// Starts to create a virtual machine, and steps aside until that waits, at most [`HEAD_START`].
    ///
    /// Where there is one CPU to run on, a new thread comes to run only when its maker sleeps or has used up its time
    /// slice, and so does the kernel thread that KVM starts; the grace period would begin when the maker is done.
    pub fn start() -> Result<PendingVm, KvmError> {
        let (over, ended) = channel::<()>();
        let create = move || {
            let vm = match check::foreign_kind() {
                Some(kind) => Err(KvmError::Foreign { kind }),
                None => KvmVm::create(),
            };
            drop(over);
            vm
        };
        let thread = Builder::new().name("kvm-create".into()).spawn(create).map_err(KvmError::Thread)?;
        // Nothing is ever sent: this ends with the thread's work or with the time.
        let _ = ended.recv_timeout(HEAD_START);
        Ok(PendingVm { thread: Some(thread) })
    }

    /// Waits for it.
    pub(crate) fn wait(mut self) -> Result<KvmVm, KvmError> {
        let thread = self.thread.take().expect("only this and drop take it");
        thread.join().unwrap_or_else(|_| Err(KvmError::Thread(io::Error::other("it panicked"))))
    }
}

impl Drop for PendingVm {
    /// Waits for a machine that nobody wants any more: no thread is left behind.
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A virtual machine with its interrupt controllers.
pub struct KvmVm {
    kvm: Kvm,
    vm: VmFd,
    /// Interrupts that are connected.
    irqs: Vec<(Arc<EventFd>, u32)>,
}

impl KvmVm {
    /// Opens KVM and creates a machine: in-kernel PICs, IOAPIC and local APICs; no PIT, which nothing here needs and
    /// whose end costs milliseconds.
    pub fn create() -> Result<KvmVm, KvmError> {
        let kvm = Kvm::new().map_err(|error| KvmError::Open(io::Error::from_raw_os_error(error.errno())))?;
        let vm = kvm.create_vm().map_err(call("create a virtual machine"))?;
        vm.set_tss_address(KVM_TSS_START as usize).map_err(call("place the TSS pages"))?;
        vm.create_irq_chip().map_err(call("create the interrupt controllers"))?;
        Ok(KvmVm { kvm, vm, irqs: Vec::new() })
    }

    /// Makes guest memory what the guest sees.
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
            // SAFETY: the region is a mapping of this size that stays until the process ends (memory.rs), and guest
            // memory is nowhere referred to but through volatile accesses.
            unsafe { self.vm.set_user_memory_region(slot) }.map_err(call("set a memory slot"))?;
        }
        Ok(())
    }

    /// Makes `irq` raise interrupt `gsi`, by KVM's own routing: every GSI is its pin of the IOAPIC.
    pub fn connect_irq(&mut self, irq: &Arc<EventFd>, gsi: u32) -> Result<(), KvmError> {
        self.vm.register_irqfd(irq, gsi).map_err(call("connect an interrupt"))?;
        self.irqs.push((irq.clone(), gsi));
        Ok(())
    }

    /// Makes a write of `value` (32 bits) to guest address `addr` signal `kick` instead of stopping the vCPU.
    pub fn connect_kick(&self, kick: &EventFd, addr: u64, value: u32) -> Result<(), KvmError> {
        let at = IoEventAddress::Mmio(addr);
        self.vm.register_ioevent(kick, &at, value).map_err(call("connect a queue's notification"))
    }

    /// Returns the CPUID for all of `vcpus` vCPUs, before [`cpuid::personalize`].
    pub fn cpuid(&self, vcpus: u8) -> Result<Vec<kvm_bindings::kvm_cpuid_entry2>, KvmError> {
        let supported =
            self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(call("read the supported cpuid"))?;
        let tsc_deadline = self.kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(cpuid::template(supported.as_slice(), vcpus, tsc_deadline))
    }

    /// Creates vCPU `id` with its own CPUID and MSRs. All but the first wait for the guest to start them.
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

impl Drop for KvmVm {
    /// Disconnects the interrupts one by one. The end of each takes a grace period of the machine's own; left to the
    /// end of the machine they come at once, which costs 8 million instructions more than with a pause between.
    fn drop(&mut self) {
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

/// Makes `vcpu` start at `entry`.
pub fn set_entry(vcpu: &VcpuFd, entry: Entry) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(call("read a vcpu's system registers"))?;
    segments::set_sregs(&mut sregs, entry);
    vcpu.set_sregs(&sregs).map_err(call("set a vcpu's system registers"))?;
    vcpu.set_regs(&segments::regs(entry)).map_err(call("set a vcpu's registers"))
}

/// What KVM says about an exit with KVM_EXIT_INTERNAL_ERROR (KVM API 5, `struct kvm_run`).
#[derive(Debug, PartialEq, Eq)]
pub struct InternalError {
    /// KVM_INTERNAL_ERROR_*.
    pub suberror: u32,
    /// Words whose meaning depends on it.
    pub data: Vec<u64>,
}

/// Reads the details of an exit that was KVM_EXIT_INTERNAL_ERROR.
pub fn internal_error(run: &kvm_run) -> InternalError {
    // SAFETY: the caller saw this exit reason, for which KVM fills this member; and any bytes are a valid value of it.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let count = (internal.ndata as usize).min(internal.data.len());
    InternalError { suberror: internal.suberror, data: internal.data[..count].to_vec() }
}
