//! The command line as it was typed. What it means is [`crate::config`]'s business.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::Settings;

pub mod container;
pub mod pod;
pub mod tree;
pub mod update;

/// Runs OCI containers, each in a micro virtual machine of its own.
#[derive(Debug, Parser)]
#[command(name = "vmm", disable_version_flag = true, arg_required_else_help = true)]
pub struct Cli {
    /// Print version, commit, and what is embedded
    #[arg(short = 'V', long)]
    pub version: bool,
    /// Settings of the program's own log.
    #[command(flatten)]
    pub log: LogArgs,
    /// What is said before the command, as with runc.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The program's own log.
#[derive(Debug, Default, Args)]
pub struct LogArgs {
    /// Write the log to FILE instead of stderr
    #[arg(long, global = true, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Log this and what is more severe: off, error, warn, info, debug, trace [default: warn]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Form of the log: text or json [default: text]
    #[arg(long, global = true, value_name = "FORM")]
    pub log_format: Option<String>,
}

/// What is said before the command.
#[derive(Debug, Default, Args)]
pub struct GlobalArgs {
    /// Where the state of containers is [default: /run/vmm, or vmm in the user's runtime directory]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Log what helps to find a fault
    #[arg(long)]
    pub debug: bool,
    /// linux.cgroupsPath is in systemd's form
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Taken for runc's sake: without effect
    #[arg(long, value_name = "PATH", hide = true)]
    pub criu: Option<PathBuf>,
    /// Taken for runc's sake: without effect, since a VM needs no privileges on the host
    #[arg(long, value_name = "true|false|auto", hide = true)]
    pub rootless: Option<String>,
}

impl LogArgs {
    /// Takes from `other` what is not said.
    pub fn or(self, other: LogArgs) -> LogArgs {
        LogArgs {
            log: self.log.or(other.log),
            log_level: self.log_level.or(other.log_level),
            log_format: self.log_format.or(other.log_format),
        }
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a bundle and end with its exit code
    Run(Box<RunArgs>),
    /// Make a container, whose program waits for its start
    #[command(disable_help_flag = true)]
    Create(Words),
    /// Start a container's program
    #[command(disable_help_flag = true)]
    Start(Words),
    /// Print a container's state
    #[command(disable_help_flag = true)]
    State(Words),
    /// Send a signal to a container
    #[command(disable_help_flag = true)]
    Kill(Words),
    /// Remove what is left of a container
    #[command(disable_help_flag = true)]
    Delete(Words),
    /// Run a further program in a container
    #[command(disable_help_flag = true)]
    Exec(Words),
    /// List containers
    #[command(disable_help_flag = true)]
    List(Words),
    /// List a container's processes on the host
    #[command(disable_help_flag = true)]
    Ps(Words),
    /// Have a container stop where it is
    #[command(disable_help_flag = true)]
    Pause(Words),
    /// Have a paused container go on
    #[command(disable_help_flag = true)]
    Resume(Words),
    /// Run several containers in one virtual machine, and look after them
    #[command(disable_help_flag = true)]
    Pod(Words),
    /// Give a running container other limits
    #[command(disable_help_flag = true)]
    Update(Words),
    /// Tell what happens to a running container, and what it uses
    #[command(disable_help_flag = true)]
    Events(Words),
    /// Write a config.json to start from
    Spec(SpecArgs),
    /// Say whether this machine's KVM can run a guest, and if not what is missing
    Check,
    /// Print what of a config.json is honoured (OCI runtime specification, features.md)
    Features,
}

/// What follows a command that has a parser of its own, unread: to define these costs as much as to read the whole line of a
/// `vmm run`, which must not pay for it.
#[derive(Debug, Args)]
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
    /// Leave the container in the background, once it runs
    #[arg(short, long)]
    pub detach: bool,
    /// What is the same for a container that is created.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// What environment and configuration file may set, too.
    #[command(flatten)]
    pub settings: Settings,
}

/// What engines say to runc.
#[derive(Debug, Default, Args)]
pub struct EngineArgs {
    /// Write the number of the container's process on the host to FILE
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Send the controller of the container's terminal to this socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Taken for runc's sake: the guest's own root is a memory file system, and is not left by pivot_root(2) anyway
    #[arg(long)]
    pub no_pivot: bool,
    /// Taken for runc's sake: the host's keyrings are not in the guest
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Not honoured but for 0: a descriptor of the host leads nowhere in a guest
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// What was said of cgroups before the command.
    #[arg(skip)]
    pub systemd_cgroup: bool,
}

/// `vmm spec`.
#[derive(Debug, Args)]
pub struct SpecArgs {
    /// Where to write it
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Taken for runc's sake: a VM needs no privileges on the host, so the file is the same
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
