//! The child between fork and exec: it sets itself up and runs its program, or reports why it cannot.

use alloc::format;
use core::convert::Infallible;

use agent_proto::payload::{self, IdMap, IdMaps};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, Uid};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::container::setup::{self, Setup};
use crate::container::{namespaces, user_namespace};
use crate::error::{Error, Step};
use crate::process::program::Program;
use crate::process::user::{self, User};
use crate::process::{credentials, limits, program, report};
use crate::pty::Terminal;
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

impl Stdio {
    /// Makes `user` the owner of the pipes, which are installed as standard streams. Programs open their standard streams
    /// again by path, `/dev/stdout` for example, which only the owner of a pipe may do.
    fn give_to(&self, user: Uid) -> Result<(), Error> {
        let pipes = [&self.stdin, &self.stdout, &self.stderr];
        let mut installed = pipes.into_iter().zip(sys::standard_streams()).filter(|(pipe, _)| pipe.is_some());
        let given = installed.try_for_each(|(_, stream)| rustix::fs::fchown(stream, Some(user), None));
        given.step("change owner of", "stdio")
    }
}

/// The container in which a child runs.
#[derive(Debug)]
pub enum ChildContainer<'a> {
    /// A new container, which the child sets up.
    New(Setup<'a>),
    /// An existing container: the pidfd of its init process, and its ID mappings.
    Existing(BorrowedFd<'a>, Option<&'a IdMaps>),
    /// No container: the guest itself, or the host in tests.
    None,
}

impl<'a> ChildContainer<'a> {
    /// Returns the ID mappings of the container's user namespace.
    fn maps(&self) -> Option<&'a IdMaps> {
        match self {
            ChildContainer::New(new) => new.spec.oci.as_ref()?.user_namespace.as_ref(),
            ChildContainer::Existing(_, maps) => *maps,
            ChildContainer::None => None,
        }
    }
}

/// Returns the user ID outside of the container's user namespace.
fn outside(maps: Option<&IdMaps>, uid: Uid) -> Result<Uid, Error> {
    let Some(maps) = maps else { return Ok(uid) };
    let outside = IdMap::outside(&maps.users, uid.as_raw());
    let unknown =
        || Error::bad_request(format!("user ID {} is not mapped in the user namespace", uid.as_raw()));
    outside.map(Uid::from_raw).ok_or_else(unknown)
}

/// Configuration of a child.
#[derive(Debug)]
pub struct Child<'a> {
    /// Specification of the process.
    pub spec: &'a payload::Process,
    /// The container in which the process runs.
    pub container: ChildContainer<'a>,
    /// The pod's host name, for API 4244's environment.
    pub hostname: &'a str,
    /// The child's ends of the pipes.
    pub stdio: Stdio,
    /// Socket for reports to the agent.
    pub report: OwnedFd,
}

/// Becomes the process that `child` describes.
pub fn run(child: Child<'_>) -> ! {
    let Err(error) = start(&child);
    report::send_error(&child.report, &error);
    sys::exit(error.exit_code())
}

fn start(child: &Child<'_>) -> Result<Infallible, Error> {
    let spec = child.spec;
    sys::reset_signals();
    rustix::process::setsid().step("create", "session")?;
    let Stdio { stdin, stdout, stderr } = &child.stdio;
    install_stdio(stdin.as_ref(), stdout.as_ref(), stderr.as_ref())?;
    // Processes of the container can see this child before it calls execve, while its memory is still the agent's. The
    // project's kernel denies them access until then (resources/kernel/patches/ptrace-before-exec.patch), even with
    // SYS_PTRACE. With another kernel the missing dumpable flag keeps out those without SYS_PTRACE.
    let joined = if let ChildContainer::Existing(init, _) = &child.container { Some(*init) } else { None };
    if let ChildContainer::New(new) = &child.container {
        namespaces::join(new.joined)?;
    }
    sys::close_others([Some(child.report.as_fd()), joined]);
    set_dumpable_behavior(DumpableBehavior::NotDumpable).step("clear", "dumpable flag")?;
    let maps = child.container.maps();
    let proc_self = maps.map(|_| user_namespace::open_proc_self()).transpose()?;
    let terminal = enter_container(child)?;
    let isolated = !matches!(child.container, ChildContainer::None);
    limits::apply(spec, isolated)?;
    limits::apply_scheduling(spec)?;
    let exact = spec.oci.is_some();
    let needs_home = !program::has(spec, "HOME");
    let user = user::resolve(spec, !exact, needs_home, user::read_file)?;
    if isolated {
        child.stdio.give_to(outside(maps, user.uid)?)?;
    }
    if let Some(terminal) = &terminal {
        terminal.take(outside(maps, user.uid)?)?;
        report::send_terminal(&child.report, &terminal.master)?;
        let errors = stderr.is_none().then_some(&terminal.slave);
        install_stdio(Some(&terminal.slave), Some(&terminal.slave), errors)?;
    }
    match (&child.container, maps, &proc_self) {
        (ChildContainer::New(_), Some(maps), Some(proc_self)) => user_namespace::create(maps, proc_self)?,
        (ChildContainer::Existing(init, _), Some(_), _) => user_namespace::enter(*init)?,
        _ => {}
    }
    become_user(child, &user)?;
    let environment = if exact {
        program::exact_environment(spec, &user)
    } else {
        program::environment_4244(spec, &user, child.hostname)
    };
    let program = Program::new(&spec.args, &environment)?;
    if isolated {
        credentials::apply_last(spec)?;
    }
    Err(program.execute())
}

/// Enters the child's container and opens its terminal there.
fn enter_container(child: &Child<'_>) -> Result<Option<Terminal>, Error> {
    let spec = child.spec;
    match &child.container {
        ChildContainer::New(new) => {
            limits::make_room(spec)?;
            limits::apply_oom_score(spec)?;
            setup::set_up(new, spec)
        }
        ChildContainer::Existing(init, _) => {
            limits::make_room(spec)?;
            limits::apply_oom_score(spec)?;
            namespaces::enter(*init)?;
            spec.terminal.then(|| open_terminal(spec, "/dev/pts/ptmx")).transpose()
        }
        ChildContainer::None => spec.terminal.then(|| open_terminal(spec, "/dev/ptmx")).transpose(),
    }
}

fn open_terminal(spec: &payload::Process, path: &str) -> Result<Terminal, Error> {
    let master = rustix::fs::openat(CWD, path, Terminal::MASTER, Mode::empty()).step("open", path)?;
    Terminal::from_master(master, spec.rows, spec.columns)
}

fn install_stdio(
    stdin: Option<&OwnedFd>,
    stdout: Option<&OwnedFd>,
    stderr: Option<&OwnedFd>,
) -> Result<(), Error> {
    stdin
        .map_or(Ok(()), rustix::stdio::dup2_stdin)
        .and_then(|()| stdout.map_or(Ok(()), rustix::stdio::dup2_stdout))
        .and_then(|()| stderr.map_or(Ok(()), rustix::stdio::dup2_stderr))
        .step("redirect", "stdio")
}

fn become_user(child: &Child<'_>, user: &User) -> Result<(), Error> {
    let directory = if child.spec.workdir.is_empty() { "/" } else { child.spec.workdir.as_str() };
    if let ChildContainer::None = child.container {
        return rustix::process::chdir(directory).step("enter working directory", directory);
    }
    credentials::apply(child.spec, user, directory)
}
