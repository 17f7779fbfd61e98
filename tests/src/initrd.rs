//! An initramfs whose PID 1 is not the agent.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::check_output;

/// An archive with one program. It is removed on drop.
pub struct Initrd {
    _dir: TempDir,
    path: String,
}

impl Initrd {
    /// Packs `program` as `/name` and `/init`.
    pub fn new(program: &Path, name: &str) -> Initrd {
        let dir = TempDir::new().expect("create a directory for the initramfs");
        let script = "cd \"$1\" && mkdir -p root/dev && cp \"$2\" \"root/$3\" && cd root && ln \"$3\" init && \
                      find . | cpio --quiet -o -H newc > ../initrd";
        let words = ["-c", script, "sh"];
        check_output(Command::new("sh").args(words).arg(dir.path()).arg(program).arg(name));
        let path = dir.path().join("initrd").into_os_string().into_string().expect("the path is UTF-8");
        Initrd { _dir: dir, path }
    }

    /// The archive's path, for a command line.
    pub fn path(&self) -> &str {
        &self.path
    }
}
