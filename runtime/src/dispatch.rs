//! From the command line to a subcommand: parses it, prepares the process, and turns an error into an exit code.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;
use std::time::Instant;

use crate::cli::checkpoint::read_restore;
use crate::cli::container::{CreateArgs, IdArgs, read};
use crate::cli::pod::{PodArgs, PodCommand};
use crate::cli::template::{TemplateArgs, TemplateCommand};
use crate::cli::update::{EventsArgs, UpdateArgs};
use crate::cli::{Cli, Command, GlobalArgs, LateArgs, LogArgs, Words};
use crate::commands::container::delete::delete;
use crate::commands::container::{checkpoint, create, exec, kill, list, pause, start, state};
use crate::exit::{self, CodedError};
use crate::state::StateRoot;
use crate::template::maker;
use crate::{commands, logging};
use anyhow::Result;
use clap::Parser;
use host::environment;
use oci::OCI_VERSION;

/// Runs the command that this process was started for.
pub fn main() -> ExitCode {
    let start = Instant::now();
    let parsed = match is_maker(std::env::args_os()) {
        true => Ok((LogArgs::default(), template(TemplateCommand::Make))),
        false => parse(),
    };
    let (log, job) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            // There is no other place to report an error of this write.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(exit::FAILED) } else { ExitCode::SUCCESS };
        }
    };
    match job.execute(&log, start) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let (code, message) = exit::of_error(&error);
            logging::failure(&log, &message);
            ExitCode::from(code)
        }
    }
}

/// A parsed command, and what `main` must know before it executes the command.
struct Job {
    work: Box<dyn FnOnce(Instant) -> Result<u8>>,
    /// The process stays in the background, for a machine or an exec process, and must close the caller's descriptors.
    stays: bool,
    /// The exit code of a failure, for runc compatibility.
    failed: Option<u8>,
}

impl Job {
    fn new(work: impl FnOnce(Instant) -> Result<u8> + 'static) -> Job {
        Job { work: Box::new(work), stays: false, failed: None }
    }

    /// A command with runc's exit code for a failure.
    fn of_runc(work: impl FnOnce() -> Result<u8> + 'static) -> Job {
        Job { failed: Some(exit::OCI_FAILED), ..Job::new(|_| work()) }
    }

    fn stays(self, stays: bool) -> Job {
        Job { stays, ..self }
    }

    fn failing_with(self, code: u8) -> Job {
        Job { failed: Some(code), ..self }
    }

    fn execute(self, log: &LogArgs, start: Instant) -> Result<u8> {
        if self.stays {
            environment::close_descriptors()?;
        }
        logging::start(log)?;
        (self.work)(start).map_err(|error| match self.failed {
            Some(code) => CodedError { code, message: exit::of_error(&error).1 }.into(),
            None => error,
        })
    }
}

