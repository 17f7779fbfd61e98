//! The commands of an OCI container's life as they were typed, with runc's words.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};

use super::{EngineArgs, Words};

/// Reads what follows a command of this name.
pub fn read<T: Parser>(name: &str, words: Words) -> Result<T, clap::Error> {
    T::try_parse_from([OsString::from(format!("vmm {name}"))].into_iter().chain(words.words))
}

/// Make a container, whose program waits for its start
#[derive(Debug, Parser)]
#[command(name = "vmm create")]
pub struct CreateArgs {
    /// The container's id
    pub id: OsString,
    /// The bundle's directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// What is the same for a container that is run.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Commands that take an id alone.
#[derive(Debug, Parser)]
pub struct IdArgs {
    /// The container's id
    pub id: String,
}

/// Send a signal to a container
#[derive(Debug, Parser)]
#[command(name = "vmm kill")]
pub struct KillArgs {
    /// To all of its processes
    #[arg(short, long)]
    pub all: bool,
    /// The container's id
    pub id: String,
    /// Name or number
    #[arg(default_value = "SIGTERM")]
    pub signal: String,
}

/// Remove what is left of a container
#[derive(Debug, Parser)]
#[command(name = "vmm delete")]
pub struct DeleteArgs {
    /// Kill it first if it runs; one that is not there is no error
    #[arg(short, long)]
    pub force: bool,
    /// The container's id
    pub id: String,
}

/// How a list is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// List containers
#[derive(Debug, Parser)]
#[command(name = "vmm list")]
pub struct ListArgs {
    /// table or json
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    pub format: Format,
    /// Ids alone
    #[arg(short, long)]
    pub quiet: bool,
}

/// List a container's processes on the host: its machine's, and those that stand for further programs
#[derive(Debug, Parser)]
#[command(name = "vmm ps")]
pub struct PsArgs {
    /// table or json
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    pub format: Format,
    /// The container's id
    pub id: String,
    /// Options of ps(1) [default: -ef]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub options: Vec<OsString>,
}

/// Run a further program in a container
#[derive(Debug, Parser)]
#[command(name = "vmm exec")]
pub struct ExecArgs {
    /// A process as in config.json, in place of what is said here
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Leave it in the background, once it runs
    #[arg(short, long)]
    pub detach: bool,
    /// Write the number of the process that stands for it to FILE
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Send the controller of its terminal to this socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Not honoured but for 0: a descriptor of the host leads nowhere in a guest
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// A paused container is no error: the program runs when the container goes on
    #[arg(long)]
    pub ignore_paused: bool,
    /// A cgroup below the container's own, as the guest has it
    #[arg(long, value_name = "PATH", default_value = "/", hide_default_value = true)]
    pub cgroup: String,
    /// What the process is.
    #[command(flatten)]
    pub words: ProcessArgs,
    /// The container's id
    pub id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// A process in words; what is not said is as in the container's first.
#[derive(Debug, Default, Args)]
pub struct ProcessArgs {
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// NAME=VALUE
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// User and group by number
    #[arg(short, long, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// Further groups
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// No program may gain privileges
    #[arg(long)]
    pub no_new_privs: bool,
    /// Further capabilities
    #[arg(short, long, value_name = "CAP")]
    pub cap: Vec<String>,
    /// An AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// A label of SELinux
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
