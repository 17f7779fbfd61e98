//! The root file system behaves like a local one, as apt, dpkg, databases, editors and loggers require. Most tests run
//! a check of tests/guest in the container.

use std::fs;
use std::process::Command;

use tests::{Bundle, check_output};

#[track_caller]
fn check(name: &str) {
    Bundle::guest(name).run().code(0).stdout("ok\n");
}

#[test]
fn an_unlinked_file_that_is_open_can_be_used() {
    check("unlinked");
}

#[test]
fn a_file_that_is_replaced_by_a_rename_stays_readable() {
    check("renamed-over");
}

#[test]
fn a_shared_mapping_and_its_file_are_coherent() {
    check("mapped");
}

#[test]
fn hard_links_share_one_inode() {
    check("linked");
}

#[test]
fn extended_attributes_can_be_set_listed_and_removed() {
    check("xattrs");
}

#[test]
fn files_have_holes_and_can_be_preallocated() {
    check("sparse");
}

#[test]
fn a_large_directory_is_listed_completely() {
    check("many");
}

#[test]
fn appends_through_two_descriptors_overwrite_nothing() {
    check("appended");
}

#[test]
fn a_mapped_page_and_what_is_appended_to_it_are_both_kept() {
    check("mapped-appended");
}

#[test]
fn a_lock_excludes_another_open_file() {
    check("locked");
}

#[test]
fn here_documents_work() {
    let bundle = Bundle::debian(&["bash", "-c", "cat <<EOF\nsome text\nEOF\nread x <<<word; echo $x"]);
    bundle.run().code(0).stdout("some text\nword\n").stderr("");
}

/// dpkg unpacks, renames over files, calls fsync, locks, and runs scripts. Other shared root file systems fail at this.
#[test]
fn dpkg_installs_and_removes_a_package() {
    let script = "set -e; dpkg -i /srv/toy_1.0_all.deb >/dev/null; cat /usr/share/toy/note; dpkg -s toy | grep ^Status; \
                  dpkg -P toy >/dev/null; test ! -e /usr/share/toy; dpkg --audit; apt-get --version | head -c 3; \
                  sort -u /var/lib/dpkg/status | wc -l | grep -c .";
    let bundle = Bundle::debian(&["bash", "-c", script]);
    let tree = bundle.path().join("toy");
    fs::create_dir_all(tree.join("DEBIAN")).unwrap();
    fs::create_dir_all(tree.join("usr/share/toy")).unwrap();
    let control =
        "Package: toy\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@b.example>\nDescription: toy\n";
    fs::write(tree.join("DEBIAN/control"), control).unwrap();
    fs::write(tree.join("usr/share/toy/note"), "installed\n").unwrap();
    for n in 0..200 {
        fs::write(tree.join(format!("usr/share/toy/{n}")), vec![b'x'; n * 37]).unwrap();
    }
    let package = bundle.rootfs().join("srv/toy_1.0_all.deb");
    check_output(
        Command::new("dpkg-deb").args(["--root-owner-group", "-Znone", "-b"]).arg(&tree).arg(&package),
    );
    bundle.run().code(0).stdout("installed\nStatus: install ok installed\napt1\n");
    assert!(!bundle.rootfs().join("usr/share/toy").exists());
}

#[test]
fn a_full_disk_is_an_error_in_the_container() {
    let dir = tempfile::TempDir::new().unwrap();
    let image = dir.path().join("small.ext4");
    let mounted = dir.path().join("small");
    fs::create_dir(&mounted).unwrap();
    check_output(Command::new("truncate").args(["-s", "8M"]).arg(&image));
    check_output(Command::new("mkfs.ext4").args(["-q", "-b", "4096"]).arg(&image));
    check_output(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mounted));
    let bundle = Bundle::sh(
        "dd if=/dev/zero of=/srv/big bs=64k count=300; echo $?; rm /srv/big; echo small > /srv/f && cat /srv/f",
    )
    .mount(
        serde_json::json!({"destination": "/srv", "type": "bind", "source": mounted, "options": ["bind"]}),
    );
    let run = bundle.run();
    check_output(Command::new("umount").arg(&mounted));
    let run = run.code(0).stdout("1\nsmall\n");
    assert!(String::from_utf8_lossy(&run.stderr).contains("No space left on device"), "{run}");
}
