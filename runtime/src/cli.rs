//! The command line as the user typed it. [`crate::config`] decides what it means.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub mod checkpoint;
pub mod container;
pub mod pod;
pub mod settings;
pub mod template;
pub mod tree;
pub mod update;

pub use settings::Settings;

/// Run OCI containers, each in its own virtual machine
#[derive(Debug, Parser)]
#[command(name = "vmm", disable_version_flag = true, arg_required_else_help = true)]
pub struct Cli {
    /// Print version, commit, and what is embedded
    #[arg(short = 'V', long)]
    pub version: bool,
    #[command(flatten)]
    pub log: LogArgs,
    #[command(flatten)]
    pub global: GlobalArgs,
    /// The command. With --version there need not be one.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The program's own log.
#[derive(Debug, Default, Args)]
pub struct LogArgs {
    /// Write the log to FILE instead of stderr
    #[arg(long, global = true, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Minimum level of log messages: off, error, warn, info, debug, trace [default: warn]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Log format: text or json [default: text]
    #[arg(long, global = true, value_name = "FORM")]
    pub log_format: Option<String>,
}

/// Flags before the command, as with runc.
#[derive(Debug, Default, Args)]
pub struct GlobalArgs {
    /// State directory of containers and pods [default: /run/vmm for root, else $XDG_RUNTIME_DIR/vmm]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Set the log level to debug, unless --log-level is given
    #[arg(long)]
    pub debug: bool,
    /// Interpret linux.cgroupsPath as systemd's slice:prefix:name
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Accepted for runc compatibility; has no effect
    #[arg(long, value_name = "PATH", hide = true)]
    pub criu: Option<PathBuf>,
    /// Accepted for runc compatibility; has no effect, because a VM needs no privileges on the host
    #[arg(long, value_name = "true|false|auto", hide = true)]
    pub rootless: Option<String>,
}

impl LogArgs {
    /// Takes each setting that is not given from `other`.
    pub fn or(self, other: LogArgs) -> LogArgs {
        LogArgs {
            log: self.log.or(other.log),
            log_level: self.log_level.or(other.log_level),
            log_format: self.log_format.or(other.log_format),
        }
    }
}

/// Flags that pods, `update` and `events` accept after their name as well, where they override those before it.
#[derive(Debug, Default, Args)]
pub struct LateArgs {
    #[command(flatten)]
    pub log: LogArgs,
    /// State directory of containers and pods [default: /run/vmm for root, else $XDG_RUNTIME_DIR/vmm]
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

impl LateArgs {
    /// Takes each flag that is not given from `other`.
    pub fn or(self, other: LateArgs) -> LateArgs {
        LateArgs { log: self.log.or(other.log), root: self.root.or(other.root) }
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a bundle and exit with the container's exit code
    Run(Box<RunArgs>),
    /// Create a container; its program waits for `start`
    Create(Words),
    /// Start a container's program
    Start(Words),
    /// Print a container's state
    State(Words),
    /// Send a signal to a container
    Kill(Words),
    /// Delete a container
    Delete(Words),
    /// Run a process in a running container
    Exec(Words),
    /// List containers
    List(Words),
    /// List the host processes of a container
    Ps(Words),
    /// Save a running container to a directory, from which it can be restored
    Checkpoint(Words),
    /// Create a container that goes on where a checkpoint was made
    Restore(Words),
    /// Suspend all processes in a container
    Pause(Words),
    /// Resume a paused container
    Resume(Words),
    /// Run and manage pods: several containers in one virtual machine
    Pod(Words),
    /// Make and manage templates: saved machines from which others continue instead of booting
    Template(Words),
    /// Update a container's resource limits
    Update(Words),
    /// Print a container's events and resource usage
    Events(Words),
    /// Write an example config.json
    Spec(SpecArgs),
    /// Check whether KVM on this host can run a guest, and print what is missing
    Check,
    /// Print the supported features as JSON (OCI runtime specification, features.md)
    Features,
}

/// The arguments of a command with a parser of its own, not parsed yet. To define the flags of all these commands costs
/// as much as to parse the whole line of a `vmm run`, which must not pay for it.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct Words {
    /// Arguments; --help lists them
    #[arg(value_name = "ARGUMENTS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<OsString>,
}

/// `vmm run`.
#[derive(Debug, Default, Args)]
pub struct RunArgs {
    /// The bundle's directory, or, as with runc, the container's id (then the bundle is --bundle or the current
    /// directory)
    #[arg(value_name = "BUNDLE|ID")]
    pub target: Option<OsString>,
    /// The bundle's directory
    #[arg(short, long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Return once the container runs, and leave it in the background
    #[arg(short, long)]
    pub detach: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub settings: Settings,
    /// The directory of the checkpoint from which `vmm restore` lets the container go on.
    #[arg(skip)]
    pub image: Option<PathBuf>,
}

/// Flags that engines give to runc.
#[derive(Clone, Debug, Default, Args)]
pub struct EngineArgs {
    /// Write the pid of the container's process on the host to FILE
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Send the master file descriptor of the container's terminal to this socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Accepted for runc compatibility; has no effect, because the agent sets the container's root in the guest
    #[arg(long)]
    pub no_pivot: bool,
    /// Accepted for runc compatibility; has no effect, because the guest does not have the host's keyrings
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Must be 0: file descriptors of the host cannot be passed to a guest
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// `--systemd-cgroup` from before the command.
    #[arg(skip)]
    pub systemd_cgroup: bool,
}

/// `vmm spec`.
#[derive(Debug, Args)]
pub struct SpecArgs {
    /// Directory to write config.json to
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Accepted for runc compatibility; has no effect, because a VM needs no privileges on the host
    #[arg(long)]
    pub rootless: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_runc_s_form_and_its_own() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).unwrap().command;
        let Some(Command::Run(run)) = parse("vmm run --bundle /b c1 --memory 512 --log-level debug") else {
            panic!()
        };
        assert_eq!(run.bundle.unwrap(), PathBuf::from("/b"));
        assert_eq!(run.target.unwrap(), "c1");
        assert_eq!(run.settings.memory.unwrap(), "512");
        let Some(Command::Run(run)) = parse("vmm run /b") else { panic!() };
        assert_eq!((run.target.unwrap(), run.bundle), ("/b".into(), None));
        assert!(Cli::try_parse_from(["vmm", "run", "a", "b"]).is_err());
    }
}
