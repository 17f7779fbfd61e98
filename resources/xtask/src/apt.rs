//! Installs and downloads Debian packages with apt, without questions.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, bail};

use crate::steps::run_aside;

/// Folder of apt's sources.
const SOURCES: &str = "/etc/apt/sources.list.d";

/// Installs those of `packages` that are not installed. Refreshes apt's lists once if necessary.
pub fn install(packages: &[&str]) -> anyhow::Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !installed(package)).collect();
    if missing.is_empty() { Ok(()) } else { install_with(&[], &missing) }
}

/// Installs `packages` from `suite` (such as `bookworm-backports`), even if other versions are installed. Adds the
/// suite beside this machine's Debian source, with the same address and keyring.
pub fn install_from(suite: &str, packages: &[&str]) -> anyhow::Result<()> {
    add_suite(suite)?;
    install_with(&["-t", suite], packages)
}

/// Downloads a dependency of the meta package `meta` (`linux-image-amd64`, for example) into `folder`: the package
/// whose name begins with `prefix`. Returns the file.
pub fn download(meta: &str, prefix: &str, folder: &Path) -> anyhow::Result<PathBuf> {
    let package = match real_package(meta, prefix)? {
        Some(package) => package,
        None => {
            update()?;
            real_package(meta, prefix)?.with_context(|| format!("{meta} depends on no package {prefix}*"))?
        }
    };
    download_package(&package, folder)?;
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension() == Some(OsStr::new("deb")))
        .with_context(|| format!("apt-get download {package} wrote no package into {}", folder.display()))
}

/// Downloads `package`, or `package=version`, into `folder`, without installing it. Refreshes apt's lists once if
/// necessary.
pub fn download_package(package: &str, folder: &Path) -> anyhow::Result<()> {
    let fetch = || {
        let mut command = Command::new("apt-get");
        // apt's own user may have no permission to write here. apt checks the file against the signed lists in any
        // case.
        command.args(["-qq", "-o", "APT::Sandbox::User=root", "download", package]).current_dir(folder);
        run_aside(&mut command)
    };
    fetch().or_else(|_| update().and_then(|()| fetch()))
}

/// Returns the value of `key` in /etc/os-release, such as `VERSION_CODENAME`.
pub fn os_release(key: &str) -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_string())
}

fn installed(package: &str) -> bool {
    let output = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]).output();
    output.is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

fn install_with(options: &[&str], packages: &[&str]) -> anyhow::Result<()> {
    eprintln!("xtask: installing {}", packages.join(" "));
    let attempt = || {
        let mut command = apt_get();
        command.args(["-qq", "-y", "--no-install-recommends"]).args(options).arg("install").args(packages);
        run_aside(&mut command)
    };
    attempt().or_else(|_| update().and_then(|()| attempt()))
}

/// Refreshes apt's lists.
pub fn update() -> anyhow::Result<()> {
    run_aside(apt_get().args(["-qq", "update"]))
}

/// Returns an `apt-get` that asks no questions and waits for the lock of another apt.
fn apt_get() -> Command {
    as_root(&["DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=600"])
}

/// Returns a command that runs `words` as root: environment variables, a program and its arguments.
fn as_root(words: &[&str]) -> Command {
    let root = fs::metadata("/proc/self").is_ok_and(|this| this.uid() == 0);
    let mut command = Command::new(if root { "env" } else { "sudo" });
    command.args(words);
    command
}

