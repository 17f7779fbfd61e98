//! Implementations of the subcommands, one file for each, and what several of them do.

use std::fs::File;
use std::io::{self, Read, Write};

use anyhow::{Context, Result};
use host::sys;
use plan::Inherited;

mod attached;
pub mod check;
pub mod container;
pub mod events;
pub mod features;
mod own_users;
pub mod pod;
mod request;
pub mod run;
pub mod spec;
pub mod template;
pub mod update;

/// Maximum length of a kernel's setting in bytes; `kernel.core_pattern` has 127 (linux/binfmts.h, CORENAME_MAX_SIZE).
const SETTING_MAX: usize = 256;

/// Prints a line to stdout. A closed pipe is not an error.
fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("write stdout"),
        _ => Ok(()),
    }
}

/// Returns rows as columns. `column` is the minimum width of one, and the space after its widest cell.
fn columns<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
    column: (usize, usize),
) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let (minimum, space) = column;
    let mut widths = [minimum; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (cell.chars().count() + space).max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let cells: String = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.trim_end())
    };
    rows.iter().map(line).collect()
}

/// Reads what the containers of a new machine have from this process and the host.
pub fn inherited() -> Result<Inherited> {
    let limits = sys::inherited::resource_limits().context("read the resource limits")?;
    let inherited = Inherited::new(&limits, |path| setting(path).ok());
    if let Some(program) = &inherited.core_program {
        log::info!(
            "kernel.core_pattern of the host starts {program:?}, which a guest cannot: core dumps are files named core"
        );
    }
    Ok(inherited)
}

/// Reads a setting of the kernel. One read returns all of it: fewer system calls for each than with [`std::fs::read_to_string`].
fn setting(path: &str) -> io::Result<String> {
    let mut text = [0; SETTING_MAX];
    let len = File::open(path)?.read(&mut text)?;
    Ok(String::from_utf8_lossy(&text[..len]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_word() {
        let rows = || [["a".to_owned(), "long word".to_owned()], ["longer".to_owned(), String::new()]];
        let wanted = "X       Y\na       long word\nlonger\n";
        assert_eq!(columns(["X", "Y"], rows().into_iter(), (0, 2)), wanted);
        let wanted = "X         Y\na         long word\nlonger\n";
        assert_eq!(columns(["X", "Y"], rows().into_iter(), (10, 2)), wanted);
    }
}
