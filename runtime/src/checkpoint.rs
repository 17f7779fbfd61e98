//! Checkpoints: a machine with a running container is saved to a directory, and another one continues from it.
//!
//! ```text
//! <directory>/state      everything but the memory; there only once the checkpoint is complete
//!            /memory     pages of the guest's memory that are not zero
//!            /inventory.img    empty; Podman looks for it before it restores a container
//! ```
//!
//! The state has the machine's ([`vmm::Snapshot`], with the file server's), and what the process of the container knows: the
//! channels to the agent, the streams, the container's name in the guest. The container's bundle is no part of it.
//!
//! The pod's process writes both files through descriptors of `vmm checkpoint`, since its own threads can open none.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read};
use std::os::fd::RawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use devices::{Decoder, Encoder, StateError};
use host::HostError;
use link::streams::StreamSpec;
use plan::vm::Kernel;
use plan::{ContainerPlan, ShareType, VmPlan};
use vmm::{Snapshot, devices, snapshot};

use crate::state::is_id;
use crate::template::{key, store};

/// Name of the state's file.
const STATE: &str = "state";
/// Name of the state's file until the checkpoint is complete.
const DRAFT: &str = "state.new";
/// Name of the memory's file.
const MEMORY: &str = "memory";
/// Name of an empty file. CRIU's checkpoints have a file of this name, and an engine takes one without it for incomplete.
const INVENTORY: &str = "inventory.img";
/// The first bytes of a state.
const MAGIC: &[u8; 8] = b"vmm\0ckpt";
/// Changes whenever the state of anything does.
const FORMAT: u32 = 1;
/// Limit of a state's length in bytes: a file that the guest knows has some 150.
const STATE_MAX: u64 = 256 << 20;
/// Limit of a machine's devices.
const PLACES_MAX: usize = 64;

/// The devices of a machine that are not the same in all machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Number of places for NICs.
    pub places: usize,
    /// Whether there are ports for name queries and for sockets of the host.
    pub ports: [bool; 2],
}

/// What the process of a container knows of its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// What the checkpoint was made by and on ([`key::common`]).
    pub label: String,
    /// The container's name in the guest, which it keeps.
    pub container: String,
    pub memory_mib: u32,
    pub vcpus: u8,
    pub kernel: Kernel,
    pub share: ShareType,
    pub shape: Shape,
    /// The container has a terminal.
    pub terminal: bool,
    /// Number of the first stream of its init process.
    pub stream: u64,
    /// Number of the next stream.
    pub next_stream: u64,
    /// The control channel.
    pub link: Vec<u8>,
    pub streams: Vec<u8>,
}

/// A checkpoint from which a machine can continue.
#[derive(Debug)]
pub struct Checkpoint {
    pub saved: Saved,
    pub snapshot: Snapshot,
    pub memory: File,
}

impl Saved {
    /// Returns the streams of the init process over this process's own.
    pub fn specs(&self) -> Vec<StreamSpec> {
        let [stdin, stdout, stderr] = [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO];
        let spec = |seq, source: Option<RawFd>, sink| StreamSpec { seq, source, sink: Some(sink) };
        let second = (!self.terminal).then(|| spec(self.stream + 1, None, stderr));
        [spec(self.stream, Some(stdin), stdout)].into_iter().chain(second).collect()
    }

    /// Gives the plan of a machine the size of the saved one.
    pub fn resize(&self, plan: &mut VmPlan) -> Result<()> {
        ensure!(plan.share == self.share, "the checkpoint is of a machine with another type of share");
        (plan.memory_mib, plan.vcpus, plan.kernel) = (self.memory_mib, self.vcpus, self.kernel);
        Ok(())
    }

    /// Encodes a checkpoint.
    pub fn encode(&self, snapshot: &Snapshot) -> Vec<u8> {
        let mut state = Encoder::default();
        MAGIC.iter().for_each(|byte| _ = state.u8(*byte));
        state.u32(FORMAT).bytes(self.label.as_bytes()).bytes(self.container.as_bytes());
        state.u32(self.memory_mib).u8(self.vcpus).u8((self.kernel == Kernel::Full).into());
        state.u8((self.share == ShareType::P9).into()).u32(self.shape.places as u32);
        self.shape.ports.iter().for_each(|there| _ = state.u8((*there).into()));
        state.u8(self.terminal.into()).u64(self.stream).u64(self.next_stream);
        state.bytes(&self.link).bytes(&self.streams).bytes(&snapshot.encode());
        let mut bytes = state.finish();
        bytes.extend_from_slice(&snapshot::checksum_of(&bytes).to_le_bytes());
        bytes
    }
}

