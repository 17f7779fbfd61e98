//! The command lines of an OCI container's life, with runc's flags.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};

use super::{EngineArgs, Words};

pub fn read<T: Parser>(name: &str, words: Words) -> Result<T, clap::Error> {
    T::try_parse_from([OsString::from(format!("vmm {name}"))].into_iter().chain(words.words))
}

/// Create a container; its program waits for `start`
#[derive(Debug, Parser)]
#[command(name = "vmm create")]
pub struct CreateArgs {
    /// The container's id
    pub id: OsString,
    /// The bundle's directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Debug, Parser)]
pub struct IdArgs {
    /// The container's id
    pub id: String,
}

/// Send a signal to a container
#[derive(Debug, Parser)]
#[command(name = "vmm kill")]
pub struct KillArgs {
    /// Send it to all processes in the container
    #[arg(short, long)]
    pub all: bool,
    /// The container's id
    pub id: String,
    /// Signal, by name or number
    #[arg(default_value = "SIGTERM")]
    pub signal: String,
}

/// Delete a container
#[derive(Debug, Parser)]
#[command(name = "vmm delete")]
pub struct DeleteArgs {
    /// Kill the container if it runs; succeed if it does not exist
    #[arg(short, long)]
    pub force: bool,
    /// The container's id
    pub id: String,
}

/// Output format of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns with a header.
    Table,
    /// One JSON document.
    Json,
}

/// List containers
#[derive(Debug, Parser)]
#[command(name = "vmm list")]
pub struct ListArgs {
    /// Output format: table or json
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    pub format: Format,
    /// Print only ids
    #[arg(short, long)]
    pub quiet: bool,
}

/// List the host processes of a container: its VMM, and those that represent exec processes
#[derive(Debug, Parser)]
#[command(name = "vmm ps")]
pub struct PsArgs {
    /// Output format: table or json
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    pub format: Format,
    /// The container's id
    pub id: String,
    /// Options of ps(1) [default: -ef]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub options: Vec<OsString>,
}

/// Run a process in a running container
#[derive(Debug, Parser)]
#[command(name = "vmm exec")]
pub struct ExecArgs {
    /// Read the process from FILE, in the form of config.json's `process`, instead of from flags
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Return once the process runs, and leave it in the background
    #[arg(short, long)]
    pub detach: bool,
    /// Write the pid of the host process that represents the exec process to FILE
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Send the master file descriptor of the exec process's terminal to this socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Must be 0: file descriptors of the host cannot be passed to a guest
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// If the container is paused, run the process when it is resumed instead of failing
    #[arg(long)]
    pub ignore_paused: bool,
    /// Cgroup in the guest, relative to the container's
    #[arg(long, value_name = "PATH", default_value = "/", hide_default_value = true)]
    pub cgroup: String,
    #[command(flatten)]
    pub words: ProcessArgs,
    /// The container's id
    pub id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// An exec process as flags; the defaults are those of the init process.
#[derive(Debug, Default, Args)]
pub struct ProcessArgs {
    /// Allocate a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Numeric user and group
    #[arg(short, long, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// Additional group
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// Set no_new_privs: execve(2) grants no privileges
    #[arg(long)]
    pub no_new_privs: bool,
    /// Additional capability
    #[arg(short, long, value_name = "CAP")]
    pub cap: Vec<String>,
    /// AppArmor profile; only unconfined and the engines' default profiles are accepted
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// SELinux label; refused, because the guest has no SELinux
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Words {
        Words { words: line.split(' ').map(OsString::from).collect() }
    }

    #[test]
    fn engines_lines_are_read() {
        let create: CreateArgs =
            read("create", words("--bundle /b --pid-file /p --console-socket /s --no-pivot c")).unwrap();
        assert_eq!((create.id, create.bundle), ("c".into(), "/b".into()));
        assert_eq!(create.engine.console_socket, Some("/s".into()));
        let kill: KillArgs = read("kill", words("--all c 9")).unwrap();
        assert_eq!((kill.all, kill.signal.as_str()), (true, "9"));
        assert_eq!(read::<KillArgs>("kill", words("c")).unwrap().signal, "SIGTERM");
        let exec: ExecArgs = read("exec", words("-t -e A=b --cwd / c sh -c -x")).unwrap();
        assert_eq!((exec.id.as_str(), exec.args.len(), exec.words.tty), ("c", 3, true));
        let exec: ExecArgs = read("exec", words("--process /f --detach --pid-file /p c")).unwrap();
        assert!(exec.detach && exec.process.is_some() && exec.args.is_empty());
        let ps: PsArgs = read("ps", words("--format json c -ef")).unwrap();
        assert_eq!((ps.format, ps.options.len()), (Format::Json, 1));
        assert!(read::<DeleteArgs>("delete", words("--force")).is_err());
    }
}
