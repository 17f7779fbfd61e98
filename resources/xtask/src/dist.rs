//! `cargo xtask dist`: a Debian package, and a tarball with the same files, in `target/dist`.
//!
//! Two runs on one commit with one toolchain create equal files: all timestamps are those of the commit
//! (`SOURCE_DATE_EPOCH`), and nothing depends on the user, the umask or the order of a directory.

mod archives;
mod notices;
mod tree;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::apt;
use crate::checkout::{target_dir, top};
use crate::kernel::{self, KernelFiles, Variant};
use crate::program;
use crate::steps::{cargo, output, run, say};
use tree::Tree;

/// Debian packages that the build of a release needs.
const TOOLS: [&str; 4] = ["binutils", "dpkg", "gzip", "tar"];
/// Maintainer of a package that is only tested. `.invalid` is reserved (RFC 2606).
pub const TEST_MAINTAINER: &str = "Test of vmm <test@vmm.invalid>";
/// Documentation folder of the package.
const DOC: &str = "usr/share/doc/vmm";
/// Folder of what Debian's source lacks to be the corresponding source of the guest kernels (GPL-2, section 3).
const KERNEL: &str = "usr/share/doc/vmm/kernel";
/// Documents of the checkout that are copied there if they exist.
const DOCUMENTS: [&str; 4] = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "docs"];

/// Options for packing a release.
#[derive(clap::Args)]
pub struct Args {
    /// Maintainer of the package [default: the environment variables DEBFULLNAME and DEBEMAIL]
    #[arg(long, value_name = "NAME <ADDRESS>")]
    maintainer: Option<String>,
}

impl Args {
    /// Returns the maintainer as in a Debian control file. There is no default: users of a package write to this person.
    pub fn maintainer(&self) -> anyhow::Result<String> {
        let of_variables =
            || Some(format!("{} <{}>", env::var("DEBFULLNAME").ok()?, env::var("DEBEMAIL").ok()?));
        let Some(maintainer) = self.maintainer.clone().or_else(of_variables) else {
            bail!(
                "the package has no maintainer: give --maintainer 'NAME <ADDRESS>', or set DEBFULLNAME and DEBEMAIL"
            );
        };
        ensure!(is_maintainer(&maintainer), "--maintainer {maintainer:?}: not NAME <ADDRESS>");
        Ok(maintainer)
    }
}

/// Whether a text is a name and an address (Debian policy, 5.6.2), on one line.
fn is_maintainer(text: &str) -> bool {
    let parts = text.strip_suffix('>').and_then(|text| text.split_once(" <"));
    let is_plain = |text: &str| !text.trim().is_empty() && !text.contains(['<', '>', '\n']);
    parts.is_some_and(|(name, address)| is_plain(name) && is_plain(address) && address.contains('@'))
}

/// Name and time of a release.
struct Release {
    version: &'static str,
    maintainer: String,
    /// Time in seconds since 1970.
    epoch: u64,
}

impl Release {
    /// Returns the release of the last commit.
    fn new(maintainer: &str) -> anyhow::Result<Release> {
        let epoch = match env::var("SOURCE_DATE_EPOCH") {
            Ok(epoch) => epoch,
            Err(_) => output(Command::new("git").current_dir(top()).args(["log", "-1", "--format=%ct"]))
                .context("read the commit's time, which SOURCE_DATE_EPOCH replaces without git")?,
        };
        let epoch = epoch.trim().parse().with_context(|| format!("parse SOURCE_DATE_EPOCH {epoch:?}"))?;
        Ok(Release { version: env!("CARGO_PKG_VERSION"), maintainer: maintainer.to_owned(), epoch })
    }

    /// Returns the release's time in a format of `date`.
    fn date(&self, form: &str) -> anyhow::Result<String> {
        let mut date = Command::new("date");
        date.env("LC_ALL", "C").args(["-u", "-d", &format!("@{}", self.epoch), form]);
        Ok(output(&mut date)?.trim().to_owned())
    }

    /// Returns a template of `resources/dist` with its variables replaced.
    fn template(&self, name: &str, kernel: &KernelFiles) -> anyhow::Result<String> {
        let path = top().join("resources/dist").join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let text = text
            .replace("@VERSION@", self.version)
            .replace("@MAINTAINER@", &self.maintainer)
            .replace("@KERNEL_PACKAGE@", kernel::PACKAGE)
            .replace("@KERNEL_VERSION@", &kernel.version)
            .replace("@KERNEL_MAKE@", &kernel::make_words());
        if text.contains("@DATE@") { Ok(text.replace("@DATE@", &self.date("-R")?)) } else { Ok(text) }
    }
}

