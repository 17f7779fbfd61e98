//! Builds a suite's programs from its checkout, into the target folders of the checkout and of this workspace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::Suite;
use crate::apt;
use crate::checkout::target_dir;
use crate::executable::TARGET;
use crate::steps::{cargo, output, run, say};

/// Name of youki's suite and of its program.
pub const CONTEST: &str = "contest";
/// Name of the suite of the Open Container Initiative.
pub const RUNTIME_TOOLS: &str = "runtime-tools";
/// Path of the Go compiler of Debian's package golang-1.22-go.
const GO: &str = "/usr/lib/go-1.22/bin/go";

/// Builds the suite in `checkout`.
pub fn suite(checkout: &Path) -> anyhow::Result<Suite> {
    let version = output(Command::new("git").args(["describe", "--tags", "--always"]).current_dir(checkout))?;
    let version = version.trim().to_owned();
    if checkout.join("tests/contest").is_dir() {
        let (programs, tests) = contest(checkout)?;
        Ok(Suite { name: CONTEST, programs, tests, version })
    } else if checkout.join("validation").is_dir() {
        let (programs, tests) = runtime_tools(checkout)?;
        Ok(Suite { name: RUNTIME_TOOLS, programs, tests, version })
    } else {
        bail!("{} is not a checkout of youki or runtime-tools", checkout.display())
    }
}

fn contest(checkout: &Path) -> anyhow::Result<(PathBuf, Vec<String>)> {
    apt::install(&["gcc", "pkg-config", "libseccomp-dev"])?;
    say("building contest");
    let target = checkout.join("target");
    let build = |program: &str| {
        let mut cargo = cargo();
        cargo.current_dir(checkout).args(["build", "--release", "--locked", "--bin", program]);
        cargo.arg("--target-dir").arg(&target);
        cargo
    };
    run(build("contest").args(["--package", "contest"]))?;
    // Without --package: runtimetest needs features of crates that only other packages of the workspace enable.
    let flags = format!("target.{TARGET}.rustflags=['-Ctarget-feature=+crt-static']");
    run(build("runtimetest").args(["--target", TARGET, "--config", &flags]))?;
    let programs = folder(CONTEST)?;
    copy(&target.join("release/contest"), &programs.join("contest"))?;
    copy(&target.join(TARGET).join("release/runtimetest"), &programs.join("runtimetest"))?;
    copy(&checkout.join("tests/contest/contest/bundle.tar.gz"), &programs.join("bundle.tar.gz"))?;
    let list = output(Command::new(programs.join("contest")).arg("list").current_dir(&programs))?;
    Ok((programs, list.lines().map(str::to_owned).collect()))
}

fn runtime_tools(checkout: &Path) -> anyhow::Result<(PathBuf, Vec<String>)> {
    let go = go()?;
    say("building runtime-tools");
    let programs = folder(RUNTIME_TOOLS)?;
    let mut build = Command::new(go);
    build.args(["build", "-mod=vendor", "-o"]).arg(&programs).args(["./cmd/runtimetest", "./validation/..."]);
    run(build.env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local").current_dir(checkout))?;
    copy(&checkout.join("rootfs-amd64.tar.gz"), &programs.join("rootfs-amd64.tar.gz"))?;
    let mut tests = Vec::new();
    let validation = checkout.join("validation");
    for entry in fs::read_dir(&validation).with_context(|| format!("list {}", validation.display()))? {
        let name = entry.with_context(|| format!("list {}", validation.display()))?.file_name();
        tests.extend(name.into_string().ok().filter(|name| programs.join(name).is_file()));
    }
    tests.sort();
    Ok((programs, tests))
}

/// Installs a Go compiler of version 1.21 or newer, and returns its name or path. bookworm's default version is older.
pub fn go() -> anyhow::Result<&'static str> {
    if apt::os_release("VERSION_CODENAME").as_deref() != Some("bookworm") {
        apt::install(&["golang-go"])?;
        return Ok("go");
    }
    if !Path::new(GO).exists() {
        apt::install_from("bookworm-backports", &["golang-1.22-go"])?;
    }
    Ok(GO)
}

pub fn folder(suite: &str) -> anyhow::Result<PathBuf> {
    let folder = target_dir().join("oci").join(suite);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    // With a slash at its end, `go build -o` takes the path as a folder.
    Ok(folder.join(""))
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
