//! A saved machine, from which other machines continue.
//!
//! A snapshot has two parts. The **memory** is a file with the pages that are not zero ([`memory`]); a machine maps it
//! privately, so machines share the pages that they do not write. The **state** is everything else, as plain data: the vCPUs
//! ([`vcpu`]), the interrupt controllers, KVM's clock, and the devices with their queues ([`devices::state`]).
//!
//! A machine continues with devices of its own, which must be of the same types in the same order. What is behind a device
//! (a socket, a share, a tap) is not part of a snapshot. A device that cannot be continued without that, such as a share
//! that the guest has mounted, is refused when the machine is saved.
//!
//! The guest's time stands still between the save and the restore: its TSC and KVM's clock continue where they were. Its
//! wall clock, its random numbers and its names are those of the saved machine, and must be renewed by whoever restores it.
//!
//! A snapshot is for the host, the kernel and the program that made it. The caller writes all that into the label, and
//! compares it. This module compares the format, the CPUID that the guest sees, and the frequency of the TSC.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use devices::{Decoder, Encoder, StateError};
use twox_hash::XxHash64;

use crate::end::VmEnd;
use crate::kvm::error::{KvmError, RestoreError};
use crate::layout::{self, MEMORY_MIB_MAX, VCPUS_MAX};
use crate::memory::MemoryError;

pub(crate) mod extent;
pub(crate) mod memory;
pub(crate) mod plain;
pub(crate) mod vcpu;
pub(crate) mod working_set;

use extent::Extent;
pub use extent::LARGE;
use memory::CHECKSUM_SEED;
pub use working_set::WorkingSet;

/// The first bytes of a state.
const MAGIC: &[u8; 8] = b"vmm\0save";
/// Changes whenever the state of anything does.
pub const FORMAT: u32 = 4;
/// Limit of a state's length in bytes: a vCPU has 12 KiB, a part of memory 24 bytes.
pub const STATE_MAX: u64 = 16 << 20;

/// Why a machine could not be saved, or could not continue.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The machine had ended by itself.
    #[error("the machine has ended: {0:?}")]
    Ended(VmEnd),
    /// A device refused.
    #[error("device at {addr:#x}: {source}")]
    Device {
        /// First address of the device.
        addr: u64,
        /// The device's reason.
        source: StateError,
    },
    /// The state is not one, or is that of another machine.
    #[error(transparent)]
    State(#[from] StateError),
    /// The memory's file is not the one that was written.
    #[error("the memory's file has changed")]
    Changed,
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The memory could not be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The memory's file could not be written or read.
    #[error("{step}")]
    File {
        /// What was done.
        step: &'static str,
        /// The host's error.
        source: io::Error,
    },
}

impl From<RestoreError> for SnapshotError {
    fn from(error: RestoreError) -> SnapshotError {
        match error {
            RestoreError::State(error) => error.into(),
            RestoreError::Kvm(error) => error.into(),
        }
    }
}

/// What identifies a file and its content: any change of one changes the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    inode: u64,
    len: u64,
    /// Time of the last change of content, owner, mode or number of names, which nobody can set.
    changed: (i64, i64),
}

