//! The `vmm` command.

use std::io;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use runtime::cli::pod::PodArgs;
use runtime::cli::{Cli, Command, LogArgs};
use runtime::config::RunConfig;
use runtime::{OCI_VERSION, commands, exit, logging};

fn main() -> ExitCode {
    let start = Instant::now();
    let (log, asked) = match parse() {
        Ok(asked) => asked,
        Err(error) => {
            // Nobody is left to tell if this fails.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(exit::FAILED) } else { ExitCode::SUCCESS };
        }
    };
    let result = match asked {
        None => version(),
        Some(asked) => logging::start(&log).map_err(Into::into).and_then(|()| execute(asked, start)),
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

/// What was typed: a command, or one of `vmm pod`'s.
enum Asked {
    Command(Command),
    Pod(Box<PodArgs>),
}

/// Reads the command line; without a command the version is asked for.
fn parse() -> Result<(LogArgs, Option<Asked>), clap::Error> {
    let mut cli = Cli::try_parse()?;
    match cli.command {
        Some(Command::Pod(words)) if !cli.version => {
            let mut args = words.parse(cli.log)?;
            cli.log = std::mem::take(&mut args.log);
            Ok((cli.log, Some(Asked::Pod(Box::new(args)))))
        }
        command => Ok((cli.log, command.filter(|_| !cli.version).map(Asked::Command))),
    }
}

fn execute(asked: Asked, start: Instant) -> Result<u8> {
    match asked {
        Asked::Pod(args) => commands::pod::pod(*args),
        Asked::Command(Command::Run(args)) => {
            commands::run::run(&RunConfig::resolve(*args, |name| std::env::var_os(name))?, start)
        }
        Asked::Command(Command::Spec(args)) => commands::spec::spec(&args.bundle).map(|()| 0),
        Asked::Command(Command::Check) => Ok(u8::from(!commands::check::check(io::stdout().lock())?)),
        Asked::Command(Command::Pod(_)) => unreachable!("read by its own parser"),
    }
}

fn version() -> Result<u8> {
    println!("vmm {}", env!("CARGO_PKG_VERSION"));
    println!("commit: {}", option_env!("VMM_COMMIT").unwrap_or("unknown"));
    println!("spec: {OCI_VERSION}");
    println!("{}", commands::run::embedded());
    Ok(0)
}
