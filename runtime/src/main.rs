//! The `vmm` command.

use std::io;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use host::environment;
use oci::OCI_VERSION;
use runtime::cli::container::{ContainerCommand, read};
use runtime::cli::pod::{PodArgs, PodCommand};
use runtime::cli::update::{EventsArgs, UpdateArgs};
use runtime::cli::{Cli, Command, GlobalArgs, LogArgs};
use runtime::config::RunConfig;
use runtime::state::StateRoot;
use runtime::{commands, exit, logging};

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
        Some(asked) => begin(&log, &asked).and_then(|()| execute(asked, start)),
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

/// What was typed: a command, one of `vmm pod`'s, or one of an OCI container's life.
enum Asked {
    Command(Command, GlobalArgs),
    Pod(Box<PodArgs>),
    Container(Box<ContainerCommand>, StateRoot),
    Update(Box<UpdateArgs>),
    Events(Box<EventsArgs>),
}

/// Reads the command line; without a command the version is asked for.
fn parse() -> Result<(LogArgs, Option<Asked>), clap::Error> {
    let mut cli = Cli::try_parse()?;
    if cli.global.debug {
        cli.log.log_level.get_or_insert_with(|| "debug".to_owned());
    }
    match cli.command {
        Some(Command::Pod(words)) if !cli.version => {
            let mut args = PodArgs::read(words, cli.log, cli.global.root)?;
            cli.log = std::mem::take(&mut args.log);
            Ok((cli.log, Some(Asked::Pod(Box::new(args)))))
        }
        Some(Command::Update(words)) if !cli.version => {
            let mut args: UpdateArgs = read("update", words)?;
            let log = std::mem::take(&mut args.log).or(cli.log);
            args.root = args.root.or(cli.global.root);
            Ok((log, Some(Asked::Update(Box::new(args)))))
        }
        Some(Command::Events(words)) if !cli.version => {
            let mut args: EventsArgs = read("events", words)?;
            let log = std::mem::take(&mut args.log).or(cli.log);
            args.root = args.root.or(cli.global.root);
            Ok((log, Some(Asked::Events(Box::new(args)))))
        }
        Some(command) if !cli.version => {
            let (log, global) = (cli.log, cli.global);
            let asked = match ContainerCommand::read(command)? {
                Ok(mut command) => {
                    if let ContainerCommand::Create(args) = &mut command {
                        args.engine.systemd_cgroup = global.systemd_cgroup;
                    }
                    let root = StateRoot::new(global.root, |name| std::env::var_os(name));
                    Asked::Container(Box::new(command), root)
                }
                Err(command) => Asked::Command(*command, global),
            };
            Ok((log, Some(asked)))
        }
        _ => Ok((cli.log, None)),
    }
}

/// Whether the command's process stays, as a machine's or for a further program.
fn stays(asked: &Asked) -> bool {
    match asked {
        Asked::Command(command, _) => matches!(command, Command::Run(_)),
        Asked::Pod(args) => matches!(args.command, PodCommand::Run(_) | PodCommand::Exec(_)),
        Asked::Container(command, _) => {
            matches!(**command, ContainerCommand::Create(_) | ContainerCommand::Exec(_))
        }
        Asked::Update(_) | Asked::Events(_) => false,
    }
}

fn begin(log: &LogArgs, asked: &Asked) -> Result<()> {
    if stays(asked) {
        environment::close_descriptors()?;
    }
    Ok(logging::start(log)?)
}

fn execute(asked: Asked, start: Instant) -> Result<u8> {
    match asked {
        Asked::Pod(args) => commands::pod::pod(*args),
        Asked::Update(args) => commands::update::update(*args).map(|()| 0),
        Asked::Events(args) => commands::events::events(&args).map(|()| 0),
        Asked::Container(command, root) => commands::container::execute(&root, *command),
        Asked::Command(Command::Run(mut args), global) => {
            args.engine.systemd_cgroup = global.systemd_cgroup;
            let root = StateRoot::new(global.root, |name| std::env::var_os(name));
            if args.detach {
                return commands::container::run_detached(&root, *args);
            }
            let engine = std::mem::take(&mut args.engine);
            let mut config = RunConfig::resolve(*args, |name| std::env::var_os(name))?;
            config.vm.systemd_cgroup = engine.systemd_cgroup;
            commands::run::run(&root, config, &engine, start)
        }
        Asked::Command(Command::Spec(args), _) => commands::spec::spec(&args.bundle).map(|()| 0),
        Asked::Command(Command::Check, _) => Ok(u8::from(!commands::check::check(io::stdout().lock())?)),
        Asked::Command(Command::Features, _) => commands::features::features(io::stdout().lock()).map(|()| 0),
        Asked::Command(..) => unreachable!("read by parsers of their own"),
    }
}

fn version() -> Result<u8> {
    println!("vmm {}", env!("CARGO_PKG_VERSION"));
    println!("commit: {}", option_env!("VMM_COMMIT").unwrap_or("unknown"));
    println!("spec: {OCI_VERSION}");
    println!("{}", commands::run::embedded());
    Ok(0)
}
