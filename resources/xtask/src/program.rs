//! The `vmm` program: a static executable with the guest's kernel and agent in ELF sections of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::kernel::{self, Variant};
use crate::steps::{cargo, output, run, say, top};
use crate::{apt, initramfs};

/// Target of the program. It is named explicitly so that its flags do not apply to build scripts and macros.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Maximum size of the program in bytes, with kernels and agent.
const PROGRAM_BYTES_MAX: u64 = 40 << 20;

/// Builds kernels, agent and runtime if they are out of date, and returns the path of the finished program.
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
    let bytes = fs::metadata(&program).with_context(|| format!("look at {}", program.display()))?.len();
    ensure!(
        bytes <= PROGRAM_BYTES_MAX,
        "{} has {bytes} bytes, more than {PROGRAM_BYTES_MAX}",
        program.display()
    );
    Ok(program)
}

/// Builds an executable of `package` without run-time libraries, and returns its path.
pub fn static_program(package: &str, name: &str) -> anyhow::Result<PathBuf> {
    let flags = format!("target.{TARGET}.rustflags=['-Ctarget-feature=+crt-static']");
    let mut build = cargo();
    build.args(["build", "--release", "--package", package, "--bin", name]);
    build.args(["--target", TARGET, "--config", &flags]);
    // For the output of `vmm --version`, which reports an unknown commit without git, as in an archive.
    if let Ok(commit) = output(
        Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).current_dir(top()),
    ) {
        build.env("VMM_COMMIT", commit.trim());
    }
    run(&mut build)?;
    Ok(target_dir().join(TARGET).join("release").join(name))
}

/// Returns the folder of cargo's output.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top().join("target"), |dir| top().join(dir))
}

/// Writes `program`: `bare` with page-aligned sections, which the runtime maps from its own file.
fn embed(bare: &Path, sections: &[(&str, &Path)], program: &Path) -> anyhow::Result<()> {
    let fresh = program.with_extension("new");
    let mut objcopy = Command::new("objcopy");
    for (section, file) in sections {
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
