//! `cargo xtask audit`: checks the dependencies for known vulnerabilities, and all other rules of `deny.toml`, with
//! cargo-deny.
//!
//! Not part of `cargo xtask check`: the advisories change every day, and cargo-deny downloads them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::checkout::{target_dir, top};
use crate::steps::{run, say};
use crate::{apt, tools};

/// Version of cargo-deny to install.
const CARGO_DENY: &str = "0.20.2";

/// Options for checking the dependencies.
#[derive(clap::Args)]
pub struct Args {
    /// Local checkout of RustSec's advisory-db, used instead of a download
    #[arg(long, value_name = "DIR")]
    database: Option<PathBuf>,
}

/// Name of the database in cargo-deny's advisory folder, which cargo-deny derives from the default address.
const DATABASE: &str = "advisory-db-3157b0e258782691";

/// Runs cargo-deny with `deny.toml`.
pub fn audit(args: &Args) -> anyhow::Result<()> {
    apt::install(&["g++", "git"])?;
    let mut deny = Command::new(tools::installed("cargo-deny", CARGO_DENY)?);
    deny.current_dir(top());
    if let Some(dir) = &args.database {
        deny.arg("--offline").arg("--config").arg(with_database(dir)?);
    }
    say("checking advisories, licenses, bans and sources");
    run(deny.arg("check"))
}

/// Clones the advisory database `dir` to the folder where cargo-deny expects it. Writes a `deny.toml` that names the
/// clone, and returns its path.
fn with_database(dir: &Path) -> anyhow::Result<PathBuf> {
    let folder = target_dir().join("advisories");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    run(Command::new("git")
        .args(["clone", "--quiet", "--depth", "1", "--no-local"])
        .arg(dir)
        .arg(folder.join(DATABASE)))?;
    let own = top().join("deny.toml");
    let rules = fs::read_to_string(&own).with_context(|| format!("read {}", own.display()))?;
    let mut rules: toml::Table =
        toml::from_str(&rules).with_context(|| format!("parse {}", own.display()))?;
    let advisories = rules.get_mut("advisories").and_then(toml::Value::as_table_mut);
    let advisories = advisories.with_context(|| format!("no section [advisories] in {}", own.display()))?;
    advisories.insert("db-path".to_owned(), folder.display().to_string().into());
    // The user who provides the advisories is responsible for their age.
    advisories.insert("maximum-db-staleness".to_owned(), "P9999D".into());
    let path = target_dir().join("deny.toml");
    fs::write(&path, rules.to_string()).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}
