//! A container's root file system and mounts.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::json;
use tests::Bundle;

#[test]
fn a_read_only_root_cannot_be_written() {
    let bundle = Bundle::sh("echo x > /etc/new; touch /tmp/new; mount | grep ' / '")
        .with(|c| c["root"]["readonly"] = json!(true));
    let run = bundle.run();
    let errors = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(errors.matches("Read-only file system").count(), 2, "{run}");
    assert!(run.text().contains("ro"), "{run}");
    assert!(!bundle.rootfs().join("tmp/new").exists());
}

/// Creates a directory, a file, a symlink and a FIFO in the guest, and checks them on the host.
#[track_caller]
pub fn check_writes_on_the_host(flag: &str) {
    let bundle = Bundle::sh(
        "umask 0; mkdir /mnt/d; chmod 2750 /mnt/d; echo hi > /mnt/d/f; chown 1000:10 /mnt/d/f; chmod 640 /mnt/d/f; ln -s f /mnt/d/l; mkfifo -m 600 /mnt/d/p",
    )
    .flag(flag);
    bundle.run().code(0).stderr("");
    let d = bundle.rootfs().join("mnt/d");
    assert_eq!(fs::metadata(&d).unwrap().permissions().mode() & 0o7777, 0o2750);
    let f = fs::metadata(d.join("f")).unwrap();
    assert_eq!((f.uid(), f.gid(), f.mode() & 0o7777), (1000, 10, 0o640));
    assert_eq!(fs::read_to_string(d.join("f")).unwrap(), "hi\n");
    assert_eq!(fs::read_link(d.join("l")).unwrap().to_str(), Some("f"));
    assert_eq!(fs::symlink_metadata(d.join("p")).unwrap().mode() & 0o170_000, 0o010_000);
}

#[test]
fn writes_are_on_the_host_with_owner_and_mode() {
    check_writes_on_the_host("--share=virtiofs");
}

#[test]
fn files_belong_to_the_user_who_creates_them() {
    let bundle = Bundle::sh("echo hi > /mnt/f; mkdir /mnt/d").with(|c| {
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    });
    let mnt = bundle.rootfs().join("mnt");
    fs::set_permissions(&mnt, fs::Permissions::from_mode(0o777)).unwrap();
    bundle.run().code(0).stderr("");
    for name in ["f", "d"] {
        let metadata = fs::metadata(mnt.join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1000, 1000), "{name}");
    }
}

#[test]
fn a_bind_of_a_directory_works_both_ways() {
    let dir = tempfile::TempDir::new().unwrap();
    fs::write(dir.path().join("from-host"), "host\n").unwrap();
    let bundle = Bundle::sh("cat /srv/shared/from-host; echo guest > /srv/shared/from-guest").mount(json!({
        "destination": "/srv/shared", "type": "bind", "source": dir.path(), "options": ["rbind", "rw"],
    }));
    bundle.run().code(0).stdout("host\n").stderr("");
    assert_eq!(fs::read_to_string(dir.path().join("from-guest")).unwrap(), "guest\n");
}

#[test]
fn a_bind_of_a_file_works_both_ways() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("hosts");
    fs::write(&file, "host\n").unwrap();
    let bundle = Bundle::sh("cat /etc/hosts; echo guest >> /etc/hosts; ls /etc").mount(json!({
        "destination": "/etc/hosts", "type": "bind", "source": file, "options": ["bind"],
    }));
    bundle.run().code(0).stdout("host\ngroup\nhosts\npasswd\n").stderr("");
    assert_eq!(fs::read_to_string(&file).unwrap(), "host\nguest\n");
}

#[test]
fn a_read_only_bind_cannot_be_written() {
    let dir = tempfile::TempDir::new().unwrap();
    let bundle = Bundle::sh("echo x > /srv/f || mount -o remount,rw /srv; echo x > /srv/f").mount(json!({
        "destination": "/srv", "type": "bind", "source": dir.path(), "options": ["bind", "ro"],
    }));
    let run = bundle.run();
    assert_ne!(run.status.code(), Some(0), "{run}");
    assert!(!dir.path().join("f").exists());
}

/// Changes a bound directory on the host while the container runs. The container runs `wait` before it looks.
#[track_caller]
pub fn check_changes_on_the_host(flag: &str, wait: &str) {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "before\n").unwrap();
    let bundle = Bundle::sh(&format!("cat /srv/f; echo ready; read a; {wait} cat /srv/f; ls /srv"))
        .flag(flag)
        .mount(json!({"destination": "/srv", "type": "bind", "source": dir.path(), "options": ["bind"]}));
    let mut run = bundle.start();
    run.wait_for("ready\n");
    fs::write(&file, "after, and longer\n").unwrap();
    fs::write(dir.path().join("g"), "").unwrap();
    run.write(b"\n");
    let run = run.finish().code(0);
    assert_eq!(run.text(), "after, and longer\nf\ng", "{run}");
}

