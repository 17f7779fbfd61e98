//! Templates that are made without being asked, after a machine has booted because there was none.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Stdio;

use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tests::{Bundle, Finished, Running, until};

use super::{Mounted, Templates};
use crate::lifecycle::Container;
use crate::pods::Pod;

impl Templates {
    /// Runs a bundle whose template is made at once if there is none.
    fn run_making(&self, bundle: &Bundle, change: &[(&'static str, &str)]) -> Finished {
        let mut command = bundle.command();
        command.envs(self.env("auto")).env("VMM_TEMPLATE_MAKE", "always").envs(change.iter().copied());
        Running::start(command).finish()
    }

    /// Templates that are in place, without those that are being made.
    fn made(&self) -> Vec<String> {
        let is_name = |name: &String| !name.starts_with('.');
        self.entries().into_iter().filter(is_name).collect()
    }

    /// Records of attempts, with their texts.
    fn attempts(&self) -> Vec<(PathBuf, String)> {
        let attempt = |name: String| {
            let path = self.path().join(&name);
            let text = fs::read_to_string(&path).ok();
            name.starts_with(".tried-").then_some(()).and(text).map(|text| (path, text))
        };
        self.entries().into_iter().filter_map(attempt).collect()
    }

    #[track_caller]
    fn await_one(&self) {
        until("a template is made", || (!self.made().is_empty() && self.attempts().is_empty()).then_some(()));
        assert_eq!(self.entries().len(), 1, "{:?}", self.entries());
    }

    /// Waits for the process that makes a template here, which has its lock open. Returns its id.
    #[track_caller]
    fn await_maker(&self) -> u32 {
        let lock = self.path().join("lock");
        until("a process makes a template", || {
            let processes = fs::read_dir("/proc").unwrap().flatten();
            let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
            ids.find(|id| {
                let words = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
                let files = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
                let mut files = files.filter_map(|file| fs::read_link(file.path()).ok());
                words.ends_with(b"\0template\0make\0") && files.any(|file| file == lock)
            })
        })
    }
}

fn kill(id: u32) {
    let pid = Pid::from_raw(id.cast_signed()).expect("a process");
    kill_process(pid, Signal::KILL).expect("kill it");
    until("it is gone", || {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
}

#[test]
fn the_second_start_continues_from_the_template_of_the_first() {
    let templates = Templates::none();
    let bundle = Bundle::sh("echo hello");
    templates.run_making(&bundle, &[]).code(0).stdout("hello\n").stderr("");
    templates.await_one();
    templates.run(&bundle, "require", b"").code(0).stdout("hello\n").stderr("");
    let limited = Bundle::sh("echo hello").with(|c| {
        c["linux"]["resources"]["memory"] = json!({ "limit": 96 << 20 });
    });
    templates.run_making(&limited, &[("VMM_MEMORY", "100")]).code(0).stdout("hello\n").stderr("");
    until("another one is made", || (templates.made().len() == 2).then_some(()));
}

#[test]
fn templates_are_made_for_containers_of_engines_outside_of_their_cgroup() {
    let templates = Templates::none();
    let name = format!("vmm-making-{}", std::process::id());
    let container = Container::new(Bundle::sh("while :; do sleep 1; done").with(|c| {
        c["linux"]["cgroupsPath"] = json!(format!("/{name}"));
    }));
    let env = templates.env("auto");
    let mut env: Vec<(&str, &str)> = env.iter().map(|(key, value)| (*key, value.as_str())).collect();
    env.push(("VMM_TEMPLATE_MAKE", "always"));
    let pid = container.create_with(&env);
    // `vmm create` has returned, and left nothing but the container in its cgroup.
    let inside = fs::read_to_string(format!("/sys/fs/cgroup/{name}/cgroup.procs")).unwrap();
    assert_eq!(inside, format!("{}\n", pid.as_raw_nonzero()));
    let maker = templates.await_maker();
    let of = |file: &str| fs::read_to_string(format!("/proc/{maker}/{file}")).unwrap();
    assert!(!of("cgroup").contains(&name), "{}", of("cgroup"));
    assert_eq!((of("oom_score_adj").trim(), of("environ").as_str()), ("1000", ""));
    let stat = of("stat");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // Session and terminal.
    assert_eq!((fields[3], fields[4]), (&*maker.to_string(), "0"), "{stat}");
    for fd in 0..=2 {
        let link = fs::read_link(format!("/proc/{maker}/fd/{fd}")).unwrap();
        assert!(fd == 0 || link == *"/dev/null", "{link:?}");
    }
    assert_eq!(fs::read_link(format!("/proc/{maker}/cwd")).unwrap(), PathBuf::from("/"));
    container.out(&["start", "c"]);
    container.out(&["delete", "--force", "c"]);
    assert!(!PathBuf::from(format!("/sys/fs/cgroup/{name}")).exists());
    templates.await_one();
}

#[test]
fn templates_are_made_for_pods() {
    for flags in [&["run"][..], &["run", "--detach", "--rm"]] {
        let templates = Templates::none();
        let pod = Pod::new();
        let path = pod.state.beside("pod.json");
        let containers = [pod.container("a", "echo one", json!({}))];
        fs::write(&path, json!({ "id": "p", "containers": containers }).to_string()).unwrap();
        let words = [&["pod"], flags, &[path.to_str().unwrap()]].concat();
        let mut command = pod.state.command(&words);
        command.envs(templates.env("auto")).env("VMM_TEMPLATE_MAKE", "always");
        Running::start(command).finish().code(0);
        templates.await_one();
    }
}

#[test]
fn several_starts_at_once_make_one() {
    let templates = Templates::none();
    let bundle = Bundle::sh("echo hello");
    let start = || {
        let mut command = bundle.command();
        command.envs(templates.env("auto")).env("VMM_TEMPLATE_MAKE", "always");
        Running::start(command)
    };
    let runs = [start(), start(), start()];
    runs.into_iter().for_each(|run| _ = run.finish().code(0).stdout("hello\n").stderr(""));
    templates.await_one();
    let inode = |name: &str| fs::metadata(templates.path().join(name)).unwrap().ino();
    let name = templates.made().remove(0);
    let before = inode(&name);
    templates.run_making(&bundle, &[]).code(0).stdout("hello\n").stderr("");
    assert_eq!((templates.entries().len(), inode(&name)), (1, before));
}

#[test]
fn a_process_that_was_killed_while_it_made_one_leaves_nothing_that_is_used() {
    let templates = Templates::none();
    let bundle = Bundle::sh("echo hello");
    let hello = || {
        templates.run_making(&bundle, &[]).code(0).stdout("hello\n").stderr("");
    };
    hello();
    until("it has begun", || templates.entries().iter().any(|name| name.starts_with(".new-")).then_some(()));
    kill(templates.await_maker());
    assert!(templates.made().is_empty());
    // Not repeated at each start.
    let [(attempt, _)] = &templates.attempts()[..] else { panic!("{:?}", templates.entries()) };
    let begun = fs::metadata(attempt).unwrap().modified().unwrap();
    hello();
    assert_eq!(fs::metadata(attempt).unwrap().modified().unwrap(), begun);
    templates.out(&["gc"]);
    assert!(templates.entries().is_empty());
    hello();
    templates.await_one();
}

#[test]
fn a_template_that_was_refused_is_made_anew() {
    let templates = Templates::one();
    let state = templates.template().join("state");
    fs::set_permissions(&state, Permissions::from_mode(0o600)).unwrap();
    fs::write(&state, "nothing").unwrap();
    let bundle = Bundle::sh("echo hello");
    let booted = templates.run_making(&bundle, &[]).code(0).stdout("hello\n");
    booted.says(&["template refused", "damaged"]);
    until("it is made anew", || (fs::metadata(&state).ok()?.len() > 1000).then_some(()));
    templates.run(&bundle, "require", b"").code(0).stdout("hello\n").stderr("");
}

#[test]
fn a_full_disk_is_tried_once() {
    let templates = Templates::none();
    fs::create_dir(templates.path()).unwrap();
    let full = Mounted::new(&templates.path());
    let bundle = Bundle::sh("echo hello");
    templates.run_making(&bundle, &[]).code(0).stdout("hello\n").stderr("");
    let why = until("it has failed", || templates.attempts().pop().filter(|(_, why)| !why.is_empty()));
    assert!(why.1.to_lowercase().contains("no space left on device"), "{why:?}");
    let until_idle = || templates.entries().iter().all(|name| !name.starts_with(".new-")).then_some(());
    until("the draft is removed", until_idle);
    assert_eq!(templates.entries().len(), 1, "{:?}", templates.entries());
    templates.run_making(&bundle, &[]).code(0).stdout("hello\n").stderr("");
    assert_eq!(templates.attempts(), [why]);
    drop(full);
}

#[test]
fn nothing_is_made_where_it_cannot_be_and_nobody_is_told() {
    let bundle = Bundle::sh("echo hello");
    let quiet = |templates: &Templates, change: &[(&'static str, &str)]| {
        templates.run_making(&bundle, change).code(0).stdout("hello\n").stderr("");
    };
    let disabled = Templates::none();
    quiet(&disabled, &[("VMM_TEMPLATE_MAKE", "never")]);
    quiet(&disabled, &[("VMM_TEMPLATE", "off")]);
    assert!(!disabled.path().exists());

    let read_only = Templates::none();
    fs::create_dir(read_only.path()).unwrap();
    let mounted = Mounted::new(&read_only.path());
    mount_remount(read_only.path(), MountFlags::RDONLY, "").expect("make it read-only");
    quiet(&read_only, &[]);
    assert!(read_only.entries().is_empty());
    drop(mounted);

    let foreign = Templates::none();
    fs::create_dir(foreign.path()).unwrap();
    fs::set_permissions(foreign.path(), Permissions::from_mode(0o700)).unwrap();
    chown(foreign.path(), Some(1000), None).unwrap();
    quiet(&foreign, &[]);
    assert!(foreign.entries().is_empty());

    // A container's cgroup would contain the process that makes it.
    let inside = Templates::none();
    let name = format!("/vmm-inside-{}", std::process::id());
    let grouped = Bundle::sh("echo hello").with(|c| c["linux"]["cgroupsPath"] = json!(name));
    inside.run_making(&grouped, &[]).code(0).stdout("hello\n").stderr("");
    assert!(inside.entries().is_empty());

    let wrong = inside.run_making(&bundle, &[("VMM_TEMPLATE_MAKE", "perhaps")]);
    wrong.code(125).says(&["template-make \"perhaps\": not idle, always or never"]);
}

#[test]
fn the_foreground_leaves_no_child_that_has_ended() {
    let templates = Templates::none();
    let bundle = Bundle::sh("echo running; read line");
    let mut command = bundle.command();
    command.envs(templates.env("auto")).env("VMM_TEMPLATE_MAKE", "always").stdin(Stdio::piped());
    let mut running = Running::start(command);
    running.wait_for("running");
    templates.await_one();
    let children = format!("/proc/{0}/task/{0}/children", running.pid());
    until("it has no child", || fs::read_to_string(&children).unwrap().trim().is_empty().then_some(()));
    running.stop();
}
