//! A container with which a new template is tried. What it uses of the saved memory, any container does, so its trial finds the working
//! set. It has the configuration of `vmm spec` and a program that reads its own file, writes an empty line, and does not outlive the
//! trial. The file is as long as a small program, so that the trial uses the memory into which the guest reads programs.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use host::HostError;
use link::streams::{StreamHandle, StreamSpec};
use oci::{Bundle, DEFAULT_CONFIG};
use plan::{ContainerPlan, VmPlan};
use serde_json::{Value, json};

/// Name of the container, and of its bundle in a template's directory.
const NAME: &str = "trial";
/// Name of its host.
pub const HOST: &str = "template";
/// Number of the first of its streams.
const STREAM: u64 = 1;
/// Mount points of the configuration that its root file system has. All others are within these.
const MOUNT_POINTS: [&str; 3] = ["proc", "dev", "sys"];

/// First address of the program in memory.
const BASE: u64 = 0x40_0000;
/// Lengths of an ELF header and of a program header (elf(5)).
const HEADERS: (u16, u16) = (64, 56);
/// Length of the program's file.
const LEN: usize = 1 << 20;
/// open(name, 0); while read(_, stack, 4096) > 0 {}; write(1, line, 1); exit(0)
const CODE: [u8; 65] = [
    0xb8, 2, 0, 0, 0, // mov $2, %eax
    0x48, 0x8d, 0x3d, 53, 0, 0, 0, // lea name(%rip), %rdi
    0x31, 0xf6, // xor %esi, %esi
    0x0f, 0x05, // syscall
    0x89, 0xc7, // mov %eax, %edi
    0xba, 0, 16, 0, 0, // mov $4096, %edx
    0x48, 0x29, 0xd4, // sub %rdx, %rsp
    0x48, 0x89, 0xe6, // mov %rsp, %rsi
    0x31, 0xc0, // read: xor %eax, %eax
    0x0f, 0x05, // syscall
    0x85, 0xc0, // test %eax, %eax
    0x7f, 0xf8, // jg read
    0xb8, 1, 0, 0, 0, // mov $1, %eax
    0x89, 0xc7, // mov %eax, %edi
    0x48, 0x8d, 0x35, 13, 0, 0, 0, // lea line(%rip), %rsi
    0x89, 0xc2, // mov %eax, %edx
    0x0f, 0x05, // syscall
    0xb8, 60, 0, 0, 0, // mov $60, %eax
    0x31, 0xff, // xor %edi, %edi
    0x0f, 0x05, // syscall
    b'\n',
];
/// Path of the program in the container, which follows its code.
const PATH: &[u8] = b"/trial\0";

/// The container, and its bundle, which is removed with it.
#[derive(Debug)]
pub struct Trial {
    directory: PathBuf,
    /// Where its output goes.
    null: File,
    pub plan: ContainerPlan,
}

impl Trial {
    /// Makes the container's bundle in the directory `parent`, for the machine of `vm`.
    pub fn new(parent: &Path, vm: &VmPlan) -> Result<Trial> {
        let null = OpenOptions::new().write(true).open("/dev/null").context("open /dev/null")?;
        let directory = parent.join(NAME);
        // From here on removed when it is dropped.
        let mut trial = Trial { directory, null, plan: ContainerPlan::default() };
        trial.write().with_context(|| format!("write {}", trial.directory.display()))?;
        let bundle = Bundle::load(&trial.directory)?;
        trial.plan = ContainerPlan::new(&bundle, NAME, vm, None)?;
        trial.plan.place(1);
        let process = &mut trial.plan.container.process;
        (process.stdio, process.stderr) = (STREAM, STREAM + 1);
        Ok(trial)
    }

    fn write(&self) -> Result<()> {
        let rootfs = self.directory.join("rootfs");
        let mut directory = DirBuilder::new();
        directory.mode(0o700);
        directory.create(&self.directory)?;
        directory.mode(0o755).create(&rootfs)?;
        MOUNT_POINTS.iter().try_for_each(|name| directory.create(rootfs.join(name)))?;
        let create =
            |path: PathBuf, mode| OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        create(rootfs.join(NAME), 0o755)?.write_all(&program())?;
        let mut config: Value = serde_json::from_str(DEFAULT_CONFIG)?;
        config["process"]["args"] = json!([format!("/{NAME}")]);
        config["process"]["terminal"] = json!(false);
        create(self.directory.join("config.json"), 0o600)?.write_all(config.to_string().as_bytes())?;
        Ok(())
    }

    /// Opens its streams.
    pub fn open(&self, streams: &mut StreamHandle) -> Result<()> {
        let sink = Some(self.null.as_raw_fd());
        let both = [STREAM, STREAM + 1].map(|seq| StreamSpec { seq, source: None, sink });
        both.iter().try_for_each(|stream| streams.open(stream)).context("open a stream")
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let removed = fs::remove_dir_all(&self.directory).map_err(HostError::at("remove", &self.directory));
        removed.unwrap_or_else(|error| log::debug!("{error}"));
    }
}

/// Returns a static program for x86-64 in one readable and executable segment.
fn program() -> Vec<u8> {
    let (header, entry) = HEADERS;
    let start = u64::from(header + entry);
    let len = start + (CODE.len() + PATH.len()) as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let halves = |elf: &mut Vec<u8>, all: &[u16]| all.iter().for_each(|half| elf.extend(half.to_le_bytes()));
    let words = |elf: &mut Vec<u8>, all: &[u32]| all.iter().for_each(|word| elf.extend(word.to_le_bytes()));
    let longs = |elf: &mut Vec<u8>, all: &[u64]| all.iter().for_each(|long| elf.extend(long.to_le_bytes()));
    // ET_EXEC, EM_X86_64, EV_CURRENT; its entry, the program headers, no sections, no flags.
    halves(&mut elf, &[2, 62]);
    words(&mut elf, &[1]);
    longs(&mut elf, &[BASE + start, header.into(), 0]);
    words(&mut elf, &[0]);
    halves(&mut elf, &[header, entry, 1, 0, 0, 0]);
    // PT_LOAD, readable and executable: the file without what only makes it long.
    words(&mut elf, &[1, 5]);
    longs(&mut elf, &[0, BASE, BASE, len, len, 0x1000]);
    elf.extend(CODE);
    elf.extend(PATH);
    elf.resize(LEN, 0);
    elf
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use plan::VmSettings;

    use super::*;

    #[test]
    fn the_program_writes_an_empty_line_and_exits() {
        let folder = tempfile::tempdir().unwrap();
        let vm = VmPlan::new(&VmSettings::default(), "");
        let trial = Trial::new(folder.path(), &vm).unwrap();
        let done = Command::new(folder.path().join("trial/rootfs/trial")).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        assert_eq!(done.stdout, b"\n");
        assert_eq!(trial.plan.container.process.args, ["/trial"]);
        assert_eq!(trial.plan.binds[0].path, "/1-trial/rootfs");
        drop(trial);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
