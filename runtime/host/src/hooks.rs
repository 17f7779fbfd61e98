//! Hooks: programs that an engine wants to run on the host at the points of the runtime specification (`runtime.md`,
//! "Lifecycle"). Each hook reads the container's state from its standard input.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use oci::spec::Hook;

use crate::sys;

/// Maximum length in bytes of a hook's stderr in an error.
const STDERR_MAX: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("run {kind} hook {}", path.display())]
    Run {
        /// Kind of hook, such as `prestart`.
        kind: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The hook failed, or exceeded its timeout and was killed.
    #[error("{kind} hook {}: {why}", path.display())]
    Failed {
        kind: &'static str,
        path: PathBuf,
        /// Exit status with the beginning of its stderr, or the timeout.
        why: String,
    },
}

pub type Result<T, E = HookError> = std::result::Result<T, E>;

/// Environment variables of hooks whose configuration has none.
#[derive(Clone, Debug, Default)]
pub struct Variables(Vec<(OsString, OsString)>);

impl Variables {
    /// Returns the environment of this process.
    pub fn own() -> Variables {
        Variables(std::env::vars_os().collect())
    }

    /// Overwrites the variables in memory, so that a guest that breaks out of its machine cannot read them.
    pub fn forget(self) {
        for (name, value) in self.0 {
            for text in [name, value] {
                let mut bytes = text.into_encoded_bytes();
                bytes.fill(0);
                std::hint::black_box(&bytes);
            }
        }
    }

    /// Keeps the variables if one of `hooks` needs them, and overwrites them otherwise.
    pub fn kept_for<'a>(self, mut hooks: impl Iterator<Item = &'a Hook>) -> Variables {
        if hooks.any(|hook| hook.env.is_none()) {
            return self;
        }
        self.forget();
        Variables::default()
    }
}

/// Runs `hooks` in their order, each with `state` as its standard input. Hooks without their own environment get
/// `environment`. Stops at the first hook that fails.
pub fn run(kind: &'static str, hooks: &[Hook], state: &[u8], environment: &Variables) -> Result<()> {
    hooks.iter().try_for_each(|hook| run_one(kind, hook, state, environment))
}

fn run_one(kind: &'static str, hook: &Hook, state: &[u8], environment: &Variables) -> Result<()> {
    let path = hook.path.clone();
    let failed = |source| HookError::Run { kind, path: path.clone(), source };
    let (mut child, mut stderr) = start(hook, state, environment).map_err(failed)?;
    let limit = hook.timeout.filter(|seconds| *seconds > 0);
    let why = match wait(&mut child, limit.map(Duration::from_secs)).map_err(failed)? {
        Some(status) if status.success() => return Ok(()),
        Some(status) => format!("{status}{}", text_of(&mut stderr)),
        None => format!("timed out after {} s", limit.unwrap_or_default()),
    };
    Err(HookError::Failed { kind, path, why })
}

/// Starts a hook. Its stdin and stderr are files in memory, so that neither side ever blocks on a pipe.
fn start(hook: &Hook, state: &[u8], environment: &Variables) -> io::Result<(Child, File)> {
    let mut input = sys::memory_file(c"vmm-state")?;
    input.write_all(state)?;
    input.seek(SeekFrom::Start(0))?;
    let stderr = sys::memory_file(c"vmm-hook")?;
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    command.env_clear();
    match &hook.env {
        Some(env) => command.envs(env.iter().filter_map(|variable| variable.split_once('='))),
        None => command.envs(environment.0.iter().map(|(name, value)| (name, value))),
    };
    command.stdin(input).stdout(Stdio::null()).stderr(stderr.try_clone()?);
    sys::unblock_signals_in(&mut command)?;
    Ok((command.spawn()?, stderr))
}

/// Waits for the exit status. Returns `None` if the hook exceeded `limit` and was killed.
fn wait(child: &mut Child, limit: Option<Duration>) -> io::Result<Option<ExitStatus>> {
    if let Some(limit) = limit {
        let process = sys::process(child.id())?;
        let [ended] = sys::poll([(process.as_fd(), libc::POLLIN)], Some(limit))?;
        if !ended {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
    }
    child.wait().map(Some)
}

/// Returns the hook's stderr after a colon, or an empty text.
fn text_of(stderr: &mut File) -> String {
    let mut text = Vec::new();
    let read = stderr.seek(SeekFrom::Start(0)).and_then(|_| stderr.take(STDERR_MAX).read_to_end(&mut text));
    match read.map(|_| String::from_utf8_lossy(&text).trim().to_owned()) {
        Ok(text) if !text.is_empty() => format!(": {text}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Option<u64>) -> Hook {
        let args = ["sh", "-c", script].map(str::to_owned).into();
        Hook { path: "/bin/sh".into(), args, env: Some(vec!["PATH=/usr/bin:/bin".into()]), timeout }
    }

    #[test]
    fn hooks_run_in_their_order_with_the_state_and_their_own_environment() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let hook = |word: &str| {
            let mut hook = shell(&format!("read s; echo {word} $s $A >> {}", out.display()), None);
            hook.env.get_or_insert_default().push("A=b".into());
            hook
        };
        run("prestart", &[hook("one"), hook("two")], b"state\n", &Variables::own()).unwrap();
        assert_eq!(std::fs::read_to_string(out).unwrap(), "one state b\ntwo state b\n");
    }

    #[test]
    fn a_hook_without_an_environment_has_ours() {
        let own = std::env::var("PATH").unwrap();
        let script = format!("test \"$PATH\" = '{own}'");
        let ours = Variables::own();
        run("prestart", &[Hook { env: None, ..shell(&script, None) }], b"", &ours).unwrap();
        let none = Hook { env: Some(Vec::new()), ..shell("test -z \"$HOME\"", None) };
        run("prestart", std::slice::from_ref(&none), b"", &ours).unwrap();
        // Uses the kept environment, not the current one of this process.
        let kept = Variables::own().kept_for([&none, &Hook { env: None, ..Hook::default() }].into_iter());
        assert_eq!(kept.0, ours.0);
        assert!(Variables::own().kept_for(std::iter::once(&none)).0.is_empty());
        let bare = Hook { env: None, ..shell("test -z \"$HOME\"", None) };
        run("poststop", &[bare], b"", &Variables::default()).unwrap();
    }

    #[test]
    fn a_failed_hook_stops_the_run_and_its_stderr_is_in_the_error() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let after = shell(&format!("touch {}", mark.display()), None);
        let error =
            run("poststop", &[shell("echo no luck >&2; exit 3", None), after], b"", &Variables::own())
                .unwrap_err();
        assert_eq!(error.to_string(), "poststop hook /bin/sh: exit status: 3: no luck");
        assert!(!mark.exists());
        let error =
            run("prestart", &[Hook { path: "/no/such".into(), ..Hook::default() }], b"", &Variables::own());
        assert_eq!(error.unwrap_err().to_string(), "run prestart hook /no/such");
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed() {
        let error =
            run("createRuntime", &[shell("exec sleep 1000", Some(1))], b"", &Variables::own()).unwrap_err();
        assert_eq!(error.to_string(), "createRuntime hook /bin/sh: timed out after 1 s");
    }
}
