//! Podman and Docker of an ordinary user, who has no right to the host beyond /dev/kvm and subordinate IDs.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;

use crate::case::{Case, case};
use crate::engine::Engine;
use crate::network::{SERVER, fetch};

pub const CASES: &[Case] = &[
    case!(output_error_and_exit_code).core(),
    case!(state_is_in_the_users_runtime_directory),
    case!(input_and_terminal),
    case!(exec_in_a_running_container),
    case!(stop_kill_and_start_again),
    case!(volumes_have_the_users_files),
    case!(users_of_the_container_have_subordinate_ids),
    case!(keep_id_is_the_user_inside),
    case!(slirp_reaches_the_host),
    case!(published_port_answers),
    case!(dockerfile_is_built),
    case!(containers_at_once),
];

/// Cases of Docker, which has a network of its own and, without systemd, no cgroups.
pub const DOCKER_CASES: &[Case] = &[case!(output_error_and_exit_code), case!(bridge_reaches_its_gateway)];

fn output_error_and_exit_code(engine: &Engine) {
    let script = "id -u; echo err >&2; exit 3";
    engine.run(&["run", "--rm", "box", "sh", "-c", script]).code(3).stdout("0\n").stderr("err\n");
    engine.run(&["run", "--rm", "box", "nosuch"]).code(127);
}

fn start(engine: &Engine, flags: &[&str], script: &str) {
    engine.start_container("lasting", &[flags, &["box", "sh", "-c", script]].concat(), "ready");
}

fn state_is_in_the_users_runtime_directory(engine: &Engine) {
    start(engine, &[], "echo ready; exec sleep 1000");
    let pid: u32 = engine.inspect("lasting", ".State.Pid").parse().expect("a number");
    let owner = fs::metadata(format!("/proc/{pid}")).expect("its process").uid();
    let user = fs::metadata(engine.dir().join("home")).expect("the home directory").uid();
    assert_eq!(owner, user, "the container's process belongs to the user");
    if engine.is_vm() {
        let states = fs::read_dir(engine.dir().join("xdg/vmm")).expect("the state directory");
        assert_eq!(states.filter(|entry| entry.as_ref().is_ok_and(|it| it.path().is_dir())).count(), 1);
    }
}

fn input_and_terminal(engine: &Engine) {
    engine.feed(&["run", "--rm", "-i", "box", "wc", "-c"], &[b'x'; 200_000]).code(0).stdout("200000\n");
    let done =
        engine.run(&["run", "--rm", "-t", "box", "sh", "-c", "test -t 0 && test -t 1 && echo terminal"]);
    assert_eq!(done.code(0).text(), "terminal");
}

fn exec_in_a_running_container(engine: &Engine) {
    start(engine, &[], "echo ready; exec sleep 1000");
    engine.feed(&["exec", "-i", "lasting", "sh", "-c", "cat; exit 4"], b"in\n").code(4).stdout("in\n");
    assert_eq!(engine.ok(&["exec", "-u", "ann", "lasting", "id", "-u"]), "1000");
}

fn stop_kill_and_start_again(engine: &Engine) {
    start(engine, &[], "trap 'exit 7' TERM; echo ready; while :; do sleep 1000 & wait $!; done");
    engine.ok(&["stop", "lasting"]);
    assert_eq!(engine.inspect("lasting", ".State.ExitCode"), "7");
    engine.ok(&["start", "lasting"]);
    engine.wait_log("lasting", "ready\nready");
    engine.ok(&["kill", "lasting"]);
    assert_eq!(engine.ok(&["wait", "lasting"]), "137");
}

/// A directory of the user below the home directory.
fn folder(engine: &Engine, name: &str) -> PathBuf {
    let path = engine.dir().join("home").join(name);
    let user = fs::metadata(engine.dir().join("home")).expect("the home directory");
    fs::create_dir_all(&path).expect("create a directory");
    chown(&path, Some(user.uid()), Some(user.gid())).expect("give a directory to the user");
    path
}

