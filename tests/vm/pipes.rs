//! FIFOs of a volume, which join processes of several machines and of the host.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;
use tests::{Bundle, Running, check_output};

/// A directory with the FIFO `p`.
struct Volume(TempDir);

impl Volume {
    fn new() -> Volume {
        let volume = Volume(TempDir::new().unwrap());
        check_output(Command::new("/bin/busybox").arg("mkfifo").arg(volume.fifo()));
        volume
    }

    fn fifo(&self) -> PathBuf {
        self.0.path().join("p")
    }

    /// Starts `script` in a machine, where the FIFO is /v/p.
    fn machine(&self, script: &str) -> Running {
        bundle(self.0.path(), script).start()
    }

    /// Starts `script` on the host, where the FIFO is p.
    fn host(&self, script: &str) -> Running {
        let mut command = Command::new("/bin/busybox");
        command.args(["sh", "-c", script]).current_dir(self.0.path());
        Running::start(command)
    }
}

fn bundle(volume: &Path, script: &str) -> Bundle {
    let options = ["rbind", "rw"];
    Bundle::sh(script)
        .mount(json!({"destination": "/v", "type": "bind", "source": volume, "options": options}))
        .with(|c| c["process"]["cwd"] = json!("/v"))
}

/// Starts a script in a machine or on the host.
type Start<'a> = &'a dyn Fn(&str) -> Running;

const READS: &str = "echo ready; cat p; echo end";
const WRITES: &str = "echo ready; for i in 1 2 3; do echo line $i; done > p; echo written";

#[test]
fn two_machines_and_the_host_meet_whoever_opens_first() {
    let volume = Volume::new();
    let machine = |script: &str| volume.machine(script);
    let host = |script: &str| volume.host(script);
    let starts: [[Start<'_>; 2]; 3] = [[&machine, &host], [&host, &machine], [&machine, &machine]];
    for [reader, writer] in starts {
        for reader_first in [true, false] {
            let mut first = if reader_first { reader(READS) } else { writer(WRITES) };
            first.wait_for("ready\n");
            let mut second = if reader_first { writer(WRITES) } else { reader(READS) };
            second.wait_for("ready\n");
            let (read, written) = if reader_first { (first, second) } else { (second, first) };
            read.finish().code(0).stdout("line 1\nline 2\nline 3\nend\n");
            written.finish().code(0).stdout("written\n");
        }
    }
}

#[test]
fn processes_of_one_machine_meet_on_a_volume_and_on_the_root() {
    let volume = Volume::new();
    let script =
        "mkfifo q /q; for f in p q /q; do cat $f & echo text $f > $f; wait; done; ls -l q | head -c 1";
    volume.machine(script).finish().code(0).stdout("text p\ntext q\ntext /q\np");
}

#[test]
fn large_transfers_are_exact_in_both_directions() {
    let volume = Volume::new();
    // With writes of several sizes, some of them above what a pipe holds.
    let write = "{ dd if=/dev/urandom of=data bs=1024 count=5000; } 2>/dev/null; md5sum < data; \
        { dd if=data bs=300 count=100; dd if=data bs=1 skip=30000 count=1; tail -c +30002 data; } 2>/dev/null > p";
    let read = "md5sum < p";
    let both = |writer: Running, reader: Running| {
        let (sent, received) = (writer.finish().code(0).text(), reader.finish().code(0).text());
        assert_eq!(sent, received);
    };
    both(volume.machine(write), volume.host(read));
    both(volume.host(write), volume.machine(read));
    both(volume.machine(write), volume.machine(read));
}

#[test]
fn the_end_of_either_side_reaches_the_other() {
    let volume = Volume::new();
    // A machine is killed that writes, and its reader sees the end.
    let mut writer = volume.machine("exec 3> p; echo text >&3; echo ready; read x");
    let mut reader = volume.host("cat p; echo end");
    writer.wait_for("ready\n");
    reader.wait_for("text\n");
    writer.signal("KILL");
    reader.finish().code(0).stdout("end\n");
    drop(writer.finish());
    // A machine is killed that reads, and its writer gets SIGPIPE.
    let mut reader = volume.machine("exec 3< p; read x <&3; echo $x; read x");
    let mut writer = volume.machine("cat > p; echo $?");
    writer.write(b"text\n");
    reader.wait_for("text\n");
    reader.signal("KILL");
    drop(reader.finish());
    writer.write(b"for nobody\n");
    assert_eq!(writer.finish().code(0).text(), "141", "SIGPIPE");
}

#[test]
fn a_signal_ends_the_wait_for_the_other_end_for_data_and_for_room() {
    let volume = Volume::new();
    let script = "end() { until grep -q 'State:.S' /proc/$1/status; do :; done; kill $1; wait $1; echo $?; }; \
        cat < p & end $!; echo x > p & end $!; exec 3<> p; cat <&3 & end $!; cat /dev/zero >&3 & end $!";
    volume.machine(script).finish().code(0).stdout("143\n143\n143\n143\n");
}

#[test]
fn a_process_that_polls_hears_of_data() {
    let volume = Volume::new();
    // The shell's read with a timeout polls, and returns an error when the time has passed.
    let mut machine =
        volume.machine("exec 3<> p; echo ready; read -t 300 x <&3; echo $? $x; read -t 0.1 x <&3; echo $?");
    machine.wait_for("ready\n");
    volume.host("echo text > p").finish().code(0);
    machine.finish().code(0).stdout("0 text\n1\n");
}

#[test]
fn a_bind_of_a_fifo_is_the_host_s() {
    let volume = Volume::new();
    let bind = json!({"destination": "/run/pipe", "type": "bind", "source": volume.fifo(), "options": ["rbind", "ro"]});
    let machine =
        Bundle::sh("read x < /run/pipe; echo $x; echo answer > /run/pipe").mount(bind.clone()).start();
    volume.host("echo question > p; read x < p; echo $x").finish().code(0).stdout("answer\n");
    machine.finish().code(0).stdout("question\n");
    let refused = Bundle::sh("true").flag("--share=9p").mount(bind).run();
    refused.code(125).says(&["mounts[", "is a named pipe of the host's kernel"]);
}
