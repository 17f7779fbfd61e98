//! Background processes. Each is forked, and reports its start to its parent through a pipe.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write, pipe};
use std::rc::Rc;

use anyhow::{Context, Result};
use host::sys;

use crate::exit::CodedError;

/// The two processes after a fork.
pub enum Forked {
    Child(Reporter),
    /// The child's process id, and where its report arrives.
    Parent(u32, PipeReader),
}

/// Forks a background process. `step` is the fork's name in errors, `log` replaces the child's stdout and stderr.
pub fn fork(step: &'static str, log: Option<&File>) -> Result<Forked> {
    let (reader, writer) = pipe().context("create a pipe")?;
    Ok(match sys::fork_detached(log).context(step)? {
        0 => Forked::Child(Reporter::new(writer)),
        pid => Forked::Parent(pid, reader),
    })
}

/// The child's means to report once. Clones share it.
#[derive(Clone)]
pub struct Reporter(Rc<RefCell<Option<PipeWriter>>>);

impl Reporter {
    fn new(writer: PipeWriter) -> Reporter {
        Reporter(Rc::new(RefCell::new(Some(writer))))
    }

    /// Whether a result was reported, even if the parent was gone.
    pub fn has_sent(&self) -> bool {
        self.0.borrow().is_none()
    }

    /// Reports the result of a start: for success code 0 and what the parent is to do next, or an empty text; else the exit code and
    /// message of the error. Returns false if one was reported before.
    ///
    /// # Errors
    ///
    /// The parent is gone.
    pub fn send(&self, code: u8, message: &str) -> io::Result<bool> {
        let Some(mut writer) = self.0.take() else { return Ok(false) };
        writer.write_all(&serde_json::to_vec(&(code, message))?).map(|()| true)
    }
}

/// Waits for the report and returns the message of a success, or a failure as an error with its code. `silent` is the error if
/// the process ends without one.
pub fn wait(mut reader: PipeReader, silent: &'static str) -> Result<String> {
    let mut text = Vec::new();
    reader.read_to_end(&mut text).context("read its report")?;
    if text.is_empty() {
        anyhow::bail!(silent);
    }
    match serde_json::from_slice(&text).context("parse its report")? {
        (0, message) => Ok(message),
        (code, message) => Err(CodedError { code, message }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_arrives_and_silence_is_an_error() {
        let heard = |tell: fn(Reporter)| {
            let (reader, writer) = pipe().unwrap();
            tell(Reporter::new(writer));
            wait(reader, "it said nothing").map_err(|error| error.to_string())
        };
        assert_eq!(heard(|reporter| assert!(reporter.send(0, "well").unwrap())), Ok("well".to_owned()));
        assert_eq!(
            heard(|reporter| assert!(reporter.send(3, "no luck").unwrap())),
            Err("no luck".to_owned())
        );
        assert_eq!(heard(drop), Err("it said nothing".to_owned()));
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let reporter = Reporter::new(writer);
        assert_eq!(reporter.send(0, "").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(!reporter.clone().send(0, "").unwrap());
    }
}
