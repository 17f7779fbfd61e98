//! Volumes and bind mounts.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use tests::{Running, check_output, guest_program};

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
    case!(a_named_pipe_joins_containers_and_the_host),
    case!(a_socket_joins_containers_and_the_host),
    case!(a_lock_holds_in_another_container_and_on_the_host),
    case!(a_bind_that_is_not_recursive_is_of_one_mount),
    case!(a_bind_keeps_the_options_of_the_host_s_mount),
    case!(an_overlay_on_a_volume_has_whiteouts_and_opaque_directories),
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

/// A script of busybox on the host, in a directory.
fn on_host(path: &Path, script: &str) -> Command {
    let mut command = Command::new("/bin/busybox");
    command.args(["sh", "-c", script]).current_dir(path);
    command
}

fn a_named_pipe_joins_containers_and_the_host(engine: &Engine) {
    let path = directory(engine, "pipes");
    check_output(&mut on_host(&path, "mkfifo p"));
    let bind = format!("{}:/b", path.display());
    let reads = ["-v", &bind, "box", "sh", "-c", "echo ready; cat /b/p; echo end; sleep 1000"];
    // The container first, then the host, then another container.
    engine.start_container("first", &reads, "ready");
    check_output(&mut on_host(&path, "echo of the host > p"));
    engine.wait_log("first", "of the host\nend");
    let host = Running::start(on_host(&path, "cat p"));
    engine.sh(&["-v", &bind], "echo of a container > /b/p");
    host.finish().code(0).stdout("of a container\n");
    engine.start_container("second", &reads, "ready");
    engine.sh(&["-v", &bind], "echo of another > /b/p");
    engine.wait_log("second", "of another\nend");
    // A writer that is killed ends what the reader reads.
    let writes = ["-v", &bind, "box", "sh", "-c", "exec 3>/b/p; echo begun >&3; echo ready; sleep 1000"];
    let mut host = Running::start(on_host(&path, "cat p; echo end"));
    engine.start_container("writer", &writes, "ready");
    host.wait_for("begun\n");
    engine.ok(&["kill", "writer"]);
    host.finish().code(0).stdout("end\n");
}

fn a_socket_joins_containers_and_the_host(engine: &Engine) {
    let path = directory(engine, "sockets");
    let bind = format!("{}:/b", path.display());
    let program = format!("{}:/guest:ro", guest_program().display());
    let guest = |words: &[&'static str]| {
        ["-v", &bind, "-v", &program, "box", "/guest"]
            .map(str::to_owned)
            .into_iter()
            .chain(words.iter().map(ToString::to_string))
            .collect::<Vec<String>>()
    };
    let ask = |name: &'static str, question: &'static str| {
        let words = guest(&["socket", name, "ask", question]);
        let words: Vec<&str> = ["run", "--rm"].into_iter().chain(words.iter().map(String::as_str)).collect();
        engine.run(&words)
    };
    let serves = guest(&["serve", "/b/s", "answer", "2"]);
    engine.start_container("server", &serves.iter().map(String::as_str).collect::<Vec<_>>(), "ready");
    let mut host = UnixStream::connect(path.join("s")).expect("connect");
    host.shutdown(Shutdown::Write).expect("end the question");
    let mut text = String::new();
    host.read_to_string(&mut text).expect("read the answer");
    assert_eq!(text, "answer to ");
    ask("/b/s", "container").code(0).stdout("answer to container\n");
    assert_eq!(engine.ok(&["wait", "server"]), "0");
    // Nobody listens any more.
    let refused = ask("/b/s", "x");
    assert!(refused.to_string().contains("ConnectionRefused"), "{refused}");
    // The other way round.
    let listener = UnixListener::bind(path.join("host")).expect("listen");
    let serving = thread::spawn(move || {
        let mut stream = listener.accept().expect("accept").0;
        let mut question = String::new();
        stream.read_to_string(&mut question).expect("read the question");
        stream.write_all(b"of the host").expect("answer");
        question
    });
    ask("/b/host", "question").code(0).stdout("of the host\n");
    assert_eq!(serving.join().expect("the server"), "question");
}

