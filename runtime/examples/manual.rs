//! Writes man pages and shell completions from the definition of the command line.
//!
//! ```text
//! manual DIR DATE
//! ```
//!
//! One page per command goes to `DIR/man1`, named as in `vmm-pod-exec.1`, with DATE in its footer; the completions for bash,
//! zsh and fish go to `DIR/completions`. `cargo xtask dist` packs them.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Command;
use clap_complete::aot::{Shell, generate_to};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use runtime::command_line;

/// What `vmm run` and `vmm pod run` end with.
const EXIT_STATUS: [(&str, &str); 4] = [
    ("the container's own", "its process exited"),
    ("128 + n", "signal n killed it"),
    ("126, 127", "its program could not be executed, or was not found"),
    ("125", "vmm failed; one line on standard error says at which step, on what, and why"),
];

/// What is read and kept where.
const FILES: [(&str, &str); 2] = [
    (
        "$XDG_CONFIG_HOME/vmm/config.json, ~/.config/vmm/config.json, /etc/vmm/config.json",
        "Settings of the machine: a JSON object whose keys are names of flags of vmm-run(1). The first of these files that \
         exists is read. A flag wins over an environment variable (VMM_MEMORY for --memory), and that over the file.",
    ),
    ("/run/vmm, $XDG_RUNTIME_DIR/vmm", "The state of containers and pods, a directory each."),
];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [dir, date] = &words[..] else { bail!("usage: manual DIR DATE") };
    let dir = Path::new(dir);
    let (pages, completions) = (dir.join("man1"), dir.join("completions"));
    for folder in [&pages, &completions] {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let mut definition = command_line();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut definition, "vmm", &completions)
            .with_context(|| format!("write the completion for {shell}"))?;
    }
    // `vmm help COMMAND` prints what the pages say.
    let mut definition = command_line().disable_help_subcommand(true);
    definition.build();
    write_pages(&definition, &pages, date)
}

/// Writes the page of `definition` and those of the commands below it.
fn write_pages(definition: &Command, dir: &Path, date: &str) -> Result<()> {
    let mut page = Vec::new();
    let man = Man::new(definition.clone())
        .date(date)
        .source(concat!("vmm ", env!("CARGO_PKG_VERSION")))
        .manual("vmm");
    man.render(&mut page)?;
    let name = man.get_filename();
    match name.as_str() {
        "vmm.1" => {
            add_section(&mut page, "EXIT STATUS", &EXIT_STATUS)?;
            add_section(&mut page, "FILES", &FILES)?;
        }
        "vmm-run.1" | "vmm-pod-run.1" => add_section(&mut page, "EXIT STATUS", &EXIT_STATUS)?,
        _ => {}
    }
    let path = dir.join(name);
    fs::write(&path, page).with_context(|| format!("write {}", path.display()))?;
    definition.get_subcommands().try_for_each(|below| write_pages(below, dir, date))
}

/// Appends a section to a page: a list of terms and what they mean.
fn add_section(page: &mut Vec<u8>, title: &str, list: &[(&str, &str)]) -> io::Result<()> {
    let mut roff = Roff::default();
    roff.control("SH", [title]);
    for (term, meaning) in list {
        roff.control("TP", []);
        roff.text([bold(*term)]);
        roff.text([roman(*meaning)]);
    }
    roff.to_writer(page)
}
