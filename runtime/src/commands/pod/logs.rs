//! `vmm pod logs`: prints the containers' output from the pod's log files, and with `--follow` new output as well.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use host::sys;

use crate::cli::pod::LogsArgs;
use crate::commands::request::connect;
use crate::control::{Connection, Request};
use crate::logging;
use crate::pod::log::reader::{LineFilter, LogReader};
use crate::pod::log::{Line, Stream};
use crate::state::{ContainerState, StateDir, StateError, StateRoot};

struct Source {
    name: String,
    path: PathBuf,
    reader: LogReader,
}

pub fn logs(root: &StateRoot, args: &LogsArgs) -> Result<()> {
    let directory = root.open(&args.pod)?;
    let pod = directory.look()?;
    let filter = LineFilter { tail: args.tail, since: args.since.as_deref().map(since).transpose()? };
    let meant = |name: &str| args.container.as_deref().is_none_or(|container| container == name);
    let containers: Vec<_> = pod.containers.iter().filter(|container| meant(&container.name)).collect();
    if let (Some(name), true) = (&args.container, containers.is_empty()) {
        bail!("the pod has no container {name:?}");
    }
    // Watch before the files are read, so that no output in between is missed.
    let follower = if args.follow { Follower::new(&directory, &containers)? } else { None };
    let mut sources = Vec::new();
    let mut lines = Vec::new();
    for container in &containers {
        let Some(path) = &container.log else { bail!("container {:?} has no log", container.name) };
        let opened =
            LogReader::open(path, &filter).with_context(|| format!("read log {}", path.display()))?;
        lines.extend(opened.1.into_iter().map(|line| (container.name.clone(), line)));
        sources.push(Source { name: container.name.clone(), path: path.clone(), reader: opened.0 });
    }
    lines.sort_by(|a, b| a.1.time.cmp(&b.1.time));
    let shown = Shown { named: containers.len() > 1, timestamps: args.timestamps };
    lines.iter().try_for_each(|(name, line)| shown.line(name, line))?;
    match follower {
        Some(follower) => follow(follower, &mut sources, &shown),
        None => Ok(()),
    }
}

/// Prints new output until every container has ended or the pod's process has.
fn follow(mut follower: Follower, sources: &mut [Source], shown: &Shown) -> Result<()> {
    loop {
        let more = follower.wait()?;
        for source in &mut *sources {
            let mut result = Ok(());
            source
                .reader
                .more(|line| {
                    if result.is_ok() {
                        result = shown.line(&source.name, &line);
                    }
                })
                .with_context(|| format!("read log {}", source.path.display()))?;
            result?;
        }
        if !more {
            return Ok(());
        }
    }
}

/// Sources of wakeups for [`follow`].
struct Follower {
    directories: Vec<OwnedFd>,
    connection: Connection,
    /// Containers that have not ended.
    left: usize,
}

impl Follower {
    /// `None` once the pod has ended.
    fn new(directory: &StateDir, containers: &[&ContainerState]) -> Result<Option<Follower>> {
        let mut connection = match connect(directory) {
            Ok(connection) => connection,
            Err(error) if matches!(error.downcast_ref(), Some(StateError::Stopped(_))) => return Ok(None),
            Err(error) => return Err(error),
        };
        let parents = containers.iter().filter_map(|container| container.log.as_ref()?.parent());
        let parents: BTreeSet<&Path> = parents.collect();
        let mut directories = Vec::new();
        for parent in parents {
            let path = CString::new(parent.as_os_str().as_bytes()).context("watch the logs")?;
            let watch = sys::watch_directory(&path);
            directories.push(watch.with_context(|| format!("watch {}", parent.display()))?);
        }
        let wait = |container: &&ContainerState| Request::Wait { container: container.name.clone() };
        connection.tell(&containers.iter().map(wait).collect::<Vec<_>>())?;
        Ok(Some(Follower { directories, connection, left: containers.len() }))
    }

    /// Waits for a change. Returns false when no more output can come.
    fn wait(&mut self) -> Result<bool> {
        let fds = self.directories.iter().map(|fd| (fd.as_fd(), libc::POLLIN));
        let fds: Vec<(BorrowedFd<'_>, i16)> =
            [(self.connection.fd(), libc::POLLIN)].into_iter().chain(fds).collect();
        let ready = sys::poll_all(fds.iter(), None).context("poll")?;
        for (directory, _) in self.directories.iter_mut().zip(&ready[1..]).filter(|(_, ready)| **ready) {
            // The events are discarded: the files show what has changed.
            let mut file = std::fs::File::from(directory.try_clone().context("watch the logs")?);
            while matches!(io::Read::read(&mut file, &mut [0; 4096]), Ok(1..)) {}
        }
        if ready[0] {
            if !self.connection.receive()? {
                return Ok(false);
            }
            while self.connection.take::<serde_json::Value>()?.is_some() {
                self.left = self.left.saturating_sub(1);
            }
        }
        Ok(self.left > 0)
    }
}

/// Output options of lines.
struct Shown {
    named: bool,
    timestamps: bool,
}

impl Shown {
    fn line(&self, name: &str, line: &Line) -> Result<()> {
        let mut text = String::new();
        if self.named {
            text += &format!("{name} | ");
        }
        if self.timestamps {
            text += &format!("{} ", line.time);
        }
        text += &line.log;
        if self.named && !line.log.ends_with('\n') {
            text.push('\n');
        }
        let (written, stream) = match line.stream {
            Stream::Stdout => (io::stdout().lock().write_all(text.as_bytes()), "stdout"),
            Stream::Stderr => (io::stderr().lock().write_all(text.as_bytes()), "stderr"),
        };
        written.with_context(|| format!("write {stream}"))
    }
}

/// Parses a time in the format of log lines, or a number of seconds, minutes or hours before now.
fn since(text: &str) -> Result<String> {
    let factor = match text.as_bytes().last() {
        Some(b's') => 1,
        Some(b'm') => 60,
        Some(b'h') => 3600,
        _ => 0,
    };
    if factor > 0
        && let Ok(number) = text[..text.len() - 1].parse::<u64>()
    {
        let ago = Duration::from_secs(number.saturating_mul(factor));
        return Ok(logging::timestamp(
            SystemTime::now().checked_sub(ago).unwrap_or(UNIX_EPOCH).max(UNIX_EPOCH),
        ));
    }
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    // Times are compared as text, so a prefix of a time is valid.
    let known = ["0000-00-00T00:00:00Z", "0000-00-00T00:00:00", "0000-00-00"];
    if known.contains(&shape.as_str()) || shape.starts_with("0000-00-00T00:00:00.") {
        return Ok(text.trim_end_matches('Z').to_owned());
    }
    bail!("--since {text:?}: expected a time such as 2026-01-31T12:00:00Z, 90s, 5m or 2h")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_forms() {
        assert_eq!(since("2026-01-31").unwrap(), "2026-01-31");
        assert_eq!(since("2026-01-31T12:00:00Z").unwrap(), "2026-01-31T12:00:00");
        assert_eq!(since("2026-01-31T12:00:00.5Z").unwrap(), "2026-01-31T12:00:00.5");
        let (before, after) = (since("2h").unwrap(), since("10s").unwrap());
        assert!(before < after && after.len() == "2026-01-31T12:00:00.000000000Z".len());
        for text in ["", "x", "yesterday", "2026", "5", "-5s"] {
            assert!(since(text).is_err(), "{text}");
        }
    }
}
