//! Saves and restores the machine through QEMU's monitor socket (QMP: docs/interop/qmp-spec in QEMU's source).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

/// Timeout of an answer of QEMU. Saving writes a few MiB; the other commands are immediate.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// A connection to QEMU's monitor.
pub struct Monitor {
    reader: BufReader<UnixStream>,
}

impl Monitor {
    /// Negotiates capabilities over `stream`. A saved state does not contain guest memory that is a shared file.
    pub fn open(stream: UnixStream) -> anyhow::Result<Monitor> {
        let timeouts = stream
            .set_read_timeout(Some(ANSWER_MAX))
            .and_then(|()| stream.set_write_timeout(Some(ANSWER_MAX)));
        timeouts.context("set the timeouts of QEMU's monitor")?;
        let mut monitor = Monitor { reader: BufReader::new(stream) };
        monitor.execute("qmp_capabilities", json!({}))?;
        let on = |name| json!({"capability": name, "state": true});
        let capabilities = json!([on("x-ignore-shared"), on("events")]);
        monitor.execute("migrate-set-capabilities", json!({"capabilities": capabilities}))?;
        Ok(monitor)
    }

    /// Saves the machine to the file `state` and ends QEMU.
    pub fn save(mut self, state: &Path) -> anyhow::Result<()> {
        self.execute("migrate", json!({"uri": uri(state)?}))?;
        loop {
            let message = self.message()?;
            match message["data"]["status"].as_str() {
                Some("completed") => break,
                Some("failed") => bail!("save the machine with QEMU: {message}"),
                _ => {}
            }
        }
        self.execute("quit", json!({}))
    }

    /// Restores the machine from the file `state` and lets it run. QEMU ends if the state does not fit.
    pub fn restore(&mut self, state: &Path) -> anyhow::Result<()> {
        self.execute("migrate-incoming", json!({"uri": uri(state)?}))
    }

    /// Runs `command` and waits for its answer. Drops earlier events.
    fn execute(&mut self, command: &str, arguments: Value) -> anyhow::Result<()> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.reader.get_mut(), "{request}")
            .with_context(|| format!("send {command} to QEMU's monitor"))?;
        loop {
            let answer = self.message()?;
            ensure!(answer.get("error").is_none(), "{command} in QEMU's monitor: {}", answer["error"]);
            if answer.get("return").is_some() {
                return Ok(());
            }
        }
    }

    fn message(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        let length = self.reader.read_line(&mut line).context("read QEMU's monitor")?;
        ensure!(length > 0, "QEMU closed its monitor");
        serde_json::from_str(&line).with_context(|| format!("parse {line:?} of QEMU's monitor"))
    }
}

fn uri(state: &Path) -> anyhow::Result<String> {
    let path = state.to_str().with_context(|| format!("{} is not UTF-8, as QMP needs", state.display()))?;
    Ok(format!("file:{path}"))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Starts a fake QEMU that sends `lines`. The thread returns the lines that it received.
    fn fake_qemu(lines: &'static [&'static str]) -> (UnixStream, thread::JoinHandle<Vec<String>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let received = thread::spawn(move || {
            for line in lines {
                writeln!(&theirs, "{line}").unwrap();
            }
            BufReader::new(theirs).lines().map(Result::unwrap).collect()
        });
        (ours, received)
    }

    #[test]
    fn saving_ends_when_qemu_reports_completion() {
        let (stream, received) = fake_qemu(&[
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
        let received = received.join().unwrap();
        assert_eq!(received.len(), 4);
        assert!(received[2].contains(r#""uri":"file:/a""#), "{}", received[2]);
    }

    #[test]
    fn an_error_answer_and_a_closed_monitor_are_errors() {
        let (stream, _) =
            fake_qemu(&[r#"{"QMP": {}}"#, r#"{"return": {}}"#, r#"{"error": {"desc": "no such thing"}}"#]);
        let error = Monitor::open(stream).err().unwrap();
        assert!(error.to_string().contains("no such thing"), "{error}");
        let (ours, _) = UnixStream::pair().unwrap();
        assert!(Monitor::open(ours).is_err());
    }
}
