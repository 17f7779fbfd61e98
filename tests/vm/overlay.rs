//! overlayfs of a container, with its upper layer on the root or on a volume, and the extended attributes that it needs:
//! Docker in a container.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;
use tests::{Bundle, check_output, guest_program};

/// Makes a lower layer, mounts an overlay in the current directory, changes it, mounts it again and prints what is there.
const SCRIPT: &str = "set -e; mkdir -p low/d/sub low/e low/r up work m; cd low; \
    for f in gone kept d/a d/sub/b e/x r/y; do echo low $f > $f; done; chmod 640 kept; ln kept linked; cd ..; \
    over() { mount -t overlay -o lowerdir=low,upperdir=up,workdir=work,$1 none m; }; \
    show() { (cd m; find . | sort; cat $(find . -type f | sort); stat -c '%n %a %u %h' kept d e); }; \
    for options in redirect_dir=off redirect_dir=on; do \
      over $options; cd m; rm gone; rm -r e; mkdir e; echo new > e/new; echo more >> d/a; chmod 600 kept; \
      mv r moved; mv moved/y moved/z; echo > gone; rm gone; chown 5 d; mkfifo fifo; ln -s d link; mv d/sub e/sub; \
      cd ..; umount m; over $options; show; umount m; rm -r up work; mkdir up work; \
    done; over redirect_dir=on; cd m; mv d dd; rm gone; rm -r e; mkdir e; cd ..; umount m";

fn privileged(script: &str) -> Bundle {
    Bundle::sh(script).with(|c| {
        for set in ["bounding", "effective", "permitted"] {
            c["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
        }
    })
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(len);
    Some(value)
}

/// What the last mount has left in the upper layer is in the form that every Linux reads.
#[track_caller]
fn check_upper(up: &Path) {
    let gone = fs::symlink_metadata(up.join("gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0, "a whiteout");
    assert_eq!(attribute(&up.join("e"), "trusted.overlay.opaque").as_deref(), Some(&b"y"[..]));
    assert_eq!(attribute(&up.join("dd"), "trusted.overlay.redirect").as_deref(), Some(&b"d"[..]));
}

#[test]
fn an_overlay_with_its_upper_layer_on_the_root_or_on_a_volume_is_as_on_the_host() {
    let native = TempDir::new().unwrap();
    let mut command = Command::new("/bin/busybox");
    let expected = check_output(command.args(["sh", "-c", SCRIPT]).current_dir(native.path()));
    assert!(expected.contains("low moved/z") || expected.contains("low r/y"), "{expected}");
    check_upper(&native.path().join("up"));
    let volume = TempDir::new().unwrap();
    let options = ["rbind", "rw"];
    let bind = json!({"destination": "/v", "type": "bind", "source": volume.path(), "options": options});
    let in_place = |place: &str| privileged(&format!("cd {place}; {SCRIPT}")).mount(bind.clone());
    let on_root = in_place("/mnt");
    let run = on_root.run().code(0);
    assert_eq!(run.text().trim(), expected.trim(), "{run}");
    check_upper(&on_root.rootfs().join("mnt/up"));
    let run = in_place("/v").run().code(0);
    assert_eq!(run.text().trim(), expected.trim(), "{run}");
    check_upper(&volume.path().join("up"));
    // The host mounts what the container has made.
    let merged = volume.path().join("m");
    let layers = |name| volume.path().join(name).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", layers("low"), layers("up"), layers("work"));
    check_output(Command::new("mount").args(["-t", "overlay", "-o", &options, "none"]).arg(&merged));
    let seen = fs::read_to_string(merged.join("dd/a")).map(|text| (text, merged.join("gone").exists()));
    check_output(Command::new("umount").arg(&merged));
    assert_eq!(seen.unwrap(), ("low d/a\n".to_owned(), false));
}

#[test]
fn reserved_attributes_are_a_matter_of_capabilities() {
    let dir = TempDir::new().unwrap();
    let native = check_output(Command::new(guest_program()).arg("reserved").current_dir(dir.path()));
    assert!(native.starts_with("trusted.test: set\n"), "{native}");
    // A host with a security module of its own may permit security.* to everybody.
    let refused = ["trusted.test", "security.test"].map(|name| {
        format!("{name}: Operation not permitted (os error 1)\n{name}: No data available (os error 61)\n")
    });
    for (capable, expected) in [(true, native), (false, refused.concat())] {
        let bundle = if capable { privileged("exec true") } else { Bundle::sh("exec true") };
        bundle.copy_guest_program();
        let bundle = bundle.with(|c| {
            c["process"]["args"] = json!(["sh", "-c", "cd /mnt && exec /bin/guest reserved"]);
        });
        let run = bundle.run();
        assert_eq!(run.text().trim(), expected.trim(), "{run}");
        let file = bundle.rootfs().join("mnt/file");
        assert_eq!(attribute(&file, "trusted.test").as_deref(), capable.then_some(&b"value"[..]));
    }
}