fn real_package(meta: &str, prefix: &str) -> anyhow::Result<Option<String>> {
    let output = Command::new("apt-cache").args(["depends", meta]).output().context("start apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let depends = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(depends.into_iter().find(|package| package.starts_with(prefix)).map(str::to_string))
}

fn add_suite(suite: &str) -> anyhow::Result<()> {
    let path = Path::new(SOURCES).join(format!("{suite}.sources"));
    if path.exists() {
        return Ok(());
    }
    let codename = os_release("VERSION_CODENAME").context("no VERSION_CODENAME in /etc/os-release")?;
    let entries = fs::read_dir(SOURCES).with_context(|| format!("list {SOURCES}"))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    files.push("/etc/apt/sources.list".into());
    let archive = files.iter().find_map(|file| {
        let text = fs::read_to_string(file).ok()?;
        if file.extension() == Some(OsStr::new("sources")) {
            stanza_for(&text, &codename)
        } else {
            line_for(&text, &codename)
        }
    });
    let Some(archive) = archive else {
        bail!("no Debian archive with suite {codename} in {SOURCES} or /etc/apt/sources.list");
    };
    let staged = env::temp_dir().join(format!("{suite}.{}.sources", std::process::id()));
    fs::write(&staged, archive.stanza(suite)).with_context(|| format!("write {}", staged.display()))?;
    let copied = run_aside(as_root(&["install", "-m", "644"]).arg(&staged).arg(&path));
    fs::remove_file(&staged).with_context(|| format!("remove {}", staged.display()))?;
    copied?;
    update()
}

/// Address and keyring of this machine's Debian archive, for a stanza with another suite.
#[derive(Debug, PartialEq)]
struct Archive {
    uri: String,
    signed_by: Option<String>,
}

impl Archive {
    fn stanza(&self, suite: &str) -> String {
        let key = self.signed_by.as_ref().map(|key| format!("Signed-By: {key}\n")).unwrap_or_default();
        format!("Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n{key}", self.uri)
    }
}

/// Returns the first stanza of a `.sources` file (deb822, see sources.list(5)) that offers component main of `suite`.
fn stanza_for(text: &str, suite: &str) -> Option<Archive> {
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| {
            let value = stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(value.trim())
        };
        let has =
            |name, word| field(name).is_some_and(|value| value.split_whitespace().any(|part| part == word));
        (has("Types", "deb") && has("Suites", suite) && has("Components", "main")).then_some(())?;
        let uri = field("URIs")?.split_whitespace().next()?.to_string();
        Some(Archive { uri, signed_by: field("Signed-By").map(str::to_string) })
    })
}

/// Returns the first line of a `.list` file, `deb [signed-by=KEY …] URI SUITE COMPONENT…`, that offers main of `suite`.
fn line_for(text: &str, suite: &str) -> Option<Archive> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (uri, this) = (words.next()?, words.next()?);
        (this == suite && words.any(|component| component == "main")).then_some(())?;
        let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        Some(Archive { uri: uri.to_string(), signed_by: signed_by.map(str::to_string) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanza_of_the_named_suite_is_taken() {
        let text = "Types: deb\n# a remark\nURIs: http://a/debian-security\nSuites: bookworm-security\n\
                    Components: main\n\nTypes: deb\nURIs: http://a/debian\nSuites: bookworm bookworm-updates\n\
                    Components: main\nSigned-By: /k.gpg\n";
        let source = stanza_for(text, "bookworm").unwrap();
        assert_eq!(source, Archive { uri: "http://a/debian".into(), signed_by: Some("/k.gpg".into()) });
        assert_eq!(
            source.stanza("bookworm-backports"),
            "Types: deb\nURIs: http://a/debian\nSuites: bookworm-backports\nComponents: main\nSigned-By: /k.gpg\n"
        );
        assert_eq!(stanza_for(text, "trixie"), None);
    }

    #[test]
    fn line_of_the_named_suite_is_taken() {
        let text = "# deb http://b bookworm main\ndeb http://c other main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://d/debian bookworm main contrib\n";
        let source = Archive { uri: "http://d/debian".into(), signed_by: Some("/k.gpg".into()) };
        assert_eq!(line_for(text, "bookworm"), Some(source));
        assert_eq!(line_for("deb http://d bookworm contrib", "bookworm"), None);
        let plain = Archive { uri: "http://d".into(), signed_by: None };
        assert_eq!(line_for("deb http://d bookworm main", "bookworm"), Some(plain));
    }
}
