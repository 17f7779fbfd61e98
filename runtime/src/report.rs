//! The report of a background process on its start, sent to its parent through a pipe.

use std::io::{self, PipeReader, PipeWriter, Read, Write};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::exit::CodedError;

/// The result of a start.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    code: u8,
    message: String,
}

/// Sends the result: code 0 for success, else the exit code and message of the error. The reader may be gone.
pub fn send(mut writer: PipeWriter, code: u8, message: &str) -> io::Result<()> {
    let report = Report { code, message: message.to_owned() };
    writer.write_all(&serde_json::to_vec(&report)?)
}

/// Waits for the report and returns a failure as an error with its code. `silent` is the error if
/// the process ends without one.
pub fn wait(mut reader: PipeReader, silent: &'static str) -> Result<()> {
    let mut text = Vec::new();
    reader.read_to_end(&mut text).context("read its report")?;
    if text.is_empty() {
        anyhow::bail!(silent);
    }
    let report: Report = serde_json::from_slice(&text).context("parse its report")?;
    match report.code {
        0 => Ok(()),
        code => Err(CodedError { code, message: report.message }.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::pipe;

    use super::*;

    #[test]
    fn a_report_arrives_and_silence_is_an_error() {
        let heard = |tell: fn(PipeWriter)| {
            let (reader, writer) = pipe().unwrap();
            tell(writer);
            wait(reader, "it said nothing").map_err(|error| error.to_string())
        };
        assert_eq!(heard(|writer| send(writer, 0, "").unwrap()), Ok(()));
        assert_eq!(heard(|writer| send(writer, 3, "no luck").unwrap()), Err("no luck".to_owned()));
        assert_eq!(heard(drop), Err("it said nothing".to_owned()));
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        assert_eq!(send(writer, 0, "").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
