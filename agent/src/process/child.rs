//! The child between fork and exec: it sets itself up and runs its program, or reports why it cannot.

use alloc::format;
use core::convert::Infallible;

use agent_proto::payload::{self, IdMap, IdMaps};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, Uid};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::container::surroundings::{self, Surroundings};
use crate::container::{namespaces, user_namespace};
use crate::fault::{Fault, Step};
use crate::process::program::Program;
use crate::process::pty::Terminal;
use crate::process::user::{self, User};
use crate::process::{credentials, limits, program, report};
use crate::sys;

/// The child's ends of the pipes.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Read end of stdin.
    pub stdin: Option<OwnedFd>,
    /// Write end of stdout.
    pub stdout: Option<OwnedFd>,
    /// Write end of stderr.
    pub stderr: Option<OwnedFd>,
}

/// The container in which a child runs.
#[derive(Debug)]
pub enum Place<'a> {
    /// A new container, which the child sets up.
    New(Surroundings<'a>),
    /// An existing container: the pidfd of its init process, and its ID mappings.
    Join(BorrowedFd<'a>, Option<&'a IdMaps>),
    /// No container: the guest itself, or the host in tests.
    Here,
}

impl<'a> Place<'a> {
    /// Returns the ID mappings of the container's user namespace.
    fn maps(&self) -> Option<&'a IdMaps> {
        match self {
            Place::New(new) => new.spec.oci.as_ref()?.user_namespace.as_ref(),
            Place::Join(_, maps) => *maps,
            Place::Here => None,
        }
    }
}

/// Returns the user ID outside of the container's user namespace.
fn outside(maps: Option<&IdMaps>, uid: Uid) -> Result<Uid, Fault> {
    let Some(maps) = maps else { return Ok(uid) };
    let outside = IdMap::outside(&maps.users, uid.as_raw());
    let unknown =
        || Fault::bad_request(format!("user {} is in no range of the user namespace", uid.as_raw()));
    outside.map(Uid::from_raw).ok_or_else(unknown)
}

/// Everything that a child needs.
#[derive(Debug)]
pub struct Job<'a> {
    /// Specification of the process.
    pub spec: &'a payload::Process,
    /// The container in which the process runs.
    pub place: Place<'a>,
    /// The pod's host name, for API 4244's environment.
    pub hostname: &'a str,
    /// The child's ends of the pipes.
    pub stdio: Stdio,
    /// Socket for reports to the agent.
    pub report: OwnedFd,
}

/// Becomes the process that `job` describes.
pub fn run(job: Job<'_>) -> ! {
    let Err(fault) = start(&job);
    report::send_fault(&job.report, &fault);
    sys::exit(fault.exit_code())
}

fn start(job: &Job<'_>) -> Result<Infallible, Fault> {
    let spec = job.spec;
    sys::reset_signals();
    rustix::process::setsid().step("make", "session")?;
    let Stdio { stdin, stdout, stderr } = &job.stdio;
    install_stdio(stdin.as_ref(), stdout.as_ref(), stderr.as_ref())?;
    // Processes of the container can see this child before it calls execve, while its memory is still the agent's. Our kernel
    // denies them access until then (resources/kernel/patches/ptrace-before-exec.patch), even with SYS_PTRACE. With another
    // kernel the missing dumpable flag keeps out those without SYS_PTRACE.
    let joined = if let Place::Join(init, _) = &job.place { Some(*init) } else { None };
    sys::close_others([Some(job.report.as_fd()), joined]);
    set_dumpable_behavior(DumpableBehavior::NotDumpable).step("hide", "process")?;
    let maps = job.place.maps();
    let folder = maps.map(|_| user_namespace::own_folder()).transpose()?;
    let terminal = settle(job)?;
    let isolated = !matches!(job.place, Place::Here);
    limits::apply(spec, isolated)?;
    limits::apply_scheduling(spec)?;
    let exact = spec.oci.is_some();
    let needs_home = !program::has(spec, "HOME");
    let user = user::resolve(spec, !exact, needs_home, user::read_file)?;
    if let Some(terminal) = &terminal {
        terminal.take(outside(maps, user.uid)?)?;
        report::send_terminal(&job.report, &terminal.master)?;
        let errors = stderr.is_none().then_some(&terminal.slave);
        install_stdio(Some(&terminal.slave), Some(&terminal.slave), errors)?;
    }
    match (&job.place, maps, &folder) {
        (Place::New(_), Some(maps), Some(folder)) => user_namespace::make(maps, folder)?,
        (Place::Join(init, _), Some(_), _) => user_namespace::join(*init)?,
        _ => {}
    }
    become_user(job, &user)?;
    let environment = if exact {
        program::exact_environment(spec, &user)
    } else {
        program::environment_4244(spec, &user, job.hostname)
    };
    let program = Program::new(&spec.args, &environment)?;
    if isolated {
        credentials::apply_last(spec)?;
    }
    Err(program.execute())
}

/// Enters the child's container and opens its terminal there.
fn settle(job: &Job<'_>) -> Result<Option<Terminal>, Fault> {
    let spec = job.spec;
    match &job.place {
        Place::New(new) => {
            limits::make_room(spec)?;
            limits::apply_oom_score(spec)?;
            surroundings::enter(new, spec)
        }
        Place::Join(init, _) => {
            limits::make_room(spec)?;
            limits::apply_oom_score(spec)?;
            namespaces::join(*init)?;
            spec.terminal.then(|| open_terminal(spec, "/dev/pts/ptmx")).transpose()
        }
        Place::Here => spec.terminal.then(|| open_terminal(spec, "/dev/ptmx")).transpose(),
    }
}

fn open_terminal(spec: &payload::Process, path: &str) -> Result<Terminal, Fault> {
    let master = rustix::fs::openat(CWD, path, Terminal::MASTER, Mode::empty()).step("open", path)?;
    Terminal::from_master(master, spec.rows, spec.columns)
}

fn install_stdio(
    stdin: Option<&OwnedFd>,
    stdout: Option<&OwnedFd>,
    stderr: Option<&OwnedFd>,
) -> Result<(), Fault> {
    stdin
        .map_or(Ok(()), rustix::stdio::dup2_stdin)
        .and_then(|()| stdout.map_or(Ok(()), rustix::stdio::dup2_stdout))
        .and_then(|()| stderr.map_or(Ok(()), rustix::stdio::dup2_stderr))
        .step("install", "stdio")
}

fn become_user(job: &Job<'_>, user: &User) -> Result<(), Fault> {
    let directory = if job.spec.workdir.is_empty() { "/" } else { job.spec.workdir.as_str() };
    if let Place::Here = job.place {
        return rustix::process::chdir(directory).step("enter working directory", directory);
    }
    credentials::apply(job.spec, user, directory)
}