/// Parses the command line. With --version and no command, prints the version.
fn parse() -> Result<(LogArgs, Job), clap::Error> {
    let mut cli = Cli::try_parse()?;
    if cli.global.debug {
        cli.log.log_level.get_or_insert_with(|| "debug".to_owned());
    }
    let Some(command) = cli.command.filter(|_| !cli.version) else {
        return Ok((LogArgs::default(), Job::new(|_| version())));
    };
    let GlobalArgs { root, systemd_cgroup, .. } = cli.global;
    let mut given = LateArgs { log: cli.log, root };
    let root = state_root(&given);
    let job = match command {
        Command::Run(mut args) => {
            args.engine.systemd_cgroup = systemd_cgroup;
            Job::new(move |start| commands::run::run(&root, *args, start)).stays(true)
        }
        Command::Create(words) => create(words, root, systemd_cgroup)?,
        Command::Start(words) => {
            container("start", words, root, |root, args: &IdArgs| start(root, &args.id))?
        }
        Command::State(words) => {
            container("state", words, root, |root, args: &IdArgs| state(root, &args.id))?
        }
        Command::Kill(words) => container("kill", words, root, kill)?,
        Command::Delete(words) => container("delete", words, root, delete)?,
        Command::Exec(words) => {
            let args = read("exec", words)?;
            let exec = Job::of_runc(move || exec::exec(&root, args));
            exec.failing_with(exit::EXEC_FAILED).stays(true)
        }
        Command::List(words) => container("list", words, root, list::list)?,
        Command::Ps(words) => container("ps", words, root, list::ps)?,
        Command::Pause(words) => {
            container("pause", words, root, |root, args: &IdArgs| pause(root, &args.id, true))?
        }
        Command::Resume(words) => {
            container("resume", words, root, |root, args: &IdArgs| pause(root, &args.id, false))?
        }
        Command::Checkpoint(words) => container("checkpoint", words, root, checkpoint::checkpoint)?,
        Command::Restore(words) => restore(words, root, systemd_cgroup)?,
        Command::Pod(words) => {
            let PodArgs { late, command } = read("pod", words)?;
            given = late.or(given);
            let root = state_root(&given);
            let stays = matches!(command, PodCommand::Run(_) | PodCommand::Exec(_));
            Job::new(move |_| commands::pod::pod(&root, command)).stays(stays)
        }
        Command::Template(words) => {
            let TemplateArgs { late, command } = read("template", words)?;
            given = late.or(given);
            template(command)
        }
        Command::Update(words) => {
            let mut args: UpdateArgs = read("update", words)?;
            given = std::mem::take(&mut args.late).or(given);
            let root = state_root(&given);
            Job::new(move |_| commands::update::update(&root, &args).map(|()| 0))
        }
        Command::Events(words) => {
            let mut args: EventsArgs = read("events", words)?;
            given = std::mem::take(&mut args.late).or(given);
            let root = state_root(&given);
            Job::new(move |_| commands::events::events(&root, &args).map(|()| 0))
        }
        Command::Spec(args) => Job::new(move |_| commands::spec::spec(&args.bundle).map(|()| 0)),
        Command::Check => Job::new(|_| Ok(u8::from(!commands::check::check(io::stdout().lock())?))),
        Command::Features => Job::new(|_| commands::features::features(io::stdout().lock()).map(|()| 0)),
    };
    Ok((given.log, job))
}

fn create(words: Words, root: StateRoot, systemd_cgroup: bool) -> Result<Job, clap::Error> {
    let mut args: CreateArgs = read("create", words)?;
    args.engine.systemd_cgroup = systemd_cgroup;
    Ok(Job::of_runc(move || create::create_from(&root, args)).stays(true))
}

fn restore(words: Words, root: StateRoot, systemd_cgroup: bool) -> Result<Job, clap::Error> {
    let mut args = read_restore(words)?;
    args.engine.systemd_cgroup = systemd_cgroup;
    Ok(Job::of_runc(move || checkpoint::restore(&root, args, Instant::now())).stays(true))
}

/// Whether these words, with the program's name, start the process that makes a template. Whoever starts it boots a machine at the same
/// time, so it does not pay for the parser's definitions.
fn is_maker(words: impl Iterator<Item = OsString>) -> bool {
    words.skip(1).eq(maker::WORDS)
}

fn template(command: TemplateCommand) -> Job {
    // The caller of this one does not wait for it.
    let stays = matches!(command, TemplateCommand::Make);
    Job::new(move |_| commands::template::template(command)).stays(stays)
}

/// Returns the command for the container that `words` name.
fn container<A: Parser + 'static>(
    name: &'static str,
    words: Words,
    root: StateRoot,
    command: fn(&StateRoot, &A) -> Result<u8>,
) -> Result<Job, clap::Error> {
    let args: A = read(name, words)?;
    Ok(Job::of_runc(move || command(&root, &args)))
}

fn state_root(given: &LateArgs) -> StateRoot {
    StateRoot::new(given.root.clone(), |name| std::env::var_os(name))
}

fn version() -> Result<u8> {
    println!("vmm {}", env!("CARGO_PKG_VERSION"));
    println!("commit: {}", option_env!("VMM_COMMIT").unwrap_or("unknown"));
    println!("spec: {OCI_VERSION}");
    println!("{}", commands::run::embedded());
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_that_makes_a_template_is_known_by_its_words() {
        let is = |words: &[&str]| is_maker(words.iter().map(OsString::from));
        assert!(is(&["vmm", "template", "make"]));
        assert!(!is(&[]) && !is(&["vmm"]) && !is(&["vmm", "template"]));
        assert!(!is(&["vmm", "template", "create"]) && !is(&["vmm", "template", "make", "--help"]));
    }
}
