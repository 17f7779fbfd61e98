//! The container images of the CRI suite, made on the spot: archives in the form of `docker save`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::checkout::top;
use crate::steps::run;

/// Busybox with a few users, `ipcs` and `pgrep`.
const BOX: &str = "box";
/// The same with the web server.
const WEB: &str = "web";
/// The same with a user that has a group in the image only.
const GROUP: &str = "group";
/// The same with a set-user-ID program.
const SETID: &str = "setid";
/// One program alone.
const PAUSE: &str = "pause";

/// An image.
struct Image {
    /// Name and tag by which the suite asks for it.
    name: &'static str,
    /// Its root file system.
    root: &'static str,
    user: &'static str,
    command: &'static [&'static str],
}

const IMAGES: [Image; 8] = [
    Image { name: "docker.io/local/pause:1", root: PAUSE, user: "", command: &["/pause"] },
    Image { name: "docker.io/local/box:1", root: BOX, user: "", command: &["sh"] },
    Image { name: "docker.io/local/web:1", root: WEB, user: "", command: &["/serve"] },
    Image {
        name: "registry.k8s.io/e2e-test-images/httpd:2.4.39-4",
        root: WEB,
        user: "",
        command: &["/serve"],
    },
    Image { name: "registry.k8s.io/e2e-test-images/nginx:1.14-2", root: WEB, user: "", command: &["/serve"] },
    Image {
        name: "gcr.io/k8s-staging-cri-tools/hostnet-nginx-amd64:latest",
        root: WEB,
        user: "",
        command: &["/serve", "12003"],
    },
    Image {
        name: "gcr.io/k8s-staging-cri-tools/test-image-predefined-group:latest",
        root: GROUP,
        user: "1000",
        command: &["sh"],
    },
    Image {
        name: "registry.k8s.io/e2e-test-images/nonewprivs:1.3",
        root: SETID,
        user: "",
        command: &["/user"],
    },
];

/// Files of an image's root file system: the path, the mode, and the content.
type Files = &'static [(&'static str, u32, &'static str)];

const BOX_FILES: Files = &[
    (
        "etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    ),
    ("bin/ipcs", 0o755, "#!/bin/sh\nexec cat /proc/sysvipc/shm\n"),
    ("bin/pgrep", 0o755, "#!/bin/sh\ngrep -lx \"$1\" /proc/[0-9]*/comm 2>/dev/null | cut -d/ -f3\n"),
    ("www/index.html", 0o644, "hello\n"),
];
const GROUP_FILES: Files =
    &[("etc/group", 0o644, "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")];

/// Writes the archives of all images to `folder`, which must be empty.
pub fn write(folder: &Path) -> anyhow::Result<()> {
    let roots = tempfile::tempdir().context("create a folder for root file systems")?;
    for name in [BOX, WEB, GROUP, SETID, PAUSE] {
        root(name, &roots.path().join(name))?;
    }
    for (number, image) in IMAGES.iter().enumerate() {
        archive(image, &roots.path().join(image.root), &folder.join(format!("{number}.tar")))?;
    }
    Ok(())
}

/// Creates the root file system `name` in `folder`.
fn root(name: &str, folder: &Path) -> anyhow::Result<()> {
    for directory in ["bin", "dev", "etc", "proc", "sys", "tmp", "var/run", "www"] {
        let path = folder.join(directory);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    }
    if name == PAUSE {
        return compile("pause", &folder.join("pause"));
    }
    let busybox = folder.join("bin/busybox");
    fs::copy("/bin/busybox", &busybox).context("copy busybox")?;
    // Hard links, as in the usual image: a test masks one program, and through a symbolic link it would mask all.
    run(Command::new(&busybox).arg("--install").arg(folder.join("bin")))?;
    for (path, mode, content) in BOX_FILES.iter().chain(if name == GROUP { GROUP_FILES } else { &[] }) {
        let path = folder.join(path);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        permit(&path, *mode)?;
    }
    match name {
        WEB => compile("serve", &folder.join("serve")),
        SETID => {
            compile("user", &folder.join("user"))?;
            permit(&folder.join("user"), 0o4755)
        }
        _ => Ok(()),
    }
}

/// Compiles a program of tests/cri/images.
fn compile(name: &str, to: &Path) -> anyhow::Result<()> {
    let source = top().join(format!("tests/cri/images/{name}.c"));
    run(Command::new("gcc").args(["-static", "-O1", "-Wall", "-Wno-unused-result", "-o"]).arg(to).arg(source))
}

fn permit(path: &Path, mode: u32) -> anyhow::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", path.display()))
}

/// Packs an image with one layer.
fn archive(image: &Image, root: &Path, to: &Path) -> anyhow::Result<()> {
    let parts = tempfile::tempdir().context("create a folder for an image")?;
    let layer = parts.path().join("layer.tar");
    let owner = ["--owner=0", "--group=0", "--numeric-owner", "--sort=name"];
    run(Command::new("tar").args(owner).arg("-cf").arg(&layer).arg("-C").arg(root).arg("."))?;
    let layer = fs::read(&layer).with_context(|| format!("read {}", layer.display()))?;
    let digest: String = Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"User": image.user, "Cmd": image.command, "Env": ["PATH=/bin:/usr/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        "history": [{"created": "2020-01-01T00:00:00Z"}],
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [image.name], "Layers": ["layer.tar"]}]);
    for (name, content) in [("config.json", config), ("manifest.json", manifest)] {
        fs::write(parts.path().join(name), content.to_string()).with_context(|| format!("write {name}"))?;
    }
    let names = ["manifest.json", "config.json", "layer.tar"];
    run(Command::new("tar").arg("-cf").arg(to).arg("-C").arg(parts.path()).args(names))
}
