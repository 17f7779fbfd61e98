//! The program of a process: environment, search path and exec.

use alloc::borrow::ToOwned;
use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use agent_proto::payload::{self, ErrorCode};
use rustix::io::Errno;

use crate::error::{Error, cause};
use crate::process::user::User;
use crate::sys;

/// Search path if the environment has no PATH. API 4244's also contains the working directory.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_PATH_4244: &str = "/usr/local/bin:/usr/bin:/bin:.";

/// Returns the environment of a process in the extended form: the given one, plus HOME if missing.
pub fn exact_environment(spec: &payload::Process, user: &User) -> Vec<String> {
    let mut list: Vec<String> = spec.envs.iter().map(|env| format!("{}={}", env.env, env.value)).collect();
    if !has(spec, "HOME") {
        list.push(format!("HOME={}", user.home));
    }
    list
}

/// Returns the environment of a process of API 4244: its defaults, overridden by the given one.
pub fn environment_4244(spec: &payload::Process, user: &User, hostname: &str) -> Vec<String> {
    let relative = spec.args.first().is_some_and(|program| !program.starts_with('/'));
    let defaults = [
        ("HOME", user.home.as_str(), true),
        ("USER", user.name.as_str(), !user.name.is_empty()),
        ("HOSTNAME", hostname, !hostname.is_empty()),
        ("TERM", "xterm", spec.terminal),
        ("PATH", DEFAULT_PATH_4244, relative),
    ];
    let defaults = defaults.into_iter().filter(|(name, _, wanted)| *wanted && !has(spec, name));
    let given = spec.envs.iter().map(|env| (env.env.as_str(), env.value.as_str()));
    defaults
        .map(|(name, value, _)| (name, value))
        .chain(given)
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

/// Whether the given environment contains `name`.
pub fn has(spec: &payload::Process, name: &str) -> bool {
    spec.envs.iter().any(|env| env.env == name)
}

/// A program with all arguments of execve(2).
#[derive(Debug)]
pub struct Program {
    /// Possible paths in the order of search.
    candidates: Strings,
    args: Strings,
    envs: Strings,
    /// Text that is appended to the error of a failed search.
    note: String,
}

type Strings = Vec<CString>;

impl Program {
    /// Returns a program with its arguments and environment, and determines its possible paths.
    pub fn new(args: &[String], environment: &[String]) -> Result<Program, Error> {
        let args = strings(args)?;
        let envs = strings(environment)?;
        let Some(program) = args.first() else {
            return Err(Error::bad_request("the process has no program"));
        };
        let name = program.to_string_lossy();
        if name.is_empty() || name.contains('/') {
            return Ok(Program { candidates: vec![program.clone()], args, envs, note: String::new() });
        }
        let path = environment.iter().rev().find_map(|variable| variable.strip_prefix("PATH="));
        let path = path.unwrap_or(DEFAULT_PATH);
        let candidates = path.split(':').filter_map(|directory| {
            let directory = if directory.is_empty() { "." } else { directory };
            CString::new(format!("{directory}/{name}")).ok()
        });
        let candidates = candidates.collect();
        Ok(Program { candidates, note: format!(" (searched in {path})"), args, envs })
    }

    /// Replaces this process by the program. Returns only on failure.
    pub fn execute(&self) -> Error {
        let name = self.args[0].to_string_lossy();
        let mut worst = Errno::NOENT;
        for candidate in &self.candidates {
            match sys::execve(candidate, &self.args, &self.envs) {
                Errno::NOENT | Errno::NOTDIR if !self.note.is_empty() => {}
                Errno::ACCESS => worst = Errno::ACCESS,
                other => return error(&name, other, ""),
            }
        }
        error(&name, worst, &self.note)
    }
}

fn strings(list: &[String]) -> Result<Strings, Error> {
    list.iter()
        .map(|text| CString::new(text.as_str()))
        .collect::<Result<_, _>>()
        .map_err(|_| Error::bad_request("arguments or environment contain a NUL byte"))
}

fn error(name: &str, errno: Errno, note: &str) -> Error {
    let code = match errno {
        Errno::NOENT | Errno::NOTDIR => ErrorCode::NotExecutableMissing,
        _ => ErrorCode::NotExecutable,
    };
    Error::new(code, format!("execute {}: {}{note}", name.to_owned(), cause(errno)))
}

#[cfg(test)]
mod tests {
    use agent_proto::payload::{Env, Process};
    use rustix::fs::{Gid, Uid};

    use super::*;

    fn user() -> User {
        User {
            uid: Uid::ROOT,
            gid: Gid::ROOT,
            groups: Vec::new(),
            name: "ann".into(),
            home: "/home/ann".into(),
        }
    }

    fn spec(envs: &[(&str, &str)]) -> Process {
        Process {
            args: vec!["sh".into()],
            envs: envs
                .iter()
                .map(|(env, value)| Env { env: (*env).into(), value: (*value).into() })
                .collect(),
            ..Process::default()
        }
    }

    #[test]
    fn exact_environment_adds_only_a_missing_home() {
        assert_eq!(exact_environment(&spec(&[("A", "b=c")]), &user()), ["A=b=c", "HOME=/home/ann"]);
        assert_eq!(exact_environment(&spec(&[("HOME", "/x")]), &user()), ["HOME=/x"]);
    }

    #[test]
    fn environment_4244_has_its_defaults_and_the_given_one_wins() {
        let list = environment_4244(&spec(&[("PATH", "/p")]), &user(), "h");
        assert_eq!(list, ["HOME=/home/ann", "USER=ann", "HOSTNAME=h", "PATH=/p"]);
    }

    fn execute(args: &[String], environment: &[String]) -> Error {
        Program::new(args, environment).map_or_else(|error| error, |program| program.execute())
    }

    #[test]
    fn missing_program_is_127_and_says_where_it_was_searched() {
        let error = execute(&["no-such-program".into()], &["PATH=/nowhere".into()]);
        assert_eq!(error.code, ErrorCode::NotExecutableMissing);
        assert_eq!(error.text, "execute no-such-program: no such file or directory (searched in /nowhere)");
    }

    #[test]
    fn directory_is_126() {
        assert_eq!(execute(&["/proc".into()], &[]).code, ErrorCode::NotExecutable);
    }

    #[test]
    fn nul_is_refused() {
        assert_eq!(execute(&["a\0b".into()], &[]).code, ErrorCode::BadRequest);
    }
}
