//! QEMU's control socket (QMP: docs/interop/qmp-spec in QEMU's tree), as far as saving and restoring needs it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

/// How long QEMU may take for any answer. Saving writes some MiB, everything else is immediate.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// A conversation with QEMU.
pub struct Monitor {
    reader: BufReader<UnixStream>,
}

impl Monitor {
    /// Greets QEMU at the other end of `stream`, and makes it leave memory that is a shared file out of a saved state.
    pub fn open(stream: UnixStream) -> anyhow::Result<Monitor> {
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        let mut monitor = Monitor { reader: BufReader::new(stream) };
        monitor.execute("qmp_capabilities", json!({}))?;
        let on = |name| json!({"capability": name, "state": true});
        let capabilities = json!([on("x-ignore-shared"), on("events")]);
        monitor.execute("migrate-set-capabilities", json!({"capabilities": capabilities}))?;
        Ok(monitor)
    }

    /// Saves the machine into `state` and ends QEMU.
    pub fn save(mut self, state: &Path) -> anyhow::Result<()> {
        self.execute("migrate", json!({"uri": uri(state)?}))?;
        loop {
            let message = self.message()?;
            match message["data"]["status"].as_str() {
                Some("completed") => break,
                Some("failed") => bail!("QEMU cannot save the machine: {message}"),
                _ => {}
            }
        }
        self.execute("quit", json!({}))
    }

    /// Restores the machine from `state`; it runs at once. QEMU ends if it cannot.
    pub fn restore(&mut self, state: &Path) -> anyhow::Result<()> {
        self.execute("migrate-incoming", json!({"uri": uri(state)?}))
    }

    /// Has `command` done; events that come before its answer are dropped.
    fn execute(&mut self, command: &str, arguments: Value) -> anyhow::Result<()> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.reader.get_mut(), "{request}").context("write to QEMU's monitor")?;
        loop {
            let answer = self.message()?;
            ensure!(answer.get("error").is_none(), "QEMU answers {command} with {}", answer["error"]);
            if answer.get("return").is_some() {
                return Ok(());
            }
        }
    }

    fn message(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        ensure!(self.reader.read_line(&mut line).context("read QEMU's monitor")? > 0, "QEMU ended");
        serde_json::from_str(&line).with_context(|| format!("QEMU's monitor says {line:?}"))
    }
}

fn uri(state: &Path) -> anyhow::Result<String> {
    Ok(format!("file:{}", state.to_str().context("the cache's path is not UTF-8")?))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// A QEMU that says `lines`, whatever it hears; returns what it heard.
    fn pretend(lines: &'static [&'static str]) -> (UnixStream, thread::JoinHandle<Vec<String>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let heard = thread::spawn(move || {
            for line in lines {
                writeln!(&theirs, "{line}").unwrap();
            }
            BufReader::new(theirs).lines().map(Result::unwrap).collect()
        });
        (ours, heard)
    }

    #[test]
    fn state_is_saved_once_qemu_says_so() {
        let (stream, heard) = pretend(&[
            r#"{"QMP": {}}"#,
            r#"{"return": {}}"#,
            r#"{"return": {}}"#,
            r#"{"event": "MIGRATION", "data": {"status": "setup"}}"#,
            r#"{"return": {}}"#,
            r#"{"event": "MIGRATION", "data": {"status": "active"}}"#,
            r#"{"event": "STOP"}"#,
            r#"{"event": "MIGRATION", "data": {"status": "completed"}}"#,
            r#"{"return": {}}"#,
        ]);
        Monitor::open(stream).unwrap().save(Path::new("/a")).unwrap();
        let heard = heard.join().unwrap();
        assert_eq!(heard.len(), 4);
        assert!(heard[2].contains(r#""uri":"file:/a""#), "{}", heard[2]);
    }

    #[test]
    fn refusal_and_end_are_errors() {
        let (stream, _) =
            pretend(&[r#"{"QMP": {}}"#, r#"{"return": {}}"#, r#"{"error": {"desc": "no such thing"}}"#]);
        let error = Monitor::open(stream).err().unwrap();
        assert!(error.to_string().contains("no such thing"), "{error}");
        let (ours, _) = UnixStream::pair().unwrap();
        assert!(Monitor::open(ours).is_err());
    }
}
