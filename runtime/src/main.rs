//! The `vmm` command.

use std::io;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use runtime::cli::{Cli, Command};
use runtime::config::RunConfig;
use runtime::{OCI_VERSION, commands, exit, logging};

fn main() -> ExitCode {
    let start = Instant::now();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to tell if this fails.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(exit::FAILED) } else { ExitCode::SUCCESS };
        }
    };
    let log = cli.log;
    let result = match (cli.version, cli.command) {
        (true, _) | (_, None) => version(),
        (false, Some(command)) => {
            logging::start(&log).map_err(Into::into).and_then(|()| execute(command, start))
        }
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let (code, message) = exit::of_error(&error);
            logging::failure(&log, &message);
            ExitCode::from(code)
        }
    }
}

fn execute(command: Command, start: Instant) -> Result<u8> {
    match command {
        Command::Run(args) => {
            commands::run::run(&RunConfig::resolve(*args, |name| std::env::var_os(name))?, start)
        }
        Command::Pod(args) => commands::pod::pod(args),
        Command::Spec(args) => commands::spec::spec(&args.bundle).map(|()| 0),
        Command::Check => Ok(u8::from(!commands::check::check(io::stdout().lock())?)),
    }
}

fn version() -> Result<u8> {
    println!("vmm {}", env!("CARGO_PKG_VERSION"));
    println!("commit: {}", option_env!("VMM_COMMIT").unwrap_or("unknown"));
    println!("spec: {OCI_VERSION}");
    println!("{}", commands::run::embedded());
    Ok(0)
}
