//! The files of a release: the Debian package is installed and used with Docker, and the tarball is unpacked and run.
//!
//! The tests install and remove packages, so they run only in the emulated KVM host, which drops all changes.
//! `$VMM_TEST_DIST` is the output directory of `cargo xtask dist`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tests::{Daemon, Finished, Running, busybox_rootfs, check_output, output};

/// Directory of the package's documentation.
const DOC: &str = "/usr/share/doc/vmm";
/// Docker's configuration file.
const SETTINGS: &str = "/etc/docker/daemon.json";

/// The only file of the release whose name has this end.
fn release(end: &str) -> PathBuf {
    let dir = std::env::var_os("VMM_TEST_DIST").expect("VMM_TEST_DIST names the directory of the release");
    let all = fs::read_dir(dir).expect("list the release").map(|entry| entry.unwrap().path());
    let found: Vec<PathBuf> = all.filter(|path| path.to_string_lossy().ends_with(end)).collect();
    let [file] = &found[..] else { panic!("{end}: {found:?}") };
    file.clone()
}

/// Runs a command that must succeed, and returns its output.
fn ok(program: &str, words: &[&str]) -> String {
    check_output(Command::new(program).args(words))
}

fn docker(words: &[&str]) -> Finished {
    let mut command = Command::new("/usr/bin/docker");
    command.args(words);
    Running::start(command).finish()
}

#[test]
fn docker_runs_containers_with_the_package_and_its_removal_leaves_nothing() {
    let package = release("_amd64.deb");
    let package = package.to_str().expect("the path is UTF-8");
    // Triggers would make man-db read every manual page of the machine.
    ok("dpkg", &["--no-triggers", "--install", package]);
    let files = ok("dpkg", &["--listfiles", "vmm"]);
    let version = ok("/usr/bin/vmm", &["--version"]);
    assert_eq!(version.lines().next(), Some(format!("vmm {}", env!("CARGO_PKG_VERSION")).as_str()));
    ok("dpkg", &["--verify", "vmm"]);
    manual_and_completion_are_found();
    the_kernels_source_is_complete();

    // As in the documentation: the example configuration, a daemon without flags, and `--runtime vmm`.
    fs::create_dir_all("/etc/docker").expect("create Docker's directory");
    fs::copy(format!("{DOC}/examples/daemon.json"), SETTINGS).expect("copy the example");
    let dir = TempDir::new().expect("create a directory");
    let daemon = Daemon::start(Command::new("/usr/sbin/dockerd"), &dir.path().join("log"), "API listen on");
    docker_runs_a_container(dir.path());
    drop(daemon);

    ok("dpkg", &["--no-triggers", "--remove", "vmm"]);
    let left: Vec<&str> =
        files.lines().filter(|file| file.contains("vmm") && Path::new(file).exists()).collect();
    assert!(left.is_empty(), "left: {left:?}");
    assert!(files.contains("/usr/bin/vmm\n") && files.contains(&format!("{DOC}/copyright\n")), "{files}");
    // dpkg does not know the package, not even as removed with its configuration kept.
    assert!(!output(Command::new("dpkg-query").args(["--show", "vmm"])).status.success());
    assert!(fs::read_dir("/run/vmm").map_or(true, |mut left| left.next().is_none()));
}

fn manual_and_completion_are_found() {
    for (page, word) in [("vmm", "EXIT STATUS"), ("vmm-run", "memory"), ("vmm-pod-exec", "workdir")] {
        let text = ok("gzip", &["-dc", &format!("/usr/share/man/man1/{page}.1.gz")]);
        assert!(text.contains(word), "{page}: {text}");
    }
    // What bash does after `vmm pod ex` and the tab key.
    let script = "source /usr/share/bash-completion/completions/vmm\n\
                  COMP_WORDS=(vmm pod ex) COMP_CWORD=2\n_vmm vmm ex pod\necho \"${COMPREPLY[@]}\"";
    assert_eq!(ok("bash", &["-c", script]), "exec\n");
    for file in ["zsh/vendor-completions/_vmm", "fish/vendor_completions.d/vmm.fish"] {
        let text = fs::read_to_string(Path::new("/usr/share").join(file)).expect("read a completion");
        assert!(text.contains("preserve-fds"), "{file}");
    }
}

/// What Debian's source lacks is in the package, with the version of Debian's source (GPL-2, section 3).
fn the_kernels_source_is_complete() {
    let kernel = Path::new(DOC).join("kernel");
    let source = fs::read_to_string(kernel.join("SOURCE")).expect("read the kernel's source");
    let built_using = ok("dpkg-query", &["--show", "--showformat", "${Built-Using}", "vmm"]);
    let version = built_using.strip_prefix("linux (= ").and_then(|text| text.strip_suffix(')'));
    let version = version.unwrap_or_else(|| panic!("Built-Using: {built_using}"));
    assert!(
        source.contains(&format!("linux-source-6.1={version}\n")) && !source.contains("@KERNEL"),
        "{source}"
    );
    let maintainer = ok("dpkg-query", &["--show", "--showformat", "${Maintainer}", "vmm"]);
    assert!(source.contains(&maintainer), "{maintainer}: {source}");
    let patches = fs::read_dir(kernel.join("patches")).expect("list the patches").count();
    assert!(patches > 3, "{patches} patches");
    for config in ["config.gz", "config-full.gz"] {
        let path = kernel.join(config).to_string_lossy().into_owned();
        assert!(ok("gzip", &["-dc", &path]).contains("\nCONFIG_VIRTIO_FS=y\n"), "{config}");
    }
}

fn docker_runs_a_container(dir: &Path) {
    let rootfs = dir.join("rootfs");
    busybox_rootfs(&rootfs);
    let archive = dir.join("box.tar");
    check_output(Command::new("tar").arg("-C").arg(&rootfs).arg("-cf").arg(&archive).arg("."));
    docker(&["import", archive.to_str().expect("the path is UTF-8"), "box"]).code(0);
    let run = ["run", "--rm", "--network", "none", "--runtime", "vmm", "box", "sh", "-c"];
    let script = "uname -r; echo failed >&2; exit 7";
    let run = docker(&[&run[..], &[script]].concat()).code(7).stderr("failed\n");
    let host = ok("uname", &["-r"]);
    assert!(
        !run.text().is_empty() && run.text() != host.trim(),
        "the container has the host's kernel: {run}"
    );
}

#[test]
fn the_tarball_has_the_package_s_files_and_runs_from_any_directory() {
    let sums = release("SHA256SUMS");
    let dir = sums.parent().expect("the file has a directory");
    check_output(Command::new("sha256sum").args(["--check", "--quiet"]).arg(&sums).current_dir(dir));
    let prefix = TempDir::new().expect("create a directory");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(prefix.path()).arg("--strip-components=1").arg("-xf").arg(release(".tar.gz"));
    check_output(&mut tar);
    let version = check_output(Command::new(prefix.path().join("bin/vmm")).arg("--version"));
    assert!(version.contains("kernel"), "{version}");

    let list = |program: &mut Command, before: &str| -> Vec<String> {
        let text = check_output(program);
        let names = text.lines().filter_map(|line| line.split_once(before).map(|(_, name)| name));
        let mut names: Vec<String> = names.filter(|name| !name.ends_with('/')).map(str::to_owned).collect();
        names.sort();
        names
    };
    let package = list(Command::new("dpkg-deb").arg("--contents").arg(release("_amd64.deb")), " ./usr/");
    let tarball = list(Command::new("tar").arg("-tf").arg(release(".tar.gz")), "-linux/");
    assert!(package.len() > 40, "{package:?}");
    assert_eq!(package, tarball);
}