/// Files of a release.
pub struct Dist {
    /// Folder of the files.
    pub dir: PathBuf,
    pub package: PathBuf,
    pub tarball: PathBuf,
    /// File with the checksums of both.
    pub sums: PathBuf,
}

/// Builds the program and packs it with its manual and documentation.
pub fn dist(maintainer: &str) -> anyhow::Result<Dist> {
    apt::install(&TOOLS)?;
    let program = program::program()?;
    let kernel = kernel::kernel(Variant::Base)?;
    let release = Release::new(maintainer)?;
    say("packing the release");
    let dir = target_dir().join("dist");
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    let mut tree = Tree::new(&dir.join("tree"))?;
    tree.add("usr/bin/vmm", 0o755, &read(&program)?)?;
    add_manual(&mut tree, &dir.join("manual"), &release)?;
    add_documents(&mut tree, &release, &kernel)?;
    let package = archives::package(&tree, &release, &release.template("control", &kernel)?)?;
    let tarball = archives::tarball(&tree, &release)?;
    let sums = archives::sums(&dir, &[&package, &tarball])?;
    Ok(Dist { dir, package, tarball, sums })
}

/// Creates man pages and completions with the crate that defines the command line.
fn add_manual(tree: &mut Tree, folder: &Path, release: &Release) -> anyhow::Result<()> {
    let words = ["run", "--quiet", "--package", "runtime", "--example", "manual", "--"];
    run(cargo().args(words).arg(folder).arg(release.date("+%F")?))?;
    for page in files_of(&folder.join("man1"))? {
        let name = page.file_name().unwrap_or_default().to_string_lossy().into_owned();
        tree.add_compressed(&format!("usr/share/man/man1/{name}.gz"), &read(&page)?)?;
    }
    for (name, path) in [
        ("vmm.bash", "usr/share/bash-completion/completions/vmm"),
        ("_vmm", "usr/share/zsh/vendor-completions/_vmm"),
        ("vmm.fish", "usr/share/fish/vendor_completions.d/vmm.fish"),
    ] {
        tree.add(path, 0o644, &read(&folder.join("completions").join(name))?)?;
    }
    Ok(())
}

fn add_documents(tree: &mut Tree, release: &Release, kernel: &KernelFiles) -> anyhow::Result<()> {
    for document in DOCUMENTS {
        let path = top().join(document);
        if path.exists() {
            tree.add_all(&format!("{DOC}/{document}"), &path)?;
        }
    }
    for (path, source) in [
        ("examples/daemon.json", "resources/dist/daemon.json"),
        ("examples/three.yaml", "resources/pods/three.yaml"),
    ] {
        tree.add(&format!("{DOC}/{path}"), 0o644, &read(&top().join(source))?)?;
    }
    tree.add(&format!("{DOC}/copyright"), 0o644, release.template("copyright", kernel)?.as_bytes())?;
    tree.add_compressed(&format!("{DOC}/changelog.gz"), release.template("changelog", kernel)?.as_bytes())?;
    add_kernel_source(tree, release, kernel)?;
    tree.add_compressed(&format!("{DOC}/third-party.txt.gz"), notices::notices()?.as_bytes())?;
    let overrides = read(&top().join("resources/dist/lintian-overrides"))?;
    tree.add("usr/share/lintian/overrides/vmm", 0o644, &overrides)
}

/// Adds the patches and configurations of the guest kernels, and how to build the kernels from Debian's source with them.
fn add_kernel_source(tree: &mut Tree, release: &Release, kernel: &KernelFiles) -> anyhow::Result<()> {
    tree.add(&format!("{KERNEL}/SOURCE"), 0o644, release.template("kernel-source", kernel)?.as_bytes())?;
    tree.add_all(&format!("{KERNEL}/patches"), &top().join("resources/kernel/patches"))?;
    let full = kernel::kernel(Variant::Full)?;
    for (name, config) in [("config.gz", &kernel.config), ("config-full.gz", &full.config)] {
        tree.add_compressed(&format!("{KERNEL}/{name}"), &read(config)?)?;
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// Returns the files of a folder, sorted by name.
fn files_of(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    ensure!(!files.is_empty(), "no files in {}", folder.display());
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_maintainer_is_a_name_and_an_address() {
        assert!(is_maintainer(TEST_MAINTAINER));
        for text in [
            "",
            "Jo",
            "<jo@host>",
            "Jo jo@host",
            "Jo <jo>",
            "Jo <jo@host",
            "Jo <a@b> <c@d>",
            "Jo\nX: y <a@b>",
        ] {
            assert!(!is_maintainer(text), "{text:?}");
        }
    }
}
