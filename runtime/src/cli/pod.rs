//! `vmm pod` as it was typed.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::config::Settings;

/// `vmm pod`.
#[derive(Debug, Args)]
pub struct PodArgs {
    /// Where the state of pods is [default: /run/vmm, or vmm in the user's runtime directory]
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: PodCommand,
}

/// What is done with pods.
#[derive(Debug, Subcommand)]
pub enum PodCommand {
    /// Run a podfile (JSON, or YAML by its name): several containers in one virtual machine
    Run(Box<PodRunArgs>),
    /// List pods
    #[command(visible_alias = "ls")]
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// List a pod's containers
    Ps {
        /// The pod
        pod: String,
        /// Their processes instead
        #[arg(short, long)]
        processes: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a further program in a container and end with its exit code
    Exec(ExecArgs),
    /// Show what containers wrote
    Logs(LogsArgs),
    /// Show what containers use
    Stats {
        /// The pod
        pod: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// End a pod: each container's stop signal, then SIGKILL
    Stop {
        /// Seconds between the two
        #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
        time: u64,
        /// The pod
        pod: String,
    },
    /// Send a signal to a pod's containers
    Kill {
        /// Name or number
        #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
        signal: String,
        /// To all processes instead of the containers' first ones
        #[arg(short, long)]
        all: bool,
        /// The pod
        pod: String,
        /// One container alone
        container: Option<String>,
    },
    /// Remove what is left of pods that have ended
    Rm {
        /// End those that run
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
        /// A container as in a podfile, JSON or YAML
        container: PathBuf,
    },
    /// Remove a container from a running pod
    Remove {
        /// End it if it runs
        #[arg(short, long)]
        force: bool,
        /// The pod
        pod: String,
        /// The container
        container: String,
    },
    /// Have containers stop where they are
    Pause(MeantArgs),
    /// Have paused containers go on
    #[command(visible_alias = "unpause")]
    Resume(MeantArgs),
}

/// `vmm pod run`.
#[derive(Debug, Args)]
pub struct PodRunArgs {
    /// Return once all containers run, and print the pod's name
    #[arg(short, long)]
    pub detach: bool,
    /// Remove the pod's state when it ends, as a pod in the foreground does
    #[arg(long)]
    pub rm: bool,
    /// The podfile
    pub podfile: PathBuf,
    /// What environment and configuration file may set, too.
    #[command(flatten)]
    pub settings: Settings,
}

/// `vmm pod exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// With a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set a variable
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
    /// Go on until the containers have ended
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    pub tail: Option<usize>,
    /// Only what is younger: 2026-01-31T12:00:00Z, or 90s, 5m, 2h
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// With the time before each line
    #[arg(short, long)]
    pub timestamps: bool,
    /// The pod
    pub pod: String,
    /// One container alone
    pub container: Option<String>,
}

/// A pod, and one of its containers or all.
#[derive(Debug, Args)]
pub struct MeantArgs {
    /// The pod
    pub pod: String,
    /// One container alone
    pub container: Option<String>,
}
