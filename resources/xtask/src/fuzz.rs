//! `cargo xtask fuzz`: runs the fuzz targets of tests/fuzz, each for a limited time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::checkout::{target_dir, top};
use crate::steps::{run, say};
use crate::{apt, tools};

/// Version of cargo-fuzz to install.
const CARGO_FUZZ: &str = "0.13.2";
/// All targets, as named in tests/fuzz/Cargo.toml.
const TARGETS: [&str; 15] = [
    "control_frames",
    "stream_frames",
    "agent_link",
    "stream_table",
    "registers",
    "devices",
    "fuse",
    "p9",
    "bundle",
    "seccomp",
    "netlink",
    "datagrams",
    "elf",
    "share_state",
    "snapshot",
];

/// The target whose inputs start threads.
const THREADED: &str = "devices";

/// Selection of targets and duration.
#[derive(clap::Args)]
pub struct Args {
    /// The target; all targets in turn by default
    target: Option<String>,
    /// Duration per target in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Fuzzes until the time is over or a target fails. cargo-fuzz writes failing inputs to tests/fuzz/artifacts.
pub fn fuzz(args: &Args) -> anyhow::Result<()> {
    let targets: Vec<&str> = match &args.target {
        Some(name) => {
            ensure!(
                TARGETS.contains(&name.as_str()),
                "no target {name:?}: the targets are {}",
                TARGETS.join(", ")
            );
            vec![name]
        }
        None => TARGETS.to_vec(),
    };
    apt::install(&["g++"])?;
    let program = tools::installed("cargo-fuzz", CARGO_FUZZ)?;
    for target in targets {
        let corpus = top().join("tests/fuzz/corpus").join(target);
        fs::create_dir_all(&corpus).with_context(|| format!("create {}", corpus.display()))?;
        say(&format!("fuzzing {target} for {} s", args.seconds));
        run(Command::new(&program)
            .args(["fuzz", "run", "--fuzz-dir", "tests/fuzz", target])
            // New inputs go to the first directory, which is not in the repository.
            .arg(&corpus)
            .args(seeds(target))
            .arg("--")
            .arg(format!("-max_total_time={}", args.seconds))
            .args(["-rss_limit_mb=1024", "-timeout=20", "-print_final_stats=1", "-verbosity=0"])
            // The leak detector would report memory of the C library for a thread that is exiting.
            .args((target == THREADED).then_some("-detect_leaks=0"))
            .current_dir(top())
            .env("CARGO_TARGET_DIR", target_dir().join("fuzz"))
            // The instrumentation needs unstable flags, which this variable permits with the project's stable compiler.
            .env("RUSTC_BOOTSTRAP", "1"))?;
    }
    Ok(())
}

/// Returns the directory in the repository with inputs for a target, if it has one.
fn seeds(target: &str) -> Option<PathBuf> {
    let directory = match target {
        // Bundles of engines.
        "bundle" => PathBuf::from("runtime/plan/src/tests/engines"),
        _ => Path::new("tests/fuzz/seeds").join(target),
    };
    Some(top().join(directory)).filter(|directory| directory.is_dir())
}
