//! Images, created from Debian's packages.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use tests::{busybox_rootfs, check_output};

use crate::engine::Engine;

/// Imports the image `box`: static busybox, with a shell as its command.
pub fn import_busybox(engine: &Engine) {
    let dir = TempDir::new().expect("create a directory for the image");
    busybox_rootfs(dir.path());
    let archive = engine.dir().join("box.tar");
    check_output(Command::new("tar").arg("-C").arg(dir.path()).arg("-cf").arg(&archive).arg("."));
    engine.import(&archive, "box");
}

/// Imports the image `programs`, Debian with the programs that cases run, unless the engine has it.
pub fn import_programs(engine: &Engine) {
    if engine.run(&["image", "inspect", "programs"]).status.success() {
        return;
    }
    let archive = std::env::var_os("VMM_TEST_PROGRAMS").expect("VMM_TEST_PROGRAMS names an archive");
    engine.import(&PathBuf::from(archive), "programs");
}
