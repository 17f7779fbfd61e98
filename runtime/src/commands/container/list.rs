//! `vmm list` and `vmm ps`, in runc's formats.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, Result, bail};
use host::sys;
use serde_json::Value;

use super::status::{state_json, status};
use crate::cli::container::{Format, ListArgs, PsArgs};
use crate::commands::{columns, print};
use crate::state::StateRoot;

/// Minimum width of a column, and the space after its widest cell.
const COLUMN: (usize, usize) = (12, 3);

pub fn list(root: &StateRoot, args: &ListArgs) -> Result<u8> {
    let mut states = Vec::new();
    for directory in root.list()? {
        match directory.look() {
            // A foreground container that was killed could not remove its directory.
            Ok(state) if state.transient && state.status == "stopped" => {
                let deleted = directory.delete(&directory.read()?).map_err(anyhow::Error::from);
                deleted.unwrap_or_else(|error| log::warn!("{error:#}"));
            }
            Ok(state) if state.oci.is_some() => states.push(state_json(&state)),
            Ok(_) => {}
            // A container that ends meanwhile, or whose state is damaged, must not prevent the list of the others.
            Err(error) => log::warn!("container {}: {error:#}", directory.id),
        }
    }
    let text = match (args.quiet, args.format) {
        (true, _) => states.iter().map(|state| format!("{}\n", word(&state["id"]))).collect(),
        (false, Format::Json) if states.is_empty() => "null".to_owned(),
        (false, Format::Json) => Value::Array(states).to_string(),
        (false, Format::Table) => table(&states),
    };
    print(&text).map(|()| 0)
}

/// Returns the table that runc prints.
fn table(states: &[Value]) -> String {
    let cells = ["id", "pid", "status", "bundle", "created", "owner"];
    let rows = states.iter().map(|state| cells.map(|name| word(&state[name])));
    columns(["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"], rows, COLUMN)
}

fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// `vmm ps`: lists the container's processes of the host, as runc does. Processes in the guest are not among them.
pub fn ps(root: &StateRoot, args: &PsArgs) -> Result<u8> {
    let state = root.container(&args.id)?.look()?;
    let mut pids = Vec::new();
    if status(&state) != "stopped" {
        pids.push(state.pid);
        // The state may still name an exec that has just ended.
        let stubs = state.container().into_iter().flat_map(|container| &container.stubs);
        pids.extend(stubs.filter(|stub| sys::process(**stub).is_ok()));
    }
    if args.format == Format::Json {
        let text = serde_json::to_string(&pids).context("print the list")?;
        return print(&text).map(|()| 0);
    }
    let default = [OsString::from("-ef")];
    let options = if args.options.is_empty() { &default[..] } else { &args.options[..] };
    let output = Command::new("ps").args(options).output().context("run ps")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("run ps: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    print(&lines_of(&text, &pids)?).map(|()| 0)
}

/// Returns the heading of ps(1) and its lines for these processes.
fn lines_of(text: &str, pids: &[u32]) -> Result<String> {
    let mut lines = text.lines();
    let heading = lines.next().unwrap_or_default();
    let column = heading.split_whitespace().position(|name| name == "PID");
    let column = column.context("run ps: no PID among its columns")?;
    let is_meant = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|word| word.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    Ok([heading].into_iter().chain(lines.filter(is_meant)).map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_has_runc_s_columns() {
        let state = json!({
            "id": "a-container", "pid": 7, "status": "running", "bundle": "/b", "created": "now", "owner": "root"
        });
        let wanted = "ID             PID         STATUS      BUNDLE      CREATED     OWNER\n\
                      a-container   7           running     /b          now         root\n";
        assert_eq!(table(&[state]), wanted.replacen("ID  ", "ID ", 1));
    }

    #[test]
    fn ps_shows_the_container_s_lines_alone() {
        let text = "UID   PID  CMD\nroot    1  init\nroot   12  vmm 13\nroot   13  sh\n";
        assert_eq!(lines_of(text, &[12]).unwrap(), "UID   PID  CMD\nroot   12  vmm 13\n");
        assert!(lines_of("X\n", &[1]).is_err());
    }
}
