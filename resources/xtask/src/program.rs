//! The `vmm` program: a static executable with the guest's kernel and agent in ELF sections of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::checkout::target_dir;
use crate::executable::static_program;
use crate::steps::{run, say};
use crate::{apt, initramfs, kernel};

/// Maximum size of the program in bytes, with kernel and agent.
const PROGRAM_BYTES_MAX: u64 = 24 << 20;

/// Builds kernel, agent and runtime if they are out of date, and returns the path of the finished program.
pub fn program() -> anyhow::Result<PathBuf> {
    apt::install(&["binutils", "gcc", "libc6-dev"])?;
    let kernel = kernel::kernel()?;
    let initramfs = initramfs::initramfs()?;
    say("building vmm");
    let bare = static_program("runtime", "vmm")?;
    let program = target_dir().join("vmm");
    if !newer(&program, &[&bare, &kernel.vmlinux, &initramfs]) {
        embed(&bare, &kernel.vmlinux, &initramfs, &program)?;
    }
    let bytes = fs::metadata(&program).with_context(|| format!("look at {}", program.display()))?.len();
    ensure!(
        bytes <= PROGRAM_BYTES_MAX,
        "{} has {bytes} bytes, more than {PROGRAM_BYTES_MAX}",
        program.display()
    );
    Ok(program)
}

/// Writes `program`: `bare` with two page-aligned sections, which the runtime maps from its own file.
fn embed(bare: &Path, kernel: &Path, initramfs: &Path, program: &Path) -> anyhow::Result<()> {
    let fresh = program.with_extension("new");
    let mut objcopy = Command::new("objcopy");
    for (section, file) in [(".linux", kernel), (".initrd", initramfs)] {
        objcopy.arg("--add-section").arg(format!("{section}={}", file.display()));
        objcopy.arg("--set-section-flags").arg(format!("{section}=contents,readonly"));
        objcopy.arg("--set-section-alignment").arg(format!("{section}=4096"));
    }
    run(objcopy.arg(bare).arg(&fresh))?;
    fs::rename(&fresh, program)
        .with_context(|| format!("rename {} to {}", fresh.display(), program.display()))
}

/// Whether `made` exists and is newer than all its sources.
fn newer(made: &Path, from: &[&Path]) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    let Some(made) = time(made) else { return false };
    from.iter().all(|path| time(path).is_some_and(|t| t < made))
}
