//! Volumes and bind mounts.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::case::{Case, case};
use crate::engine::Engine;

pub const CASES: &[Case] = &[
    case!(named_volume_keeps_its_files).core(),
    case!(bind_of_a_folder_is_seen_on_both_sides).core(),
    case!(read_only_bind),
    case!(bind_of_a_file),
    case!(owners_are_the_same_on_both_sides),
    case!(volumes_from_another),
    case!(tmpfs_mount),
    case!(bind_over_a_file_of_the_image),
    case!(the_engine_s_client_works_in_a_container),
];

/// Creates a directory on the host.
fn directory(engine: &Engine, name: &str) -> PathBuf {
    let path = engine.dir().join(name);
    fs::create_dir_all(&path).expect("create a directory");
    path
}

fn named_volume_keeps_its_files(engine: &Engine) {
    engine.sh(&["-v", "keep:/data"], "echo kept >/data/f");
    assert_eq!(engine.ok(&["run", "--rm", "-v", "keep:/other", "box", "cat", "/other/f"]), "kept");
    engine.ok(&["volume", "rm", "keep"]);
}

fn bind_of_a_folder_is_seen_on_both_sides(engine: &Engine) {
    let path = directory(engine, "both");
    fs::write(path.join("in"), "from the host\n").expect("write a file");
    let bind = format!("{}:/b", path.display());
    let script = "cat /b/in; echo from inside >/b/out; mkdir /b/d; mv /b/in /b/d/moved";
    assert_eq!(engine.sh(&["-v", &bind], script), "from the host");
    assert_eq!(fs::read_to_string(path.join("out")).expect("read a file"), "from inside\n");
    assert!(path.join("d/moved").exists());
}

fn read_only_bind(engine: &Engine) {
    let path = directory(engine, "fixed");
    let bind = format!("{}:/b:ro", path.display());
    let done = engine.run(&["run", "--rm", "-v", &bind, "box", "touch", "/b/f"]).code(1);
    assert!(done.to_string().contains("Read-only file system"), "{done}");
    assert!(!path.join("f").exists());
}

fn bind_of_a_file(engine: &Engine) {
    let path = directory(engine, "single").join("f");
    fs::write(&path, "one\n").expect("write a file");
    let bind = format!("{}:/etc/motd", path.display());
    let script = "cat /etc/motd; echo two >/etc/motd";
    assert_eq!(engine.sh(&["-v", &bind], script), "one");
    assert_eq!(fs::read_to_string(&path).expect("read a file"), "two\n");
}

fn owners_are_the_same_on_both_sides(engine: &Engine) {
    let path = directory(engine, "owned");
    let bind = format!("{}:/b", path.display());
    let script = "touch /b/f; chown 123:456 /b/f; chmod 640 /b/f; stat -c '%u %g %a' /b/f";
    assert_eq!(engine.sh(&["-v", &bind], script), "123 456 640");
    let seen = fs::metadata(path.join("f")).expect("look at a file");
    assert_eq!((seen.uid(), seen.gid(), seen.mode() & 0o777), (123, 456, 0o640));
}

fn volumes_from_another(engine: &Engine) {
    engine.ok(&["run", "--name", "source", "-v", "/shared", "box", "sh", "-c", "echo s >/shared/f"]);
    assert_eq!(engine.ok(&["run", "--rm", "--volumes-from", "source", "box", "cat", "/shared/f"]), "s");
}

fn tmpfs_mount(engine: &Engine) {
    let mount = "type=tmpfs,destination=/t,tmpfs-size=2097152";
    let script = "df -k /t | awk 'END {print $2}'; echo x >/t/f && cat /t/f";
    assert_eq!(engine.sh(&["--mount", mount], script), "2048\nx");
}

fn bind_over_a_file_of_the_image(engine: &Engine) {
    let path = directory(engine, "over").join("passwd");
    fs::write(&path, "root:x:0:0::/:/bin/sh\neve:x:7:7::/:/bin/sh\n").expect("write a file");
    let mount = format!("type=bind,source={},target=/etc/passwd,readonly", path.display());
    assert_eq!(engine.ok(&["run", "--rm", "--mount", &mount, "box", "id", "-u", "eve"]), "7");
}

/// `-v /var/run/docker.sock`, with the client of the host.
fn the_engine_s_client_works_in_a_container(engine: &Engine) {
    let socket = engine.dir().join("engine.sock");
    let bind = format!("{}:/var/run/docker.sock", socket.display());
    let mut words = vec!["run", "--rm", "-v", &bind];
    for path in
        ["/usr/bin/docker:/usr/bin/docker:ro", "/lib:/lib:ro", "/lib64:/lib64:ro", "/usr/lib:/usr/lib:ro"]
    {
        words.extend(["-v", path]);
    }
    let version = ["version", "--format", "{{.Server.Version}}"];
    words.extend(["box", "docker"]);
    words.extend(version);
    assert_eq!(engine.ok(&words), engine.ok(&version));
}