fn volumes_have_the_users_files(engine: &Engine) {
    let path = folder(engine, "bound");
    let bind = format!("{}:/data", path.display());
    assert_eq!(engine.sh(&["-v", &bind], "echo made >/data/f; stat -c %u /data/f"), "0");
    let user = fs::metadata(&path).expect("the directory").uid();
    assert_eq!(fs::metadata(path.join("f")).expect("the file").uid(), user);
    assert_eq!(engine.sh(&["-v", "keep:/data"], "echo kept >/data/f; cat /data/f"), "kept");
    assert_eq!(engine.sh(&["-v", "keep:/data:ro"], "cat /data/f"), "kept");
    engine.ok(&["volume", "rm", "keep"]);
}

fn users_of_the_container_have_subordinate_ids(engine: &Engine) {
    let path = folder(engine, "owned");
    let bind = format!("{}:/data", path.display());
    assert_eq!(
        engine.sh(&["-v", &bind], "touch /data/f; chown 1000:1001 /data/f; stat -c %u:%g /data/f"),
        "1000:1001"
    );
    let owner = fs::metadata(path.join("f")).expect("the file").uid();
    assert!(owner >= 100_000, "{owner}");
    engine.sh(&["-v", &bind], "rm /data/f");
}

fn keep_id_is_the_user_inside(engine: &Engine) {
    let path = folder(engine, "kept");
    let user = fs::metadata(&path).expect("the directory").uid();
    let bind = format!("{}:/data", path.display());
    let script = "id -u; touch /data/f; stat -c %u /data/f";
    let text = engine.sh(&["--userns", "keep-id", "-v", &bind], script);
    assert_eq!(text, format!("{user}\n{user}"));
    assert_eq!(fs::metadata(path.join("f")).expect("the file").uid(), user);
}

fn slirp_reaches_the_host(engine: &Engine) {
    // 10.0.2.2 is the host's loopback if that is allowed, and 10.0.2.100 the address of every container.
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = server.local_addr().expect("its address").port();
    let served = std::thread::spawn(move || {
        let (mut client, _) = server.accept().expect("accept");
        std::io::Write::write_all(&mut client, b"from the host\n").expect("answer");
    });
    let script = format!("ip -o -4 addr show tap0 | grep -o '10.0.2.100/24'; nc 10.0.2.2 {port}");
    let text = engine.sh(&["--net", "slirp4netns:allow_host_loopback=true"], &script);
    assert_eq!(text, "10.0.2.100/24\nfrom the host");
    served.join().expect("the server answered");
}

fn published_port_answers(engine: &Engine) {
    // Podman's other port handler connects from within the container's network namespace, where a guest is not.
    let net = "slirp4netns:port_handler=slirp4netns";
    start(engine, &["--net", net, "-p", "127.0.0.1:8767:80"], SERVER);
    assert!(fetch("8767").ends_with("hello\n"));
}

fn bridge_reaches_its_gateway(engine: &Engine) {
    let script = "ping -c 1 $(ip route | awk '/default/ {print $3}') >/dev/null && echo reached";
    assert_eq!(engine.sh(&[], script), "reached");
}

fn dockerfile_is_built(engine: &Engine) {
    let path = folder(engine, "context");
    fs::write(
        path.join("Dockerfile"),
        "FROM box\nRUN echo built >/made\nUSER ann\nCMD [\"cat\", \"/made\"]\n",
    )
    .expect("write a file");
    engine.ok(&["build", "-q", "-t", "built", path.to_str().expect("the path is UTF-8")]);
    assert_eq!(engine.ok(&["run", "--rm", "built"]), "built");
    engine.ok(&["rmi", "built"]);
}

fn containers_at_once(engine: &Engine) {
    let names = ["one", "two", "three"];
    let all: Vec<_> = names
        .iter()
        .map(|name| engine.start_command(&["run", "--rm", "--name", name, "box", "echo", name]))
        .collect();
    for (running, name) in all.into_iter().zip(names) {
        running.finish().code(0).stdout(&format!("{name}\n"));
    }
}
