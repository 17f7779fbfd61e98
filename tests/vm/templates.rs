//! Templates: machines that continue from a saved one instead of booting.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{Bundle, Finished, Running, output, program, wait};

use crate::lifecycle::Container;
use crate::network::Nets;
use crate::pods::Pod;

mod making;
mod memory;
mod sockets;

/// Memory of the machines, in MiB.
const MEMORY: &str = "128";
/// Time in which something appears.
const DEADLINE: Duration = Duration::from_secs(120);

/// A directory of templates that no other test uses.
struct Templates(TempDir);

impl Templates {
    fn none() -> Templates {
        Templates(TempDir::new().expect("create a directory"))
    }

    /// One template, that of a container without limits.
    fn one() -> Templates {
        let templates = Templates::none();
        let made = templates.create(&[]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        assert!(text(&made.stdout).contains(" made: "), "{}", text(&made.stdout));
        templates
    }

    /// One template, in a file system in memory.
    fn in_memory() -> Templates {
        let templates = Templates(TempDir::new_in("/dev/shm").expect("create a directory"));
        assert!(templates.create(&[]).status.success());
        templates
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("templates")
    }

    /// Variables with which `vmm` uses these templates.
    fn env(&self, when: &'static str) -> [(&'static str, String); 4] {
        let path = self.path().display().to_string();
        let memory = MEMORY.to_owned();
        [
            ("VMM_TEMPLATE_DIR", path),
            ("VMM_TEMPLATE", when.into()),
            ("VMM_MEMORY", memory),
            ("VMM_CPUS", "1".into()),
        ]
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.arg("template").args(words).envs(self.env("auto")).stdin(Stdio::null());
        command
    }

    fn create(&self, words: &[&str]) -> Output {
        output(&mut self.command(&[&["create"], words].concat()))
    }