fn a_lock_holds_in_another_container_and_on_the_host(engine: &Engine) {
    let path = directory(engine, "locks");
    let bind = format!("{}:/b", path.display());
    // Debian's busybox has no flock(1); the host's needs its libraries.
    let libraries = ["/lib64:/lib64:ro", "/lib/x86_64-linux-gnu:/lib/x86_64-linux-gnu:ro"];
    let flags = ["-v", &bind, "-v", "/usr/bin/flock:/bin/flock:ro", "-v", libraries[0], "-v", libraries[1]];
    let script = "set -e; exec 3>/b/lock; flock 3; echo locked; sleep 1000";
    let holds = [&flags[..], &["box", "sh", "-c", script]].concat();
    engine.start_container("holder", &holds, "locked");
    let tries = "flock -n lock true; echo $?";
    let in_container = || engine.sh(&flags, &format!("cd /b; {tries}"));
    assert_eq!(check_output(&mut on_host(&path, tries)), "1\n");
    assert_eq!(in_container(), "1");
    engine.ok(&["kill", "holder"]);
    engine.ok(&["wait", "holder"]);
    assert_eq!(in_container(), "0");
    // The host first.
    let mut host = Running::start(on_host(&path, "set -e; exec 3>lock; flock 3; echo locked; read x"));
    host.wait_for("locked\n");
    assert_eq!(in_container(), "1");
    host.signal("KILL");
    drop(host.finish());
    assert_eq!(in_container(), "0");
}

/// A tmpfs on the host. It is unmounted on drop.
struct Mounted(PathBuf);

impl Mounted {
    fn at(path: PathBuf, options: &str) -> Mounted {
        fs::create_dir_all(&path).expect("create a mount point");
        check_output(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path));
        Mounted(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn a_bind_that_is_not_recursive_is_of_one_mount(engine: &Engine) {
    let path = directory(engine, "mounts");
    fs::create_dir(path.join("sub")).expect("create a mount point");
    fs::write(path.join("sub/below"), "").expect("write a file");
    let mounted = Mounted::at(path.join("sub"), "rw");
    fs::write(mounted.0.join("above"), "").expect("write a file");
    let mount = format!("type=bind,source={},target=/b", path.display());
    assert_eq!(engine.sh(&["--mount", &mount], "ls /b/sub"), "above");
    assert_eq!(engine.sh(&["--mount", &format!("{mount},bind-nonrecursive")], "ls /b/sub"), "below");
}

fn a_bind_keeps_the_options_of_the_host_s_mount(engine: &Engine) {
    let mounted = Mounted::at(directory(engine, "options"), "rw,nosuid,noexec,noatime");
    fs::copy("/bin/busybox", mounted.0.join("busybox")).expect("copy a program");
    let bind = format!("{}:/b", mounted.0.display());
    let script = "awk '$5 == \"/b\" {print $6}' /proc/self/mountinfo; /b/busybox true; echo $?";
    assert_eq!(engine.sh(&["-v", &bind], script), "rw,nosuid,noexec,noatime\n126");
}

fn an_overlay_on_a_volume_has_whiteouts_and_opaque_directories(engine: &Engine) {
    let path = directory(engine, "layers");
    let bind = format!("{}:/b", path.display());
    let script = "cd /b; mkdir -p low/d low/e up work m; echo low >low/d/a; echo low >low/gone; echo low >low/e/x
        mount -t overlay -o lowerdir=low,upperdir=up,workdir=work none m
        cd m; rm gone; rm -r e; mkdir e; echo more >>d/a; mv d moved; find . | sort; cat moved/a; cd ..; umount m
        mount -t overlay -o lowerdir=low,upperdir=up,workdir=work none m; find m -type f; ls m/e; umount m
        stat -c '%F %t:%T' up/gone";
    let expected = ".\n./e\n./moved\n./moved/a\nlow\nmore\nm/moved/a\ncharacter special file 0:0";
    assert_eq!(engine.sh(&["--privileged", "-v", &bind], script), expected);
}
