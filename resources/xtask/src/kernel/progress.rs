//! Runs a long build with its output in a log. Prints the number of built objects, and after a failure the end of the
//! log.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, bail};

/// Interval between lines if the output is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Interval between updates of the line on a terminal.
const REDRAW_EVERY: Duration = Duration::from_millis(100);
/// Number of lines of a failed command's log in the error.
const TAIL_LINES: usize = 40;

/// Runs `command` with stdout and stderr in the file `log`, and counts the objects in the output of kbuild.
pub fn run(command: &mut Command, log: &Path) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let (reader, writer) = io::pipe().context("create a pipe")?;
    let second = writer.try_clone().context("duplicate a pipe")?;
    command.stdin(Stdio::null()).stdout(second).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("start {name}"))?;
    // `command` still owns writers of the pipe: with them the reader would never reach the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut line = ProgressLine::new();
    for text in BufReader::new(reader).split(b'\n') {
        let mut text = text.with_context(|| format!("read the output of {name}"))?;
        line.update(&String::from_utf8_lossy(&text));
        text.push(b'\n');
        file.write_all(&text).with_context(|| format!("write {}", log.display()))?;
    }
    let status = child.wait().with_context(|| format!("wait for {name}"))?;
    line.end();
    if !status.success() {
        let text = fs::read(log).with_context(|| format!("read {}", log.display()))?;
        let text = tail(&String::from_utf8_lossy(&text), TAIL_LINES);
        bail!("{}: {status}; log {} ends with:\n{text}", command.get_program().display(), log.display());
    }
    Ok(())
}

/// The progress line.
struct ProgressLine {
    terminal: bool,
    begin: Instant,
    shown: Option<Instant>,
    objects: usize,
}

impl ProgressLine {
    fn new() -> ProgressLine {
        ProgressLine { terminal: io::stderr().is_terminal(), begin: Instant::now(), shown: None, objects: 0 }
    }

    fn update(&mut self, output: &str) {
        let Some(object) = object(output) else { return };
        self.objects += 1;
        let every = if self.terminal { REDRAW_EVERY } else { LINE_EVERY };
        if self.shown.is_none_or(|shown| shown.elapsed() >= every) {
            self.shown = Some(Instant::now());
            let text =
                format!("kernel: {} objects, {} s: {object}", self.objects, self.begin.elapsed().as_secs());
            if self.terminal { eprint!("\r\x1b[K{text}") } else { eprintln!("{text}") }
        }
    }

    fn end(&self) {
        if self.objects > 0 {
            let start = if self.terminal { "\r\x1b[K" } else { "" };
            eprintln!("{start}kernel: {} objects, {} s", self.objects, self.begin.elapsed().as_secs());
        }
    }
}

/// Returns the object of a line of kbuild's short output, such as `  CC      mm/slub.o`.
fn object(line: &str) -> Option<&str> {
    let mut words = line.strip_prefix("  ")?.split_whitespace();
    let (verb, object) = (words.next()?, words.next()?);
    (verb.bytes().all(|byte| byte.is_ascii_uppercase()) && words.next().is_none()).then_some(object)
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_parsed_from_kbuild_s_output() {
        assert_eq!(object("  CC      mm/slub.o"), Some("mm/slub.o"));
        assert_eq!(object("  LD      vmlinux.o"), Some("vmlinux.o"));
        for line in ["make[1]: Entering directory '/x'", "mm/slub.c:1:2: error: x", "  CC", "", "  in file a"]
        {
            assert_eq!(object(line), None, "{line}");
        }
    }

    #[test]
    fn a_failure_shows_the_end_of_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let script = "i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); done; echo broken >&2; exit 2";
        let error = run(Command::new("sh").args(["-c", script]), &log).unwrap_err().to_string();
        assert!(error.contains("exit status: 2") && error.ends_with("line 99\nbroken"), "{error}");
        assert!(!error.contains("line 60\n"), "{error}");
        run(Command::new("sh").args(["-c", "echo '  CC      a.o'"]), &log).unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "  CC      a.o\n");
    }
}
