//! The command lines of checkpoints, with runc's flags.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser};

use super::container::read;
use super::{EngineArgs, Words};

/// Save a running container to a directory, and end it
#[derive(Debug, Parser)]
#[command(name = "vmm checkpoint")]
pub struct CheckpointArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    /// Let the container go on after it was saved
    #[arg(long)]
    pub leave_running: bool,
    /// Not supported: a checkpoint is complete
    #[arg(long, hide = true)]
    pub pre_dump: bool,
    /// Not supported: a checkpoint has the whole memory
    #[arg(long, hide = true)]
    pub lazy_pages: bool,
    /// Not supported: a checkpoint is complete
    #[arg(long, value_name = "DIR", hide = true)]
    pub parent_path: Option<PathBuf>,
    /// Not supported: a checkpoint is written to files
    #[arg(long, value_name = "ADDRESS", hide = true)]
    pub page_server: Option<String>,
    /// Not supported
    #[arg(long, value_name = "FD", hide = true)]
    pub status_fd: Option<u32>,
    /// The container's id
    pub id: String,
}

/// Create a container that goes on where a checkpoint was made
#[derive(Debug, Parser)]
#[command(name = "vmm restore")]
pub struct RestoreArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    /// The bundle's directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Return once the container runs, and leave it in the background
    #[arg(short, long)]
    pub detach: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Accepted for runc compatibility; has no effect, because vmm has no processes besides
    #[arg(long, hide = true)]
    pub no_subreaper: bool,
    /// Not supported: a checkpoint has the whole memory
    #[arg(long, hide = true)]
    pub lazy_pages: bool,
    /// Accepted for runc compatibility; has no effect
    #[arg(long, value_name = "PROFILE", hide = true)]
    pub lsm_profile: Option<String>,
    /// Accepted for runc compatibility; has no effect
    #[arg(long, value_name = "CONTEXT", hide = true)]
    pub lsm_mount_context: Option<String>,
    /// The container's id, which need not be that of the saved one
    pub id: OsString,
}

/// Where a checkpoint is, and what runc asks CRIU to do with connections, terminals and locks.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// The checkpoint's directory
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    pub image_path: PathBuf,
    /// Accepted for runc compatibility; has no effect, because no other files are needed
    #[arg(long, value_name = "DIR")]
    pub work_path: Option<PathBuf>,
    /// Accepted for runc compatibility; has no effect
    #[arg(long)]
    pub tcp_established: bool,
    /// Accepted for runc compatibility; has no effect
    #[arg(long)]
    pub tcp_skip_in_flight: bool,
    /// Accepted for runc compatibility; has no effect: both ends of a socket are in the guest
    #[arg(long)]
    pub ext_unix_sk: bool,
    /// Accepted for runc compatibility; has no effect: terminals are supported without it
    #[arg(long)]
    pub shell_job: bool,
    /// Accepted for runc compatibility; has no effect
    #[arg(long)]
    pub file_locks: bool,
    /// Accepted for runc compatibility; has no effect: the container's cgroups are in the guest
    #[arg(long, value_name = "MODE", hide = true)]
    pub manage_cgroups_mode: Option<String>,
    /// Accepted for runc compatibility; has no effect: all namespaces but the network's are in the guest
    #[arg(long, value_name = "KIND", hide = true)]
    pub empty_ns: Vec<String>,
    /// Accepted for runc compatibility; has no effect
    #[arg(long, hide = true)]
    pub auto_dedup: bool,
}

/// Reads the arguments of `vmm restore`. containerd gives one of runc's flags with a single dash, as Go's programs accept it.
pub fn read_restore(mut words: Words) -> Result<RestoreArgs, clap::Error> {
    let given = words.words.iter_mut().filter(|word| *word == "-no-subreaper");
    given.for_each(|word| *word = "--no-subreaper".into());
    read("restore", words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Words {
        Words { words: line.split(' ').map(OsString::from).collect() }
    }

    /// The lines of containerd's shim for runc and of podman.
    #[test]
    fn engines_lines_are_read() {
        let line = "--image-path /i --work-path /w --tcp-established --ext-unix-sk --file-locks --shell-job --leave-running c";
        let checkpoint: CheckpointArgs = read("checkpoint", words(line)).unwrap();
        assert!(checkpoint.leave_running && checkpoint.image.image_path.as_os_str() == "/i");
        let line = "--image-path /i --work-path /w --manage-cgroups-mode soft --empty-ns network --detach -no-subreaper \
                    --no-pivot --pid-file /p --console-socket /s --bundle /b c";
        let restore = read_restore(words(line)).unwrap();
        assert!(restore.detach && restore.no_subreaper && restore.engine.pid_file == Some("/p".into()));
        assert_eq!((restore.bundle, restore.id), ("/b".into(), "c".into()));
        let plain: RestoreArgs = read("restore", words("c")).unwrap();
        assert_eq!((plain.bundle, plain.image.image_path), (".".into(), "checkpoint".into()));
    }
}
