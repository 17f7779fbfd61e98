//! Bundles, run by the runtime's own command line: what public reports of other runtimes found wrong, each as a bundle
//! and the right value.

mod container;
mod machine;
mod schema;
mod surface;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};
use tests::{Bundle, Finished, Running, check_output, output};

use crate::case::{Case, case};
use crate::engine::Engine;

pub const CASES: &[Case] = &[
    case!(sizes),
    case!(parameters),
    case!(descriptors),
    case!(devices),
    case!(users),
    case!(fields),
    case!(mounts),
    case!(kernel),
    case!(exec_processes),
    case!(a_read_only_bind_and_the_mounts_below),
    case!(what_is_wrong_is_an_error),
    case!(each_field_null_missing_and_empty),
    case!(what_the_kernel_offers),
];

/// A public report, as a bundle of busybox.
pub struct Report {
    /// Repository and number.
    pub of: &'static str,
    /// Makes the bundle that the report needs.
    pub bundle: fn(Bundle) -> Bundle,
    /// The script that the container runs.
    pub script: &'static str,
    pub prints: Prints,
}

/// What is right.
pub enum Prints {
    /// This text, with either runtime.
    Exactly(&'static str),
    /// What runc prints on this host.
    AsRunc,
}

const fn report(
    of: &'static str,
    bundle: fn(Bundle) -> Bundle,
    script: &'static str,
    prints: Prints,
) -> Report {
    Report { of, bundle, script, prints }
}

/// The bundle as it is.
const fn plain(bundle: Bundle) -> Bundle {
    bundle
}

/// Sets `process.user`, and removes all capabilities if it is not root.
fn user(bundle: Bundle, user: Value) -> Bundle {
    bundle.with(|c| {
        if user["uid"] != json!(0) {
            c["process"]["capabilities"] = json!({});
        }
        c["process"]["user"] = user;
    })
}

/// A tmpfs at `destination` with these options.
fn tmpfs(bundle: Bundle, destination: &str, options: Value) -> Bundle {
    let mount = json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options});
    bundle.mount(mount)
}

/// The path of Debian's runc.
const RUNC: &str = "/usr/sbin/runc";

/// Runs a bundle as a container of `runtime`.
fn run(bundle: &Bundle, runtime: &Path) -> Finished {
    let mut command = bundle.command_of(runtime, &[], "report");
    // Tests of machines have one CPU unless they ask for more.
    command.env_remove("VMM_MAX_CPUS");
    Running::start(command).feed(b"").finish()
}

/// Runs all reports and fails with those whose output is not the right one.
#[track_caller]
fn check(engine: &Engine, reports: &[Report]) {
    let mut wrong = String::new();
    for report in reports {
        // A runtime changes a root file system: it makes mount points.
        let run = |runtime: &Path| run(&(report.bundle)(Bundle::sh(report.script)), runtime);
        let done = run(&engine.program());
        let expected = match report.prints {
            Prints::Exactly(text) => text.to_owned(),
            Prints::AsRunc if engine.is_vm() => run(Path::new(RUNC)).text(),
            Prints::AsRunc => done.text(),
        };
        if done.text() != expected || expected.is_empty() {
            wrong += &format!("--- {}\n{done}\n--- instead of\n{expected}\n", report.of);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn sizes(engine: &Engine) {
    check(engine, machine::SIZES);
}

fn parameters(engine: &Engine) {
    check(engine, machine::PARAMETERS);
}

fn descriptors(engine: &Engine) {
    check(engine, container::DESCRIPTORS);
}

fn devices(engine: &Engine) {
    check(engine, container::DEVICES);
}

fn users(engine: &Engine) {
    check(engine, container::USERS);
}

fn fields(engine: &Engine) {
    check(engine, container::FIELDS);
}

fn mounts(engine: &Engine) {
    check(engine, container::MOUNTS);
}

fn kernel(engine: &Engine) {
    check(engine, machine::KERNEL);
}

/// Exec processes of a container of user 1000: flags, script, output.
const EXECS: &[(&str, &[&str], &str, &str)] = &[
    ("containers/crun 745", &[], "echo to stdout >/dev/stdout; cat /dev/stdin", "to stdout"),
    ("opencontainers/runc 2086", &["--user", "0", "--cwd", "/private"], "pwd", "/private"),
    ("opencontainers/runc 2894", &["--cwd", "/private"], "pwd; id -u", "/private\n1000"),
    ("youki-dev/youki 3131", &["--additional-gids", "10"], "id -G; echo $PATH", "1000 10\n/bin"),
    ("youki-dev/youki 680", &["--user", "1000:10"], "echo $HOME; id -g", "/home/ann\n10"),
    (
        "containers/crun 1516",
        &[],
        "ulimit -n; grep CapEff /proc/self/status",
        "512\nCapEff:\t0000000000000000",
    ),
    ("opencontainers/runc 4266", &["--user", "0"], "ulimit -n", "512"),
];

fn exec_processes(engine: &Engine) {
    let bundle = Bundle::new(&["sleep", "1000"]).with(|c| {
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        c["process"]["env"] = json!(["PATH=/bin"]);
        c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 512, "hard": 512}]);
    });
    private_directory(&bundle);
    let mut command = bundle.command_of(&engine.program(), &["--detach"], "execs");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(tests::status(&mut command).success());
    let mut wrong = String::new();
    for (of, flags, script, expected) in EXECS {
        let words = [&["exec"], *flags, &["execs", "sh", "-c", script]].concat();
        let done = engine.run(&words);
        if done.text() != *expected {
            wrong += &format!("--- {of}\n{done}\n--- instead of\n{expected}\n");
        }
    }
    engine.ok(&["delete", "--force", "execs"]);
    assert!(wrong.is_empty(), "{wrong}");
}

