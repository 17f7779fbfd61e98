//! Output of pods, containers and processes as columns or as JSON.

use agent_proto::payload::usage::{ContainerProcesses, ContainerUsage};
use anyhow::{Context, Result};
use serde::Serialize;

use crate::commands::{columns, print};
use crate::state::PodState;
use host::text::{self, printable};

/// Minimum width of a column, and the space after its widest cell.
const COLUMN: (usize, usize) = (0, 2);

pub fn pods(states: &[PodState], json: bool) -> Result<()> {
    let row = |state: &PodState| {
        let running = state.containers.iter().filter(|container| container.status == "running").count();
        let pid = if state.status == "stopped" { "-".to_owned() } else { state.pid.to_string() };
        [state.id.clone(), state.status.clone(), pid, format!("{running}/{}", state.containers.len())]
    };
    show(["POD", "STATUS", "PID", "RUNNING"], states, row, json)
}

pub fn containers(state: &PodState, json: bool) -> Result<()> {
    let row = |container: &crate::state::ContainerState| {
        let code = container.exit_code.map_or("-".to_owned(), |code| code.to_string());
        let error = printable(&container.error);
        [container.name.clone(), container.status.clone(), code, container.restarts.to_string(), error]
    };
    show(["CONTAINER", "STATUS", "EXIT", "RESTARTS", "ERROR"], &state.containers, row, json)
}

/// Prints processes, one a line. Control characters from the guest are replaced.
pub fn processes(all: &[ContainerProcesses], json: bool) -> Result<()> {
    if json {
        return print_json(all);
    }
    let rows = all.iter().flat_map(|container| {
        container.processes.iter().map(|process| {
            [
                printable(&container.container),
                process.pid.to_string(),
                process.uid.to_string(),
                printable(&process.state),
                printable(&process.command),
            ]
        })
    });
    print(&columns(["CONTAINER", "PID", "UID", "STATE", "COMMAND"], rows, COLUMN))
}

pub fn usage(all: &[ContainerUsage], json: bool) -> Result<()> {
    let number = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
    let kib = |value: Option<u64>| number(value.map(|bytes| bytes >> 10));
    let ms = |value: Option<u64>| number(value.map(|us| us / 1000));
    let row = |usage: &ContainerUsage| {
        [
            printable(&usage.container),
            kib(usage.memory),
            kib(usage.memory_peak),
            ms(usage.cpu),
            number(usage.pids),
            number(usage.oom_kills),
        ]
    };
    show(["CONTAINER", "MEMORY KiB", "PEAK KiB", "CPU ms", "PIDS", "OOM KILLS"], all, row, json)
}

fn show<T: Serialize, const N: usize>(
    head: [&str; N],
    all: &[T],
    row: impl Fn(&T) -> [String; N],
    json: bool,
) -> Result<()> {
    if json { print_json(all) } else { print(&columns(head, all.iter().map(row), COLUMN)) }
}

fn print_json(all: &(impl Serialize + ?Sized)) -> Result<()> {
    let text = serde_json::to_string_pretty(all).context("encode the answer")?;
    print(&format!("{}\n", text::json(&text)))
}
