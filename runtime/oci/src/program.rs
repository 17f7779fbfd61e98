//! Checks that the container's program exists, before a machine is started.
//!
//! The guest would detect a missing program only when the container is started. Engines expect the error from `create`,
//! as with runc, and derive an exit code from its text. Programs that a mount may provide are left to the guest.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use crate::bundle::Bundle;
use crate::error::{BundleError, Result};
use crate::spec::Mount;

/// Destinations that engines mount into every container. None of them contains the program.
const USUAL_MOUNTS: [&str; 8] = [
    "/proc",
    "/dev",
    "/sys",
    "/etc/resolv.conf",
    "/etc/hostname",
    "/etc/hosts",
    "/run/secrets",
    "/run/.containerenv",
];

/// Result of the search for a program.
#[derive(Debug, PartialEq)]
enum Lookup {
    Executable,
    Not(&'static str),
    Missing,
    /// The host cannot decide, for example because of missing permissions.
    Unknown,
}

/// Refuses a container whose program certainly does not exist or is not executable.
pub fn check(bundle: &Bundle) -> Result<()> {
    let process = &bundle.process;
    let Some(program) = process.args.first() else { return Ok(()) };
    if bundle.spec.mounts.iter().any(is_unusual) {
        return Ok(());
    }
    let (root, cwd) = (bundle.rootfs.as_path(), Path::new(&process.cwd));
    let why = if program.contains('/') {
        match find(root, &cwd.join(program)) {
            Lookup::Executable | Lookup::Unknown => return Ok(()),
            Lookup::Missing => format!("stat {program}: no such file or directory"),
            Lookup::Not(why) => why.to_owned(),
        }
    } else {
        let Some(path) = process.env.iter().rev().find_map(|variable| variable.strip_prefix("PATH=")) else {
            return Ok(());
        };
        let mut places = path.split(':').map(|folder| find(root, &cwd.join(folder).join(program)));
        if places.any(|found| matches!(found, Lookup::Executable | Lookup::Unknown)) {
            return Ok(());
        }
        "executable file not found in $PATH".to_owned()
    };
    Err(BundleError::Program { program: program.clone(), why })
}

fn is_unusual(mount: &Mount) -> bool {
    !USUAL_MOUNTS.iter().any(|usual| Path::new(&mount.destination).starts_with(usual))
}

fn find(root: &Path, path: &Path) -> Lookup {
    match look(root, path) {
        Ok(file) if file.is_dir() => Lookup::Not("is a directory"),
        Ok(file) if file.permissions().mode() & 0o111 == 0 => Lookup::Not("permission denied"),
        Ok(_) => Lookup::Executable,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Lookup::Missing
        }
        Err(_) => Lookup::Unknown,
    }
}

/// Resolves `path` with `root` as the root directory, which no symbolic link leaves (openat2(2)).
fn look(root: &Path, path: &Path) -> io::Result<Metadata> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = openat(CWD, root, flags, Mode::empty())?;
    File::from(openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?).metadata()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn rootfs() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::create_dir_all(path("usr/bin")).unwrap();
        fs::create_dir(path("etc")).unwrap();
        symlink("usr/bin", path("bin")).unwrap();
        fs::write(path("usr/bin/tool"), "").unwrap();
        fs::set_permissions(path("usr/bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(path("etc/passwd"), "").unwrap();
        fs::set_permissions(path("etc/passwd"), fs::Permissions::from_mode(0o644)).unwrap();
        symlink("/bin/tool", path("etc/absolute")).unwrap();
        symlink("../../../../usr/bin/tool", path("etc/upward")).unwrap();
        symlink("round", path("etc/round")).unwrap();
        root
    }

    #[test]
    fn links_are_followed_within_the_root() {
        let root = rootfs();
        for (path, found) in [
            ("/usr/bin/tool", Lookup::Executable),
            ("/bin/tool", Lookup::Executable),
            ("/etc/absolute", Lookup::Executable),
            ("/etc/upward", Lookup::Executable),
            ("/../bin/../bin/tool", Lookup::Executable),
            ("/etc/passwd", Lookup::Not("permission denied")),
            ("/bin", Lookup::Not("is a directory")),
            ("/bin/sh", Lookup::Missing),
            ("/etc/passwd/x", Lookup::Missing),
            ("/etc/round", Lookup::Unknown),
        ] {
            assert_eq!(find(root.path(), Path::new(path)), found, "{path}");
        }
    }

    fn judged(root: &Path, program: &str, mount: &str) -> Result<(), String> {
        let text = format!(
            r#"{{"ociVersion":"1.0.2","process":{{"cwd":"/usr","args":["{program}"],"env":["PATH=/sbin:bin"]}},
               "root":{{"path":"{}"}},"mounts":[{{"destination":"{mount}","type":"tmpfs"}}]}}"#,
            root.display()
        );
        let bundle = Bundle::check(root, serde_json::from_str(&text).unwrap()).unwrap();
        check(&bundle).map_err(|error| error.to_string())
    }

    #[test]
    fn a_missing_program_is_refused_with_the_text_that_engines_parse() {
        let root = rootfs();
        let told = |program, mount| judged(root.path(), program, mount);
        for program in ["tool", "/bin/tool", "./bin/tool"] {
            assert_eq!(told(program, "/dev/shm"), Ok(()), "{program}");
        }
        for (program, message) in [
            ("sh", "exec: \"sh\": executable file not found in $PATH"),
            ("/bin/sh", "exec: \"/bin/sh\": stat /bin/sh: no such file or directory"),
            ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
            ("/etc", "exec: \"/etc\": is a directory"),
        ] {
            assert_eq!(told(program, "/proc"), Err(message.to_owned()));
            assert_eq!(told(program, "/opt"), Ok(()), "a mount may provide it");
        }
    }
}
