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
    import_once(engine, "programs", "VMM_TEST_PROGRAMS");
}

/// Imports the image `languages`, Debian with compilers, interpreters and a browser, unless the engine has it.
pub fn import_languages(engine: &Engine) {
    import_once(engine, "languages", "VMM_TEST_LANGUAGES");
}

/// Imports the image `nested`, Debian with container engines and systemd, unless the engine has it.
pub fn import_nested(engine: &Engine) {
    import_once(engine, "nested", "VMM_TEST_NESTED");
}

fn import_once(engine: &Engine, name: &str, variable: &str) {
    if !engine.run(&["image", "inspect", name]).status.success() {
        let archive = std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} names an archive"));
        engine.import(&PathBuf::from(archive), name);
    }
}
