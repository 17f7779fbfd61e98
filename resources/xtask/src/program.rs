//! The `vmm` program: a static executable that contains the guest's kernel and initramfs as ELF sections.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::checkout::target_dir;
use crate::executable::static_program;
use crate::kernel::{self, Variant};
use crate::steps::{run, say};
use crate::{apt, initramfs};

/// Maximum size of the program in bytes, with kernels and initramfs.
const PROGRAM_BYTES_MAX: u64 = 40 << 20;

/// Builds kernels, agent and runtime if they are out of date, and returns the path of the program.
pub fn program() -> anyhow::Result<PathBuf> {
    apt::install(&["binutils", "gcc", "libc6-dev"])?;
    let kernel = kernel::kernel(Variant::Base)?.vmlinux;
    let full_kernel = kernel::kernel(Variant::Full)?.vmlinux;
    let initramfs = initramfs::initramfs()?;
    say("building vmm");
    let bare = static_program("runtime", "vmm")?;
    let program = target_dir().join("vmm");
    let sections = [(".linux", &*kernel), (".linux-full", &*full_kernel), (".initrd", &*initramfs)];
    if !newer(&program, &[&bare, &kernel, &full_kernel, &initramfs]) {
        embed(&bare, &sections, &program)?;
    }
    let bytes =
        fs::metadata(&program).with_context(|| format!("read the size of {}", program.display()))?.len();
    ensure!(
        bytes <= PROGRAM_BYTES_MAX,
        "{} has {bytes} bytes: limit of {PROGRAM_BYTES_MAX}",
        program.display()
    );
    Ok(program)
}

/// Writes `program`: the executable `bare` with sections that the runtime finds in its own file.
fn embed(bare: &Path, sections: &[(&str, &Path)], program: &Path) -> anyhow::Result<()> {
    let fresh = program.with_extension("new");
    let mut objcopy = Command::new("objcopy");
    for (section, file) in sections {
        objcopy.arg("--add-section").arg(format!("{section}={}", file.display()));
        objcopy.arg("--set-section-flags").arg(format!("{section}=contents,readonly"));
    }
    run(objcopy.arg(bare).arg(&fresh))?;
    fs::rename(&fresh, program)
        .with_context(|| format!("rename {} to {}", fresh.display(), program.display()))
}

/// Whether `target` exists and is newer than all its sources.
fn newer(target: &Path, from: &[&Path]) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    let Some(target) = time(target) else { return false };
    from.iter().all(|path| time(path).is_some_and(|t| t < target))
}