/// Decodes what [`Saved::encode`] returned.
fn decode(bytes: &[u8]) -> Result<(Saved, Snapshot)> {
    let damaged = StateError::Damaged;
    let (bytes, sum) = bytes.split_last_chunk().ok_or(damaged("it is too short"))?;
    let mut state = Decoder::new(bytes);
    for byte in MAGIC {
        if state.u8()? != *byte {
            return Err(damaged("it is no checkpoint of vmm").into());
        }
    }
    if state.u32()? != FORMAT {
        return Err(StateError::Foreign("it has another format").into());
    }
    if snapshot::checksum_of(bytes) != u64::from_le_bytes(*sum) {
        return Err(damaged("its checksum is wrong").into());
    }
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| damaged("a name"));
    let saved = Saved {
        label: text(state.bytes()?)?,
        container: text(state.bytes()?)?,
        memory_mib: state.u32()?,
        vcpus: state.u8()?,
        kernel: if state.u8()? != 0 { Kernel::Full } else { Kernel::Base },
        share: if state.u8()? != 0 { ShareType::P9 } else { ShareType::VirtioFs },
        shape: Shape { places: state.u32()? as usize, ports: [state.u8()? != 0, state.u8()? != 0] },
        terminal: state.u8()? != 0,
        stream: state.u64()?,
        next_stream: state.u64()?,
        link: state.bytes()?.to_vec(),
        streams: state.bytes()?.to_vec(),
    };
    let snapshot = Snapshot::decode(state.bytes()?)?;
    state.end()?;
    let ordered = saved.stream > 0 && saved.stream < u64::MAX / 2 && saved.stream < saved.next_stream;
    let same = (saved.memory_mib, saved.vcpus) == (snapshot.memory_mib, snapshot.vcpus);
    if !is_id(&saved.container) || !ordered || !same || saved.shape.places > PLACES_MAX {
        return Err(damaged("the container").into());
    }
    Ok((saved, snapshot))
}

impl Checkpoint {
    /// Opens the checkpoint in a directory, and compares its memory with the checksum.
    ///
    /// # Errors
    ///
    /// It is damaged, incomplete, of another program, host or CPU, or others can write to it.
    pub fn open(directory: &Path) -> Result<Checkpoint> {
        let at = || format!("checkpoint {}", directory.display());
        let opened = (|| -> Result<Checkpoint> {
            store::check(directory, &fs::metadata(directory)?)?;
            let state = directory.join(STATE);
            let mut bytes = Vec::new();
            let mut file = store::open_file(&state)?.take(STATE_MAX + 1);
            file.read_to_end(&mut bytes).map_err(HostError::at("read", &state))?;
            let (saved, mut snapshot) = decode(&bytes)?;
            if key::common().as_deref() != Some(&saved.label) {
                bail!("it was made by another vmm, or on a host with another kernel or microcode");
            }
            let memory = store::open_file(&directory.join(MEMORY))?;
            snapshot.adopt(&memory)?;
            Ok(Checkpoint { saved, snapshot, memory })
        })();
        opened.with_context(at)
    }
}

/// A checkpoint that is being made. Until it is finished, the directory has none.
#[derive(Debug)]
pub struct Draft<'a> {
    directory: &'a Path,
    pub memory: File,
    pub state: File,
}

impl Draft<'_> {
    /// Begins a checkpoint in a directory, which is created if it is missing. An earlier one there is removed.
    pub fn begin(directory: &Path) -> Result<Draft<'_>> {
        let failed = HostError::at("create", directory);
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let metadata = fs::metadata(directory).map_err(HostError::at("open", directory))?;
        store::check(directory, &metadata)?;
        for name in [INVENTORY, STATE, DRAFT, MEMORY] {
            let path = directory.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(HostError::at("remove", &path)(error).into());
                }
                _ => {}
            }
        }
        let [memory, state] = [MEMORY, DRAFT].map(|name| create(&directory.join(name)));
        Ok(Draft { directory, memory: memory?, state: state? })
    }

    /// Makes the checkpoint complete.
    pub fn finish(self) -> Result<()> {
        let write = || HostError::at("write", self.directory);
        for file in [&self.memory, &self.state] {
            file.set_permissions(Permissions::from_mode(0o600))
                .and_then(|()| file.sync_all())
                .map_err(write())?;
        }
        fs::rename(self.directory.join(DRAFT), self.directory.join(STATE)).map_err(write())?;
        create(&self.directory.join(INVENTORY))?;
        Ok(File::open(self.directory).and_then(|directory| directory.sync_all()).map_err(write())?)
    }

    /// Removes the files.
    pub fn discard(self) {
        for name in [DRAFT, MEMORY] {
            let path = self.directory.join(name);
            fs::remove_file(&path).unwrap_or_else(|error| log::warn!("remove {}: {error}", path.display()));
        }
    }
}

fn create(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    Ok(options.open(path).map_err(HostError::at("create", path))?)
}

/// A checkpoint, and the container that continues from it.
#[derive(Debug)]
pub struct Continued {
    pub checkpoint: Checkpoint,
    /// Its plan, with the paths in the share that it had.
    pub container: ContainerPlan,
}

#[cfg(test)]
mod tests;