/// The guest caches attributes and names for a second.
#[test]
fn changes_on_the_host_become_visible() {
    let wait = "until grep -q longer /srv/f && ls /srv | grep -q g; do :; done;";
    check_changes_on_the_host("--share=virtiofs", wait);
}

#[test]
fn a_tmpfs_has_its_options() {
    let bundle = Bundle::sh("df -k /scratch | tail -n 1 | awk '{print $1, $2}'; stat -c %a /scratch; touch /scratch/x; mount | grep ' /scratch '")
        .mount(json!({
            "destination": "/scratch", "type": "tmpfs", "source": "scratch",
            "options": ["nosuid", "noexec", "size=1024k", "mode=1700"],
        }));
    let text = bundle.run().code(0).text();
    assert!(text.starts_with("scratch 1024\n1700\n"), "{text}");
    assert!(text.contains("nosuid") && text.contains("noexec"), "{text}");
    assert!(!bundle.rootfs().join("scratch/x").exists());
}

#[test]
fn the_standard_mounts_exist() {
    let script = "for p in /proc /dev /dev/pts /dev/shm /dev/mqueue /sys /sys/fs/cgroup; do mount | grep -q \" $p type\" && echo $p; done";
    let expected = "/proc\n/dev\n/dev/pts\n/dev/shm\n/dev/mqueue\n/sys\n/sys/fs/cgroup\n";
    Bundle::sh(script).run().code(0).stdout(expected);
}

#[test]
fn the_root_is_one_mount() {
    Bundle::sh("awk '$5 == \"/\"' /proc/self/mountinfo | wc -l").run().code(0).stdout("1\n");
}

#[test]
fn standard_device_nodes_work() {
    let script = "echo x > /dev/null && head -c 4 /dev/zero | wc -c && head -c 4 /dev/urandom | wc -c \
                  && (echo x > /dev/full) 2>&1 | grep -c 'No space'; for l in fd stdin ptmx; do readlink /dev/$l; done";
    Bundle::sh(script).run().code(0).stdout("4\n4\n1\n/proc/self/fd\n/proc/self/fd/0\npts/ptmx\n");
}