impl FileId {
    fn of(file: &File) -> io::Result<FileId> {
        let metadata = file.metadata()?;
        Ok(FileId {
            inode: metadata.ino(),
            len: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// The state of a saved machine.
#[derive(Debug)]
pub struct Snapshot {
    /// What the caller wants to find again.
    pub label: Vec<u8>,
    /// Size of the memory in MiB.
    pub memory_mib: u32,
    /// Number of vCPUs.
    pub vcpus: u8,
    pub(crate) extents: Vec<Extent>,
    memory: FileId,
    memory_sum: u64,
    /// What is prepared when a machine continues. Empty until somebody has tried that.
    pub working_set: WorkingSet,
    /// The vCPUs, the interrupt controllers and the clock.
    pub(crate) processors: Vec<u8>,
    /// The devices on the memory bus, each with its first address.
    pub(crate) devices: Vec<(u64, Vec<u8>)>,
}

/// What a machine gives to its snapshot.
pub(crate) struct Parts {
    pub label: Vec<u8>,
    pub memory_mib: u32,
    pub vcpus: u8,
    pub extents: Vec<Extent>,
    pub memory_sum: u64,
    pub processors: Vec<u8>,
    pub devices: Vec<(u64, Vec<u8>)>,
}

impl Snapshot {
    /// Returns the snapshot of `parts`, whose memory is in `file`. The file must not change any more, not even its mode.
    pub(crate) fn new(parts: Parts, file: &File) -> Result<Snapshot, SnapshotError> {
        let memory = FileId::of(file).map_err(step("read the memory's file"))?;
        let Parts { label, memory_mib, vcpus, extents, memory_sum, processors, devices } = parts;
        let working_set = WorkingSet::default();
        Ok(Snapshot {
            label,
            memory_mib,
            vcpus,
            extents,
            memory,
            memory_sum,
            working_set,
            processors,
            devices,
        })
    }

    /// Returns the state as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut state = Encoder::default();
        MAGIC.iter().for_each(|byte| _ = state.u8(*byte));
        state.u32(FORMAT).bytes(&self.label).u32(self.memory_mib).u8(self.vcpus);
        let FileId { inode, len, changed: (seconds, nanoseconds) } = self.memory;
        state.u64(inode).u64(len).u64(seconds as u64).u64(nanoseconds as u64).u64(self.memory_sum);
        memory::put(&self.extents, &mut state);
        self.working_set.put(&mut state);
        state.bytes(&self.processors).u32(self.devices.len() as u32);
        for (addr, device) in &self.devices {
            state.u64(*addr).bytes(device);
        }
        let mut bytes = state.finish();
        bytes.extend_from_slice(&checksum_of(&bytes).to_le_bytes());
        bytes
    }

    /// Reads what [`encode`](Self::encode) returned.
    ///
    /// # Errors
    ///
    /// The bytes are damaged, or of another format.
    pub fn decode(bytes: &[u8]) -> Result<Snapshot, SnapshotError> {
        let damaged = |what| SnapshotError::State(StateError::Damaged(what));
        let (bytes, sum) = bytes.split_last_chunk().ok_or(damaged("it is too short"))?;
        let mut state = Decoder::new(bytes);
        for byte in MAGIC {
            if state.u8()? != *byte {
                return Err(damaged("it is no snapshot"));
            }
        }
        if state.u32()? != FORMAT {
            return Err(StateError::Foreign("it has another format").into());
        }
        if checksum_of(bytes) != u64::from_le_bytes(*sum) {
            return Err(damaged("its checksum is wrong"));
        }
        let label = state.bytes()?.to_vec();
        let (memory_mib, vcpus) = (state.u32()?, state.u8()?);
        if memory_mib > MEMORY_MIB_MAX || !(1..=VCPUS_MAX).contains(&vcpus) {
            return Err(damaged("its size is impossible"));
        }
        let (inode, len) = (state.u64()?, state.u64()?);
        let changed = (state.u64()? as i64, state.u64()? as i64);
        let memory_sum = state.u64()?;
        let ranges = layout::ram_ranges(memory_mib);
        let extents = memory::take(&mut state, &ranges, len)?;
        let working_set = WorkingSet::take(&mut state, &ranges)?;
        let processors = state.bytes()?.to_vec();
        let count = state.u32()?;
        let devices = (0..count).map(|_| Ok((state.u64()?, state.bytes()?.to_vec())));
        let devices = devices.collect::<Result<_, StateError>>()?;
        state.end()?;
        let memory = FileId { inode, len, changed };
        Ok(Snapshot {
            label,
            memory_mib,
            vcpus,
            extents,
            memory,
            memory_sum,
            working_set,
            processors,
            devices,
        })
    }

    /// Whether `file` is the memory's file, and nobody has changed it since.
    pub fn owns(&self, file: &File) -> Result<(), SnapshotError> {
        let now = FileId::of(file).map_err(step("read the memory's file"))?;
        if now == self.memory { Ok(()) } else { Err(SnapshotError::Changed) }
    }

    /// Takes `file`, which may be a copy of the memory's file, for the memory's file, after reading and comparing it with its
    /// checksum. The file must not change any more, not even its mode.
    pub fn adopt(&mut self, file: &File) -> Result<(), SnapshotError> {
        self.verify(file)?;
        self.memory = FileId::of(file).map_err(step("read the memory's file"))?;
        Ok(())
    }

    /// Reads the memory's file and compares it with its checksum, which takes as long as its length.
    pub fn verify(&self, file: &File) -> Result<(), SnapshotError> {
        let found = memory::checksum(file).map_err(step("read the memory's file"))?;
        if found == (self.memory.len, self.memory_sum) { Ok(()) } else { Err(SnapshotError::Changed) }
    }

    /// Gathers what machines read and do not write of the memory's file in large pages of the host's cache, if the host and its
    /// file system can do that. Each is then one page fault of a machine instead of hundreds. What cannot be gathered is copied, as
    /// what machines write. The large pages that are copied are gathered as well: each is mapped to be copied. Nobody may have `file` open
    /// for writing.
    pub fn gather(&mut self, file: &File) {
        let Snapshot { working_set, extents, memory, .. } = self;
        let gather = |large: u64| {
            let part = extents.iter().find_map(|extent| extent.within(large));
            let whole = part.map(|part| part.whole()).filter(|whole| whole.offset + whole.len <= memory.len);
            let Some(whole) = whole else { return false };
            let gathered = crate::memory::gather(file, whole.offset);
            gathered
                .inspect_err(|error| log::debug!("no large page of the saved memory at {large:#x}: {error}"))
                .is_ok()
        };
        working_set.shared.retain(|large| gather(*large));
        let copied: Vec<u64> = working_set.copies().collect();
        copied.into_iter().for_each(|large| _ = gather(large));
    }

    /// Length of the memory's file in bytes.
    pub fn memory_len(&self) -> u64 {
        self.memory.len
    }
}

/// Returns a checksum of `bytes` against accidents. Whoever can change a file on purpose can also change its checksum: files
/// are protected by their owner and mode.
pub fn checksum_of(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(CHECKSUM_SEED, bytes)
}

/// Tries whether the host can keep the first large page of `file` as one page of its cache, as [`Snapshot::gather`] wants it to. The
/// file has a large page of data, and nobody has it open for writing.
pub fn try_gather(file: &File) -> io::Result<()> {
    crate::memory::gather(file, 0)
}

pub(crate) fn step(step: &'static str) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::File { step, source }
}

#[cfg(test)]
mod tests;
