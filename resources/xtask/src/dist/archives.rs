//! Creates a reproducible Debian package and tarball from a tree of files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::Release;
use super::tree::Tree;
use crate::steps::{output, run};

/// Creates `vmm_VERSION_amd64.deb` beside the tree. Adds the installed size to `control`, its control file.
pub fn package(tree: &Tree, release: &Release, control: &str) -> anyhow::Result<PathBuf> {
    let dir = tree.root().parent().context("the tree's root has no parent folder")?;
    let mut control_tree = Tree::new(&dir.join("package"))?;
    let control = control.replace("@INSTALLED_SIZE@", &tree.installed_kib().to_string());
    control_tree.add("DEBIAN/control", 0o644, control.as_bytes())?;
    let sums = output(Command::new("md5sum").args(tree.files()).current_dir(tree.root()))?;
    control_tree.add("DEBIAN/md5sums", 0o644, sums.as_bytes())?;
    let (usr, moved) = (tree.root().join("usr"), control_tree.root().join("usr"));
    // dpkg-deb wants the control files beside the files of the package; the tarball needs the tree without them.
    fs::rename(&usr, &moved).with_context(|| format!("move {}", usr.display()))?;
    let package = dir.join(format!("vmm_{}_amd64.deb", release.version));
    let mut build = Command::new("dpkg-deb");
    build.env("SOURCE_DATE_EPOCH", release.epoch.to_string());
    // The output of xz depends on whether it uses threads, but not on their number.
    build.args(["--root-owner-group", "--threads-max=1", "-Zxz", "--build"]);
    let built = run(build.arg(control_tree.root()).arg(&package).stdout(std::io::stderr()));
    fs::rename(&moved, &usr).with_context(|| format!("move {}", moved.display()))?;
    built.map(|()| package)
}

/// Creates `vmm-VERSION-x86_64-linux.tar.gz` beside the tree, with the files below `/usr`, for any prefix.
pub fn tarball(tree: &Tree, release: &Release) -> anyhow::Result<PathBuf> {
    let name = format!("vmm-{}-x86_64-linux", release.version);
    let dir = tree.root().parent().context("the tree's root has no parent folder")?;
    let bare = dir.join(format!("{name}.tar"));
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(tree.root().join("usr")).arg("-cf").arg(&bare);
    tar.args(["--sort=name", "--format=gnu", "--owner=0", "--group=0", "--numeric-owner"]);
    tar.arg(format!("--mtime=@{}", release.epoch)).arg(format!("--transform=s,^\\.,{name},")).arg(".");
    run(&mut tar)?;
    run(Command::new("gzip").args(["-9", "-n"]).arg(&bare))?;
    Ok(dir.join(format!("{name}.tar.gz")))
}

/// Writes `SHA256SUMS` with the checksums of `files`, which are in `dir`.
pub fn sums(dir: &Path, files: &[&Path]) -> anyhow::Result<PathBuf> {
    let names = files.iter().filter_map(|file| file.file_name());
    let sums = output(Command::new("sha256sum").args(names).current_dir(dir))?;
    let path = dir.join("SHA256SUMS");
    fs::write(&path, sums).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const CONTROL: &str = "Package: vmm\nVersion: 9.9.9\nArchitecture: amd64\nMaintainer: a <a@example.org>\n\
                           Installed-Size: @INSTALLED_SIZE@\nDescription: test\n";

    /// Creates the package and the tarball of a tree with two files.
    fn archives(dir: &Path) -> [PathBuf; 2] {
        let mut tree = Tree::new(&dir.join("tree")).unwrap();
        tree.add("usr/bin/vmm", 0o755, b"program").unwrap();
        tree.add("usr/share/doc/vmm/copyright", 0o644, b"text").unwrap();
        let release = Release { version: "9.9.9", maintainer: String::new(), epoch: 1_000_000_000 };
        [package(&tree, &release, CONTROL).unwrap(), tarball(&tree, &release).unwrap()]
    }

    #[test]
    fn two_runs_create_equal_archives_owned_by_root() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let first = archives(dirs[0].path());
        // The files of the second run get other times once the file system's clock has ticked.
        let begun = SystemTime::now();
        while fs::metadata(dirs[1].path()).unwrap().modified().unwrap() <= begun {
            fs::write(dirs[1].path().join("tick"), "").unwrap();
            fs::remove_file(dirs[1].path().join("tick")).unwrap();
        }
        let second = archives(dirs[1].path());
        for (one, other) in first.iter().zip(&second) {
            assert!(fs::read(one).unwrap() == fs::read(other).unwrap(), "{}", one.display());
        }
        let listed =
            output(Command::new("dpkg-deb").arg("--contents").arg(&first[0]).env("TZ", "UTC")).unwrap();
        let program = listed.lines().find(|line| line.ends_with("./usr/bin/vmm")).unwrap();
        assert!(program.starts_with("-rwxr-xr-x root/root") && program.contains("2001-09-09"), "{listed}");
        let listed = output(Command::new("tar").arg("-tzf").arg(&first[1])).unwrap();
        assert!(listed.lines().any(|line| line == "vmm-9.9.9-x86_64-linux/bin/vmm"), "{listed}");
    }

    #[test]
    fn a_package_has_its_size_and_the_checksums_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let [package, tarball] = archives(dir.path());
        let field = |name: &str| output(Command::new("dpkg-deb").arg("-f").arg(&package).arg(name)).unwrap();
        assert_eq!(field("Installed-Size").trim(), "8");
        let sums = output(Command::new("dpkg-deb").arg("-I").arg(&package).arg("md5sums")).unwrap();
        assert!(sums.contains("  usr/bin/vmm\n") && sums.lines().count() == 2, "{sums}");
        let sums = super::sums(dir.path(), &[&package, &tarball]).unwrap();
        run(Command::new("sha256sum").args(["--quiet", "-c"]).arg(sums).current_dir(dir.path())).unwrap();
    }
}
