//! A container's init process: exit codes, signals, and programs that cannot be executed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

use serde_json::json;
use tests::{Bundle, Running};

#[test]
fn output_of_a_program_is_printed() {
    Bundle::sh("echo hello").run().code(0).stdout("hello\n").stderr("");
}

#[test]
fn vmm_exits_with_the_container_s_code() {
    for code in [0, 1, 2, 42, 124, 125, 126, 127, 128, 129, 137, 255] {
        Bundle::sh(&format!("exit {code}")).run().code(code).stderr("");
    }
}

#[test]
fn death_by_a_signal_is_128_plus_its_number() {
    for (signal, code) in [("TERM", 143), ("KILL", 137), ("SEGV", 139)] {
        Bundle::sh(&format!("kill -{signal} $$")).share("pid").run().code(code);
    }
}

#[test]
fn a_missing_program_is_127() {
    Bundle::new(&["/bin/nothing-here"])
        .run()
        .code(127)
        .stdout("")
        .says(&["/bin/nothing-here", "No such file"]);
    Bundle::new(&["nothing-here"]).run().code(127).says(&["nothing-here"]);
}

#[test]
fn a_program_that_cannot_be_executed_is_126() {
    let bundle = Bundle::new(&["/etc/passwd"]);
    bundle.run().code(126).stdout("").says(&["/etc/passwd", "Permission denied"]);
    let bundle = Bundle::new(&["/mnt/broken"]);
    let path = bundle.rootfs().join("mnt/broken");
    fs::write(&path, [0x7f, b'E', b'L', b'F', 0, 0]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    bundle.run().code(126).says(&["/mnt/broken"]);
}

#[test]
fn a_script_with_an_interpreter_runs() {
    let bundle = Bundle::new(&["/mnt/script", "a", "b"]);
    let path = bundle.rootfs().join("mnt/script");
    fs::write(&path, "#!/bin/sh\necho $# \"$2\"\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    bundle.run().code(0).stdout("2 b\n");
}

#[test]
fn signals_are_forwarded_to_the_container() {
    for (signal, says) in
        [("TERM", "got TERM\n"), ("USR1", "got USR1\n"), ("HUP", "got HUP\n"), ("INT", "got INT\n")]
    {
        let script =
            format!("trap 'echo got {signal}; exit 7' {signal}; echo ready; while :; do sleep 1; done");
        let bundle = Bundle::sh(&script);
        let mut run = bundle.start();
        run.wait_for("ready\n");
        run.signal(signal);
        run.finish().code(7).stdout(says);
    }
}

#[test]
fn a_background_child_that_keeps_the_output_open_does_not_delay_the_exit() {
    Bundle::sh("sleep 1000 & echo done; exit 3").run().code(3).stdout("done\n");
}

#[test]
fn orphans_are_reaped() {
    // `cat` ends when all orphans have exited.
    let script = "for i in 1 2 3 4 5; do (sleep 0.1 &); done | cat; \
                  while ps -o stat | grep -q Z; do :; done; echo reaped";
    for bundle in [Bundle::sh(script).share("pid"), Bundle::sh(script)] {
        bundle.run().code(0).stdout("reaped\n");
    }
}

#[test]
fn the_init_process_is_pid_1_of_its_namespace() {
    Bundle::sh("echo $$; ls -d /proc/[0-9]* | wc -l").run().code(0).stdout("1\n3\n");
}

#[test]
fn a_container_without_a_limit_has_the_cpus_of_the_host() {
    let cpus = |max: Option<&str>| {
        let bundle = Bundle::sh("nproc");
        let mut command = bundle.command();
        match max {
            Some(max) => command.env("VMM_MAX_CPUS", max),
            None => command.env_remove("VMM_MAX_CPUS"),
        };
        Running::start(command).finish().code(0).text()
    };
    let host = available_parallelism().unwrap().get();
    assert_eq!(cpus(None), host.min(8).to_string());
    assert_eq!(cpus(Some("1")), "1");
}

#[test]
fn two_vcpus_run_processes() {
    let bundle = Bundle::sh(
        "grep -c ^processor /proc/cpuinfo; nproc; for i in 1 2; do taskset -c $((i-1)) echo cpu$i; done",
    );
    bundle.flag("--cpus").flag("2").run().code(0).stdout("2\n2\ncpu1\ncpu2\n").stderr("");
}

#[test]
fn a_cpu_quota_and_a_memory_limit_size_the_machine() {
    let bundle = Bundle::sh("nproc; awk '/MemTotal/ {print ($2 > 480*1024 && $2 < 700*1024)}' /proc/meminfo")
        .with(|c| {
            c["linux"]["resources"] =
                json!({"memory": {"limit": 512 << 20}, "cpu": {"quota": 150_000, "period": 100_000}});
        });
    bundle.run().code(0).stdout("2\n1\n");
}

/// The process with the guest has no descriptors and no environment variables of its caller, and dumps no core.
#[test]
fn the_monitor_has_neither_descriptors_nor_environment_of_its_caller() {
    let bundle = Bundle::sh("echo ready; exec sleep 1000");
    let run = bundle.command();
    let mut command = Command::new("prlimit");
    let script = "ulimit -c unlimited; cd \"$0\"; echo > own; exec 9<own; exec \"$@\"";
    command.args(["--core=unlimited", "sh", "-c", script]).arg(bundle.path());
    command.arg(run.get_program()).args(run.get_args()).env("SECRET", "of the caller");
    let mut run = Running::start(command);
    run.wait_for("ready");
    let process = |name: &str| Path::new("/proc").join(run.pid().to_string()).join(name);
    let environment = fs::read(process("environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("SECRET"));
    let open =
        fs::read_dir(process("fd")).unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    assert_eq!(open.filter(|to| to.ends_with("own")).count(), 0);
    run.signal("ABRT");
    let ended = run.finish();
    assert_eq!(ended.status.signal(), Some(6));
    assert!(!ended.status.core_dumped(), "{ended}");
}
