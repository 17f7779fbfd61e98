//! The command line of `vmm template`, with a parser of its own, as for `vmm pod`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::cli::{LateArgs, Settings};

/// Make and manage templates: saved machines from which others continue instead of booting
#[derive(Debug, Parser)]
#[command(name = "vmm template", bin_name = "vmm template", disable_version_flag = true)]
pub struct TemplateArgs {
    #[command(flatten)]
    pub late: LateArgs,
    #[command(subcommand)]
    pub command: TemplateCommand,
}

/// The commands of `vmm template`.
#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// Make the template for a container without limits, or for the machine of a bundle
    Create(Box<TemplateCreateArgs>),
    /// List templates
    #[command(visible_alias = "ls")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Compare each memory with its checksum
        #[arg(long)]
        verify: bool,
    },
    /// Remove templates
    Rm {
        /// Names of the templates
        #[arg(required_unless_present = "all")]
        templates: Vec<String>,
        /// Remove all
        #[arg(long, conflicts_with = "templates")]
        all: bool,
    },
    /// Remove templates that no machine can continue from any more, and what a killed `vmm template create` left
    Gc,
    /// Make the template of an order on standard input: started by other commands
    #[command(hide = true)]
    Make,
}

/// `vmm template create`.
#[derive(Debug, Args)]
pub struct TemplateCreateArgs {
    /// The bundle's directory: its limits and capabilities determine the machine
    #[arg(short, long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Make it again, if there is one
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub settings: Settings,
}