/// Makes the directory `/private`, which only user 1000 may enter.
fn private_directory(bundle: &Bundle) {
    let path = bundle.rootfs().join("private");
    fs::create_dir(&path).expect("create a directory");
    check_output(Command::new("chown").arg("1000:1000").arg(&path));
    check_output(Command::new("chmod").arg("700").arg(&path));
}

/// A mount of the host, which ends on drop.
struct HostMount(PathBuf);

impl Drop for HostMount {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).expect("unmount");
    }
}

/// opencontainers/runc 2823 and 3272, youki-dev/youki 3320, moby/moby 44978: `ro` is that of one mount, and `rro` also of
/// those below.
fn a_read_only_bind_and_the_mounts_below(engine: &Engine) {
    let source = engine.dir().join("above");
    let below = source.join("below");
    fs::create_dir_all(&below).expect("create a directory");
    mount("none", &below, "tmpfs", MountFlags::empty(), c"").expect("mount a tmpfs");
    let _below = HostMount(below);
    let script =
        "touch /data/f 2>/dev/null || echo read-only; touch /data/below/f 2>/dev/null || echo read-only";
    for (option, expected) in [("ro", "read-only"), ("rro", "read-only\nread-only")] {
        let bundle = Bundle::sh(&format!("{script}; :")).mount(
            json!({"destination": "/data", "type": "bind", "source": source, "options": ["rbind", option]}),
        );
        assert_eq!(run(&bundle, &engine.program()).code(0).text(), expected, "{option}");
    }
}

/// Bundles with which other runtimes crashed, or which they started without what was asked for.
fn what_is_wrong_is_an_error(engine: &Engine) {
    let config = |text: &str| {
        let bundle = Bundle::new(&["true"]);
        bundle.write();
        fs::write(bundle.path().join("config.json"), text).expect("write config.json");
        let mut command = Command::new(engine.program());
        output(command.args(["run", "--bundle"]).arg(bundle.path()).arg("wrong"))
    };
    // opencontainers/runc 2392, 1848.
    for text in [
        "{\"ociVersion\": \"1.0.0\"\n},",
        "{\"ociVersion\": \"1.0.0\"}",
        "{\"ociVersion\": \"1.0.0\", \"process\": {}}",
    ] {
        let done = config(text);
        assert!(done.status.code().is_some_and(|code| code != 0), "{text}: {done:?}");
        assert!(!done.stderr.is_empty(), "{text}");
    }
    // opencontainers/runc 5320: a NUL in an option. 195: a program with its arguments in one word.
    let nul = Bundle::new(&["true"])
        .mount(json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid\0"]}));
    let word = Bundle::new(&["/bin/ls -a"]);
    for bundle in [nul, word] {
        let done = run(&bundle, &engine.program());
        assert!(!done.status.success() && !done.stderr.is_empty(), "{done}");
    }
}

/// Every bundle that runc starts, starts, and its program finds the same.
fn each_field_null_missing_and_empty(engine: &Engine) {
    // One bundle for each runtime, because a bundle is many files.
    let [mut of_runc, mut bundle] = [schema::full(), schema::full()];
    let full = bundle.config.clone();
    let expected = run(&of_runc, Path::new(RUNC)).code(0).text();
    assert_eq!(run(&bundle, &engine.program()).code(0).text(), expected);
    let mut left = if engine.is_vm() { schema::all(&full) } else { Vec::new() };
    let mut wrong = String::new();
    while let Some(without) = left.pop() {
        of_runc.config = without.apply(&full);
        bundle.config = of_runc.config.clone();
        let expected = run(&of_runc, Path::new(RUNC));
        let done = if expected.status.success() { Some(run(&bundle, &engine.program())) } else { None };
        let right = match &done {
            Some(done) if without.is_refused() => {
                !done.status.success() && done.to_string().contains("not supported")
            }
            Some(done) => done.status.success() && done.text() == expected.text(),
            // Of several fields, runc may refuse one.
            None => without.fields.len() == 1,
        };
        if !right && without.fields.len() > 1 {
            left.extend(without.halves());
        } else if !right {
            let done = done.map_or_else(|| "not run".to_owned(), |done| done.to_string());
            wrong += &format!("--- {without}\n{done}\n--- instead of\n{expected}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// The names that a container of `runtime` prints.
fn names(surface: &surface::Surface, runtime: &Path) -> BTreeSet<String> {
    let done = run(&(surface.bundle)(Bundle::sh(surface.script)), runtime);
    let names: BTreeSet<String> = done.text().lines().map(str::to_owned).collect();
    assert!(names.len() > 1, "{}: {done}", surface.of);
    names
}

fn what_the_kernel_offers(engine: &Engine) {
    let mut wrong = String::new();
    for surface in surface::SURFACES {
        let (host, own) = (names(surface, Path::new(RUNC)), names(surface, &engine.program()));
        let absent: Vec<&String> = host.difference(&own).filter(|name| !surface.knows(name)).collect();
        if !absent.is_empty() {
            wrong += &format!("--- {}\n{absent:?}\n", surface.of);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
