//! The command line of `vmm pod`.
//!
//! It has a parser of its own, which exists only if the command is `pod`: to define this many commands costs as much as
//! to parse the whole line of a `vmm run`, which must not pay for it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::cli::{LateArgs, Settings};

/// Run and manage pods: several containers in one virtual machine
#[derive(Debug, Parser)]
#[command(name = "vmm pod", bin_name = "vmm pod", disable_version_flag = true, arg_required_else_help = true)]
pub struct PodArgs {
    #[command(flatten)]
    pub late: LateArgs,
    #[command(subcommand)]
    pub command: PodCommand,
}

#[derive(Debug, Subcommand)]
pub enum PodCommand {
    /// Run the containers of a podfile (JSON, or YAML if its name ends in .yaml or .yml)
    Run(Box<PodRunArgs>),
    /// List pods
    #[command(visible_alias = "ls")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List a pod's containers
    Ps {
        /// The pod
        pod: String,
        /// List their processes instead
        #[arg(short, long)]
        processes: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a process in a running container and exit with its exit code
    Exec(PodExecArgs),
    /// Print the output of containers
    Logs(LogsArgs),
    /// Print the resource usage of containers
    Stats {
        /// The pod
        pod: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Stop a pod: send each container its stop signal, then SIGKILL
    Stop {
        /// Seconds to wait before SIGKILL
        #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
        time: u64,
        /// The pod
        pod: String,
    },
    /// Send a signal to a pod's containers
    Kill {
        /// Signal, by name or number
        #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
        signal: String,
        /// Send it to all processes, not only to init processes
        #[arg(short, long)]
        all: bool,
        /// The pod
        pod: String,
        /// Only this container
        container: Option<String>,
    },
    /// Delete pods that have ended
    Rm {
        /// Stop running pods first
        #[arg(short, long)]
        force: bool,
        /// The pods
        #[arg(required = true)]
        pods: Vec<String>,
    },
    /// Add a container to a running pod
    Add {
        /// The pod
        pod: String,
        /// File with a container in the form of a podfile's, JSON or YAML
        container: PathBuf,
    },
    /// Remove a container from a running pod
    Remove {
        /// Kill the container if it runs
        #[arg(short, long)]
        force: bool,
        /// The pod
        pod: String,
        /// The container
        container: String,
    },
    /// Suspend all processes in containers
    Pause(TargetArgs),
    /// Resume paused containers
    #[command(visible_alias = "unpause")]
    Resume(TargetArgs),
}

/// `vmm pod run`.
#[derive(Debug, Args)]
pub struct PodRunArgs {
    /// Return once all containers run, and print the pod's name
    #[arg(short, long)]
    pub detach: bool,
    /// With --detach, delete the pod's state when it ends; without, it always is
    #[arg(long)]
    pub rm: bool,
    /// The podfile
    pub podfile: PathBuf,
    #[command(flatten)]
    pub settings: Settings,
}

/// `vmm pod exec`.
#[derive(Debug, Args)]
pub struct PodExecArgs {
    /// Allocate a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Working directory [default: the container's]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User by name or number [default: the container's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// The pod
    pub pod: String,
    /// The container
    pub container: String,
    /// Program and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// `vmm pod logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Follow the output until the containers have ended
    #[arg(short, long)]
    pub follow: bool,
    /// Print only the last LINES lines
    #[arg(short = 'n', long, value_name = "LINES")]
    pub tail: Option<usize>,
    /// Print only newer output: 2026-01-31T12:00:00Z, or an age such as 90s, 5m, 2h
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Print the time before each line
    #[arg(short, long)]
    pub timestamps: bool,
    /// The pod
    pub pod: String,
    /// Only this container
    pub container: Option<String>,
}

/// A pod and either one of its containers or all.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// The pod
    pub pod: String,
    /// Only this container
    pub container: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::container::read;
    use crate::cli::{Cli, Command};

    fn parse(line: &str) -> Result<PodArgs, clap::Error> {
        let cli = Cli::try_parse_from(line.split(' '))?;
        let Some(Command::Pod(words)) = cli.command else { panic!("{line}") };
        let args: PodArgs = read("pod", words)?;
        let late = args.late.or(LateArgs { log: cli.log, root: cli.global.root });
        Ok(PodArgs { late, ..args })
    }

    #[test]
    fn the_definition_is_consistent() {
        PodArgs::command().debug_assert();
    }

    #[test]
    fn flags_stand_before_and_after_the_command() {
        for line in [
            "vmm --log-level debug pod --root /r exec -t p c sh -c -x --root",
            "vmm pod --log-level debug exec --root /r --tty p c sh -c -x --root",
            "vmm pod --root=/r exec -t --log-level debug p c sh -c -x --root",
        ] {
            let args = parse(line).unwrap();
            assert_eq!(
                (args.late.root.unwrap(), args.late.log.log_level.unwrap().as_str()),
                ("/r".into(), "debug")
            );
            let PodCommand::Exec(exec) = args.command else { panic!("{line}") };
            assert!(exec.tty);
            assert_eq!(exec.args, ["sh", "-c", "-x", "--root"]);
        }
    }

    #[test]
    fn help_is_of_the_pod_s_commands() {
        let help = parse("vmm pod --help").unwrap_err().to_string();
        assert!(help.contains("Usage: vmm pod [OPTIONS] <COMMAND>") && help.contains("  exec "), "{help}");
        let help = parse("vmm pod exec --help").unwrap_err().to_string();
        assert!(help.contains("Usage: vmm pod exec [OPTIONS] <POD>"), "{help}");
        assert!(parse("vmm pod").is_err() && parse("vmm pod wonder").is_err());
    }
}
