//! The command line as it was typed. What it means is [`crate::config`]'s business.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::Settings;

pub mod pod;

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

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a bundle and end with its exit code
    Run(Box<RunArgs>),
    /// Run several containers in one virtual machine, and look after them
    #[command(disable_help_flag = true)]
    Pod(pod::PodWords),
    /// Write a config.json to start from
    Spec(SpecArgs),
    /// Say whether this machine's KVM can run a guest, and if not what is missing
    Check,
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
    /// What environment and configuration file may set, too.
    #[command(flatten)]
    pub settings: Settings,
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