#[test]
fn masked_and_read_only_paths_are_protected() {
    let script = "cat /proc/kcore | wc -c; ls /proc/scsi | wc -l; echo 1 > /proc/sys/kernel/panic";
    let bundle = Bundle::sh(script).with(|c| {
        c["linux"]["maskedPaths"] = json!(["/proc/kcore", "/proc/scsi", "/proc/not-there"]);
        c["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    });
    let run = bundle.run();
    assert!(run.text().starts_with("0\n0"), "{run}");
    assert!(String::from_utf8_lossy(&run.stderr).contains("Read-only file system"), "{run}");
}

#[test]
fn a_mount_point_behind_a_symlink_stays_in_the_root() {
    let bundle = Bundle::sh("ls /srv").mount(json!({
        "destination": "/escape/deep", "type": "tmpfs", "source": "tmpfs", "options": [],
    }));
    std::os::unix::fs::symlink("../../../../../../tmp", bundle.rootfs().join("escape")).unwrap();
    bundle.run();
    assert!(bundle.rootfs().join("tmp/deep").is_dir(), "the symlink was not resolved inside the root");
}

#[test]
fn missing_mount_points_are_created_in_a_read_only_root() {
    let dir = tempfile::TempDir::new().unwrap();
    let script =
        "echo x > /a/b/f; echo x > /srv/data/f; cat /etc/new/conf; touch /a/x /etc/new/y; mkdir /a/b/c";
    let file = dir.path().join("conf");
    fs::write(&file, "conf\n").unwrap();
    let bundle = Bundle::sh(script)
        .with(|c| c["root"]["readonly"] = json!(true))
        .mount(json!({"destination": "/a/b", "type": "tmpfs", "source": "tmpfs"}))
        .mount(json!({"destination": "/srv/data", "type": "bind", "source": dir.path(), "options": ["rbind"]}))
        .mount(json!({"destination": "/etc/new/conf", "type": "bind", "source": file, "options": ["rbind", "ro"]}));
    let run = bundle.run().code(0).stdout("conf\n");
    let errors = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(errors.matches("Read-only file system").count(), 2, "{run}");
    assert_eq!(fs::read_to_string(dir.path().join("f")).unwrap(), "x\n");
    assert!(bundle.rootfs().join("a/b").is_dir() && bundle.rootfs().join("etc/new/conf").is_file());
    assert!(!bundle.rootfs().join("a/b/f").exists() && !bundle.rootfs().join("a/x").exists());
}

#[test]
fn missing_mount_points_are_created_in_a_read_only_tmpfs() {
    let options =
        |words: &[&str]| json!({"destination": "/t", "type": "tmpfs", "source": "t", "options": words});
    Bundle::sh("echo x > /t/in/f && cat /t/in/f; touch /t/x")
        .mount(options(&["ro", "nosuid"]))
        .mount(json!({"destination": "/t/in", "type": "tmpfs", "source": "in"}))
        .run()
        .code(1)
        .stdout("x\n")
        .stderr("touch: /t/x: Read-only file system\n");
}

#[test]
fn tmpcopyup_copies_the_directory_below_the_tmpfs() {
    let bundle = Bundle::sh(
        "cat /etc/passwd | wc -l; readlink /etc/l; stat -c %a /etc /etc/d/f; rm -r /etc/d; ls /etc",
    )
    .mount(json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}));
    let etc = bundle.rootfs().join("etc");
    fs::create_dir(etc.join("d")).unwrap();
    fs::write(etc.join("d/f"), "f").unwrap();
    fs::set_permissions(etc.join("d/f"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(&etc, fs::Permissions::from_mode(0o711)).unwrap();
    std::os::unix::fs::symlink("/nowhere", etc.join("l")).unwrap();
    bundle.run().code(0).stdout("2\n/nowhere\n711\n4751\ngroup\nl\npasswd\n").stderr("");
    assert!(etc.join("d/f").exists());
}

#[test]
fn mount_options_are_applied() {
    let dir = tempfile::TempDir::new().unwrap();
    let bind = |destination: &str, words: &[&str]| json!({"destination": destination, "type": "bind", "source": dir.path(), "options": words});
    let script = "awk '$5 ~ \"^/mnt/\" {print $5, $6, $7}' /proc/self/mountinfo; touch /mnt/b/f";
    let run = Bundle::sh(script)
        .mount(bind("/mnt/a", &["rbind", "nosuid", "nodev", "noexec", "noatime", "rslave"]))
        .mount(bind("/mnt/b", &["rbind", "rro", "rnosuid", "rnoexec", "rshared"]))
        .mount(bind("/mnt/c", &["bind", "nodiratime", "nosymfollow", "unbindable"]))
        .mount(json!({"destination": "/mnt/t", "type": "tmpfs", "source": "t",
                      "options": ["strictatime", "rnodev", "size=1m", "private"]}))
        .run()
        .code(1);
    let text = run.text();
    let lines: Vec<&str> = text.lines().collect();
    let expect = [
        ("/mnt/a", "rw,nosuid,nodev,noexec,noatime", "-"),
        ("/mnt/b", "ro,nosuid,noexec,relatime", "shared:"),
        ("/mnt/c", "rw,relatime,nodiratime,nosymfollow", "unbindable"),
        ("/mnt/t", "rw,nodev", "-"),
    ];
    assert_eq!(lines.len(), expect.len(), "{run}");
    for (line, (path, options, propagation)) in lines.iter().zip(expect) {
        let fields: Vec<&str> = line.split(' ').collect();
        let sorted = |list: &str| {
            let mut words: Vec<String> = list.split(',').map(str::to_owned).collect();
            words.sort();
            words
        };
        assert_eq!((fields[0], sorted(fields[1])), (path, sorted(options)), "{run}");
        assert!(fields[2].starts_with(propagation), "{run}");
    }
    assert!(!dir.path().join("f").exists());
}

#[test]
fn the_root_has_the_configured_propagation() {
    for (word, tag) in
        [("private", "-"), ("shared", "shared:"), ("rslave", "-"), ("unbindable", "unbindable")]
    {
        let bundle = Bundle::sh("awk '$5 == \"/\" {print $7}' /proc/self/mountinfo")
            .with(|c| c["linux"]["rootfsPropagation"] = json!(word));
        let run = bundle.run().code(0);
        assert!(run.text().starts_with(tag), "{word}: {run}");
    }
}

#[test]
fn configured_device_nodes_are_created() {
    let bundle = Bundle::sh("stat -c '%n %F %a %u %g %t:%T' /dev/fuse /dev/zero /dev/pipe /opt/null; echo x > /opt/null")
        .with(|c| {
            c["linux"]["devices"] = json!([
                {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 5, "gid": 6},
                {"path": "/dev/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600},
                {"path": "/dev/pipe", "type": "p"},
                {"path": "/opt/null", "type": "c", "major": 1, "minor": 3},
            ]);
        })
        .mount(json!({"destination": "/opt", "type": "tmpfs", "source": "tmpfs"}));
    bundle
        .run()
        .code(0)
        .stdout(
            "/dev/fuse character special file 640 5 6 a:e5\n/dev/zero character special file 600 0 0 1:5\n\
             /dev/pipe fifo 666 0 0 0:0\n/opt/null character special file 666 0 0 1:3\n",
        )
        .stderr("");
}

#[test]
fn a_bind_of_a_device_is_the_guest_s_own() {
    let script = "stat -c '%F %t:%T' /etc/motd /mnt/new; wc -c < /etc/motd; echo x > /etc/motd && echo written; \
                  head -c 3 /mnt/new | od -An -tx1; chmod 600 /etc/motd 2>&1 | grep -o 'Read-only file system'";
    let bind = |source: &str, target: &str| json!({"destination": target, "type": "bind", "source": source, "options": ["rbind", "rprivate"]});
    let bundle =
        Bundle::sh(script).mount(bind("/dev/null", "/etc/motd")).mount(bind("/dev/zero", "/mnt/new"));
    fs::write(bundle.rootfs().join("etc/motd"), "of the image\n").unwrap();
    bundle.run().code(0).stderr("").stdout(
        "character special file 1:3\ncharacter special file 1:5\n0\nwritten\n 00 00 00\nRead-only file system\n",
    );
    assert_eq!(fs::read_to_string(bundle.rootfs().join("etc/motd")).unwrap(), "of the image\n");
}

#[test]
fn a_bind_of_dev_has_the_guest_s_devices() {
    let script = "cd /dev; ls -d null net/tun fuse kmsg loop0 shm pts/ptmx; ls sda vport0p1 hvc0 2>/dev/null; \
                  echo x > null && echo written; ls /host/null";
    let bind =
        |target: &str| json!({"destination": target, "type": "bind", "source": "/dev", "options": ["rbind"]});
    let bundle = Bundle::sh(script).with(|c| {
        let mounts = c["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
        mounts.extend([bind("/dev"), bind("/host")]);
    });
    let run = bundle.run().code(0);
    let run = run.stdout("fuse\nkmsg\nloop0\nnet/tun\nnull\npts/ptmx\nshm\nwritten\n/host/null\n");
    run.says(&["/dev: the container has the guest's devices"]);
}

#[test]
fn a_bind_of_a_device_that_the_guest_lacks_is_refused() {
    let path = ["/dev/kvm", "/dev/ttyS0", "/dev/vda"].into_iter().find(|path| fs::metadata(path).is_ok());
    let path = path.expect("the host has a device that no guest has");
    let run =
        Bundle::sh("true").mount(json!({"destination": "/d", "source": path, "options": ["bind"]})).run();
    run.code(125).says(&[&format!("{path} is a device of the host's kernel")]);
}

#[test]
fn a_tmpfs_has_the_mode_of_the_directory_that_it_covers() {
    let tmpfs = |path: &str, options: &[&str]| json!({"destination": path, "type": "tmpfs", "source": "tmpfs", "options": options});
    let bundle = Bundle::sh("stat -c '%a %u:%g' /mnt/d /mnt/new /mnt/given /mnt/copied; cat /mnt/copied/f")
        .mount(tmpfs("/mnt/d", &["size=1m"]))
        .mount(tmpfs("/mnt/new", &[]))
        .mount(tmpfs("/mnt/given", &["mode=700"]))
        .mount(tmpfs("/mnt/copied", &["tmpcopyup"]));
    for (name, mode) in [("d", 0o2750), ("given", 0o751), ("copied", 0o1711)] {
        let path = bundle.rootfs().join("mnt").join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(bundle.rootfs().join("mnt/copied/f"), "hi\n").unwrap();
    let expected = "2750 0:0\n1777 0:0\n700 0:0\n1711 0:0\nhi\n";
    bundle.run().code(0).stdout(expected).stderr("");
}

#[test]
fn a_device_that_the_guest_lacks_is_refused() {
    let bundle = Bundle::sh("true").with(|c| {
        c["linux"]["devices"] = json!([{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}]);
    });
    let message =
        "vmm: config.json linux.devices[0]: not supported: /dev/kvm: the guest has no device c 10:232\n";
    bundle.run().code(125).stderr(message);
}