    #[track_caller]
    fn out(&self, words: &[&str]) -> String {
        let output = output(&mut self.command(words));
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a bundle that must, may or must not continue from a template.
    fn run(&self, bundle: &Bundle, when: &'static str, input: &[u8]) -> Finished {
        let mut command = bundle.command();
        command.envs(self.env(when));
        Running::start(command).feed(input).finish()
    }

    /// The directory of the only template.
    fn template(&self) -> PathBuf {
        self.path().join(self.names().pop().expect("a template"))
    }

    fn names(&self) -> Vec<String> {
        let list: Value = serde_json::from_str(&self.out(&["list", "--json"])).expect("the list is JSON");
        let rows = list.as_array().expect("the list is one");
        rows.iter().map(|row| row["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// Files and directories in the directory of the templates, except the lock.
    fn entries(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.path()).into_iter().flatten();
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        entries.map(name).filter(|name| name != "lock").collect()
    }

    /// Asserts that the template is refused because of `why`, and that a machine boots instead.
    #[track_caller]
    fn is_refused(&self, why: &str) {
        let bundle = Bundle::sh("echo hello");
        self.run(&bundle, "require", b"").code(125).says(&[why]);
        let booted = self.run(&bundle, "auto", b"").code(0).stdout("hello\n");
        let log = text(&booted.stderr);
        assert!(log.contains("template refused") && log.contains(why), "{log}");
        assert_eq!(log.lines().count(), 1, "{log}");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_container_has_streams_exit_code_and_host_name() {
    let templates = Templates::one();
    let script = "cat; echo error >&2; hostname; id -u; cat /proc/1/comm; exit 7";
    let bundle = Bundle::sh(script).with(|c| c["hostname"] = json!("from-the-pod"));
    for when in ["off", "require"] {
        templates
            .run(&bundle, when, b"input\n")
            .code(7)
            .stdout("input\nfrom-the-pod\n0\nsh\n")
            .stderr("error\n");
    }
    let large = Bundle::sh("md5sum; head -c 3000000 /dev/zero | md5sum");
    let input = vec![b'x'; 3_000_000];
    let cold = templates.run(&large, "off", &input).code(0).text();
    assert_eq!(templates.run(&large, "require", &input).code(0).text(), cold);
}

#[test]
fn files_of_the_share_are_the_pod_s() {
    let templates = Templates::one();
    for name in ["first", "second"] {
        let bundle = Bundle::sh("cat /mnt/in && echo done >/mnt/out && ls /mnt");
        fs::write(bundle.rootfs().join("mnt/in"), name).unwrap();
        templates.run(&bundle, "require", b"").code(0).stdout(&format!("{name}in\nout\n"));
        assert_eq!(fs::read_to_string(bundle.rootfs().join("mnt/out")).unwrap(), "done\n");
    }
}

#[test]
fn two_pods_share_no_random_numbers() {
    let templates = Templates::one();
    // Bytes, a UUID, the boot id, the places of the stack and of the vDSO, a file name, and bytes of the host's device, of which
    // the kernel has some in buffers.
    let bundle = Bundle::sh(
        "head -c 32 /dev/urandom | md5sum; cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id; \
         grep stack /proc/self/maps | cut -d- -f1; grep vdso /proc/self/maps | cut -d- -f1; mktemp -u; \
         mknod /dev/device c 10 183 && head -c 64 /dev/device | md5sum",
    )
    .with(|c| {
        let rule = json!({"allow": true, "type": "c", "major": 10, "minor": 183, "access": "rwm"});
        c["linux"]["resources"]["devices"] = json!([{"allow": false, "access": "rwm"}, rule]);
    });
    let lines = || -> Vec<String> {
        let run = templates.run(&bundle, "require", b"").code(0);
        run.text().lines().map(str::to_owned).collect()
    };
    let (first, second) = (lines(), lines());
    assert_eq!((first.len(), second.len()), (7, 7), "{first:?} {second:?}");
    for (one, other) in first.iter().zip(&second) {
        assert_ne!(one, other);
    }
}

#[test]
fn a_pod_has_the_host_s_time_and_its_own_monotonic_one() {
    let templates = Templates::one();
    let bundle = Bundle::sh("cut -d' ' -f1 /proc/uptime; date +%s; cut -d' ' -f1 /proc/uptime");
    for _ in 0..2 {
        let seconds = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let before = seconds();
        let run = templates.run(&bundle, "require", b"").code(0);
        let after = seconds();
        let text = run.text();
        let [first, wall, second] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        let wall: u64 = wall.parse().unwrap();
        assert!((before..=after).contains(&wall), "{before} {wall} {after}");
        let [first, second] = [first, second].map(|time| time.parse::<f64>().unwrap());
        // The time between the save and this run has not passed for the guest.
        assert!(first > 0.0 && first <= second && second < 60.0, "{first} {second}");
    }
}

#[test]
fn an_engine_s_container_lives_its_life() {
    let templates = Templates::one();
    let container = Container::new(Bundle::sh("trap 'exit 3' TERM; while :; do sleep 1; done"));
    let env = templates.env("require");
    let env: Vec<(&str, &str)> = env.iter().map(|(key, value)| (*key, value.as_str())).collect();
    container.create_with(&env);
    container.out(&["start", "c"]);
    assert_eq!(container.out(&["exec", "c", "echo", "more"]), "more\n");
    assert_eq!(container.out(&["exec", "c", "hostname"]), "vmm\n");
    container.out(&["pause", "c"]);
    container.out(&["resume", "c"]);
    container.out(&["delete", "--force", "c"]);
}

#[test]
fn a_container_has_the_interfaces_of_its_namespace() {
    let templates = Templates::one();
    let nets = Nets::joined();
    let bundle =
        nets.bundle("cat /sys/class/net/eth0/address && ping -c 1 -W 20 10.9.0.1 >/dev/null && echo up");
    for _ in 0..2 {
        templates.run(&bundle, "require", b"").code(0).stdout("02:00:00:00:09:02\nup\n");
    }
}

#[test]
fn a_pod_has_several_containers() {
    let templates = Templates::one();
    let pod = Pod::new();
    let containers = [pod.container("a", "echo one", json!({})), pod.container("b", "echo two", json!({}))];
    let path = pod.state.beside("pod.json");
    fs::write(&path, json!({ "id": "p", "containers": containers }).to_string()).unwrap();
    let mut command = pod.state.command(&["pod", "run", &path.display().to_string()]);
    command.envs(templates.env("require"));
    let run = Running::start(command).finish().code(0);
    let lines: BTreeSet<String> = run.text().lines().map(|line| line.replace(' ', "")).collect();
    assert!(lines.len() == 2 && run.text().contains("one") && run.text().contains("two"), "{run}");
}

/// Rights of each thread of a running `vmm`, by the thread's name: seccomp mode, no_new_privs and capabilities.
fn rights(pid: u32) -> BTreeSet<(String, Vec<String>)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("list the threads");
    let of_task = |task: std::io::Result<fs::DirEntry>| {
        let status = fs::read_to_string(task.unwrap().path().join("status")).expect("read a thread's status");
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of the status");
            line.trim_start_matches(':').trim().to_owned()
        };
        let rights = ["Seccomp", "NoNewPrivs", "CapEff", "CapPrm", "CapBnd"].map(value);
        (value("Name"), rights.to_vec())
    };
    tasks.map(of_task).collect()
}

#[test]
fn the_threads_are_confined_as_those_of_a_machine_that_booted() {
    let templates = Templates::one();
    let bundle = Bundle::sh("echo running; read line");
    let found = ["off", "require"].map(|when| {
        let mut command = bundle.command();
        command.envs(templates.env(when));
        let mut running = Running::start(command);
        running.wait_for("running");
        let rights = rights(running.pid());
        running.stop();
        rights
    });
    assert_eq!(found[0], found[1]);
    let guest = found[1].iter().find(|(name, _)| name == "vcpu0").expect("a vCPU's thread");
    assert_eq!(guest.1[..3], ["2", "1", "0000000000000000"]);
}

#[test]
fn a_machine_of_another_shape_boots_or_gets_a_template_of_its_own() {
    let templates = Templates::one();
    let limited = Bundle::sh("grep MemTotal /proc/meminfo").with(|c| {
        c["linux"]["resources"]["memory"] = json!({ "limit": 96 << 20 });
    });
    let mut env = templates.env("require");
    env[2].1 = String::new();
    let run = |when: &str| {
        let mut command = limited.command();
        command.envs(env.clone()).env("VMM_TEMPLATE", when).env_remove("VMM_MEMORY");
        Running::start(command).finish()
    };
    run("require").code(125).says(&["there is no template for this machine", "vmm template create"]);
    let cold = run("auto").code(0).stderr("").text();
    limited.write();
    let mut create = templates.command(&["create", "--bundle", &limited.path().display().to_string()]);
    let made = output(create.env_remove("VMM_MEMORY"));
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert_eq!(run("require").code(0).text(), cold);
    assert_eq!(templates.names().len(), 2);
}

#[test]
fn what_cannot_continue_is_refused_by_name() {
    let templates = Templates::none();
    let bundle = Bundle::sh("true");
    templates.run(&bundle, "require", b"").code(125).says(&["there is no template for this machine"]);
    templates.run(&bundle, "auto", b"").code(0).stderr("");
    let serial = Bundle::sh("true").flag("--console").flag("serial:/dev/null");
    templates.run(&serial, "require", b"").code(125).says(&["no template for such a machine", "serial port"]);
    let mut wrong = bundle.command();
    wrong.args(["--template", "perhaps"]);
    Running::start(wrong).finish().code(125).says(&["template \"perhaps\": not auto, off or require"]);
}

#[test]
fn damaged_and_truncated_templates_are_refused() {
    let templates = Templates::one();
    let template = templates.template();
    let [state, memory] = ["state", "memory"].map(|name| template.join(name));
    let bytes = fs::read(&state).unwrap();
    let write = |bytes: &[u8]| {
        fs::remove_file(&state).unwrap();
        fs::write(&state, bytes).unwrap();
        fs::set_permissions(&state, Permissions::from_mode(0o400)).unwrap();
    };
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 4;
    write(&damaged);
    templates.is_refused("checksum is wrong");
    write(&bytes[..bytes.len() - 9]);
    templates.is_refused("the state is damaged");
    let mut format = bytes.clone();
    format[8] = 0xff;
    write(&format);
    templates.is_refused("it has another format");
    write(&bytes);
    templates.run(&Bundle::sh("true"), "require", b"").code(0);

    fs::set_permissions(&memory, Permissions::from_mode(0o600)).unwrap();
    let file = fs::File::options().write(true).open(&memory).unwrap();
    file.set_len(file.metadata().unwrap().len() - 4096).unwrap();
    templates.is_refused("the memory's file has changed");
    assert!(templates.out(&["list"]).contains("the memory's file has changed"));
    fs::remove_file(&memory).unwrap();
    templates.is_refused("memory");
    assert_eq!(
        templates.out(&["gc"]),
        format!("{} removed\n", template.file_name().unwrap().to_str().unwrap())
    );
    assert!(templates.entries().is_empty());
}

/// KVM is asked last, when the machine has its devices and its connections: those of the machine that boots are others.
#[test]
fn a_template_of_another_cpu_is_refused() {
    let templates = Templates::one();
    let state = templates.template().join("state");
    let mut bytes = fs::read(&state).unwrap();
    // The vendor's name in leaf 0 of CPUID, in the order of EBX, ECX, EDX.
    let is_vendor = |name: &[u8]| name == b"AuthcAMDenti" || name == b"GenuntelineI";
    let at = bytes.windows(12).position(is_vendor).expect("the state has the guest's cpuid");
    bytes[at] ^= 1;
    let end = bytes.len() - 8;
    let sum = vmm::snapshot::checksum_of(&bytes[..end]);
    bytes[end..].copy_from_slice(&sum.to_le_bytes());
    fs::remove_file(&state).unwrap();
    fs::write(&state, bytes).unwrap();
    fs::set_permissions(&state, Permissions::from_mode(0o400)).unwrap();
    templates.is_refused("the host's cpu or its kvm has other features");

    let nets = Nets::joined();
    let bundle =
        nets.bundle("cat /sys/class/net/eth0/address && ping -c 1 -W 20 10.9.0.1 >/dev/null && echo up");
    templates.run(&bundle, "auto", b"").code(0).stdout("02:00:00:00:09:02\nup\n");
}

#[test]
fn a_copy_of_a_template_is_foreign() {
    let templates = Templates::one();
    let template = templates.template();
    let memory = template.join("memory");
    let copy = template.join("copy");
    fs::copy(&memory, &copy).unwrap();
    fs::rename(&copy, &memory).unwrap();
    templates.is_refused("the memory's file has changed");
    // A template of something else under this one's name.
    let other = Templates::none();
    let made = output(other.command(&["create"]).env("VMM_CMDLINE", "debug"));
    assert!(made.status.success(), "{}", text(&made.stderr));
    let name = template.file_name().unwrap().to_owned();
    fs::rename(other.template(), other.path().join(name)).unwrap();
    other.is_refused("it was made of something else");
}

#[test]
fn templates_that_others_can_change_are_refused() {
    let templates = Templates::one();
    let template = templates.template();
    for name in ["state", "memory"] {
        let path = template.join(name);
        fs::set_permissions(&path, Permissions::from_mode(0o620)).unwrap();
        templates.is_refused("others can write to it");
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
    }
    let again = Templates::one();
    if rustix::process::geteuid().is_root() {
        chown(again.template(), Some(1000), None).unwrap();
        again.is_refused("it belongs to user 1000");
        chown(again.template(), Some(0), None).unwrap();
        chown(again.template().join("state"), Some(1000), None).unwrap();
        again.is_refused("it belongs to user 1000");
    }
}

#[test]
fn a_second_one_for_the_same_machine_waits_and_is_not_made() {
    let templates = Templates::none();
    let start = || {
        let mut command = templates.command(&["create"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start vmm")
    };
    let children = [start(), start()];
    let outputs = children.map(|child| child.wait_with_output().expect("wait for vmm"));
    let said = outputs.map(|output| {
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    });
    assert_eq!(said.iter().filter(|said| said.contains(" made: ")).count(), 1, "{said:?}");
    assert_eq!(said.iter().filter(|said| said.contains("is there already")).count(), 1, "{said:?}");
    assert_eq!(templates.entries().len(), 1);
    assert!(text(&templates.create(&["--force"]).stdout).contains(" made: "));
    templates.run(&Bundle::sh("true"), "require", b"").code(0);
    assert_eq!(templates.out(&["rm", &templates.names()[0]]), "");
    assert!(templates.entries().is_empty());
}

/// Starts to make a template, and returns once its directory is there.
fn begun(templates: &Templates) -> Child {
    let mut child = templates.command(&["create"]).stdout(Stdio::null()).spawn().expect("start vmm");
    let until = Instant::now() + DEADLINE;
    while !templates.entries().iter().any(|name| name.starts_with(".new-")) {
        assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "nothing is made");
        std::thread::yield_now();
    }
    child
}

#[test]
fn one_that_was_killed_leaves_nothing_that_is_used() {
    let templates = Templates::none();
    let mut child = begun(&templates);
    child.kill().unwrap();
    wait(child);
    assert!(templates.entries().iter().all(|name| name.starts_with(".new-")), "{:?}", templates.entries());
    templates.run(&Bundle::sh("true"), "auto", b"").code(0).stderr("");
    templates.out(&["gc"]);
    assert!(templates.entries().is_empty());
    assert!(templates.create(&[]).status.success());
    templates.run(&Bundle::sh("true"), "require", b"").code(0);
}

#[test]
fn a_full_disk_leaves_nothing() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can mount a file system");
        return;
    }
    let templates = Templates::none();
    fs::create_dir(templates.path()).unwrap();
    let full = Mounted::new(&templates.path());
    let failed = templates.create(&[]);
    let error = text(&failed.stderr).to_lowercase();
    assert!(!failed.status.success() && error.contains("no space left on device"), "{error}");
    assert!(templates.entries().is_empty());
    templates.run(&Bundle::sh("echo hello"), "auto", b"").code(0).stdout("hello\n").stderr("");
    drop(full);
}

/// A file system of 2 MiB, mounted until this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(path: &Path) -> Mounted {
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), Some(c"size=2m,mode=700")).expect("mount a tmpfs");
        Mounted(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).expect("unmount the tmpfs");
    }
}
