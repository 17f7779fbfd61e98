//! Standard input, output and error: complete, separate, and with back-pressure.

use std::fs::{self, File};
use std::io::Read;
use std::process::{Command, Stdio};

use tests::Bundle;

/// Pseudo-random bytes: a transport that repeats, drops or reorders some changes the sequence.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[test]
fn stdout_and_stderr_are_separate() {
    let script = "for i in 1 2 3; do echo out$i; echo err$i >&2; done";
    Bundle::sh(script).run().code(0).stdout("out1\nout2\nout3\n").stderr("err1\nerr2\nerr3\n");
}

#[test]
fn ten_mebibytes_of_input_are_copied_to_the_output() {
    let input = noise(10 << 20);
    let run = Bundle::new(&["cat"]).run_with(&input).code(0);
    assert_eq!(run.stdout.len(), input.len());
    assert!(run.stdout == input, "the bytes differ");
}

#[test]
fn a_slow_reader_gets_a_hundred_mebibytes() {
    const BYTES: usize = 100 << 20;
    let bundle =
        Bundle::sh(&format!("dd if=/dev/zero bs=64k count={} 2>/dev/null; echo end >&2", BYTES >> 16));
    let mut run = bundle.start();
    let mut stdout = run.take_stdout();
    let reader = std::thread::spawn(move || {
        let (mut total, mut piece) = (0, vec![0; 1 << 20]);
        loop {
            // Like a terminal or a log driver, the reader works between two reads.
            let busy =
                (0..20_000_u32).fold(0_u32, |a, b| std::hint::black_box(a.wrapping_mul(31).wrapping_add(b)));
            std::hint::black_box(busy);
            match stdout.read(&mut piece).unwrap() {
                0 => return total,
                n => total += n,
            }
        }
    });
    run.finish().code(0).stderr("end\n");
    assert_eq!(reader.join().unwrap(), BYTES);
}

#[test]
fn the_end_of_input_is_forwarded() {
    Bundle::sh("read a; read b; echo \"$a-$b\"; cat; echo eof")
        .run_with(b"x\ny\nz\n")
        .code(0)
        .stdout("x-y\nz\neof\n");
}

#[test]
fn unread_input_does_not_block() {
    Bundle::sh("exec 0<&-; echo done").run_with(&noise(4 << 20)).code(0).stdout("done\n");
}

#[test]
fn output_without_a_reader_does_not_block() {
    let bundle = Bundle::sh("dd if=/dev/zero bs=64k count=150 2>/dev/null; echo end >&2");
    let mut run = bundle.start();
    drop(run.take_stdout());
    let run = run.finish();
    assert!(run.status.code().is_some(), "{run}");
}

#[test]
fn standard_streams_can_be_files() {
    let bundle = Bundle::sh("cat; echo err >&2");
    let path = |name: &str| bundle.path().join(name);
    fs::write(path("in"), noise(300_000)).unwrap();
    fs::write(path("out"), "kept:").unwrap();
    let mut command = bundle.command();
    command
        .stdin(File::open(path("in")).unwrap())
        .stdout(File::options().append(true).open(path("out")).unwrap())
        .stderr(File::create(path("err")).unwrap());
    let status = tests::status(&mut command);
    assert_eq!(status.code(), Some(0));
    let out = fs::read(path("out")).unwrap();
    assert!(out.strip_prefix(b"kept:").unwrap() == noise(300_000), "the bytes differ");
    assert_eq!(fs::read_to_string(path("err")).unwrap(), "err\n");
}

#[test]
fn stdout_and_stderr_can_be_one_file() {
    let bundle = Bundle::sh("i=0; while [ $i -lt 500 ]; do echo out$i; echo err$i >&2; i=$((i+1)); done");
    let file = File::create(bundle.path().join("both")).unwrap();
    let mut command = bundle.command();
    command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    let status = tests::status(&mut command);
    assert_eq!(status.code(), Some(0));
    let text = fs::read_to_string(bundle.path().join("both")).unwrap();
    let kept = |what: &str| text.lines().filter(|l| l.starts_with(what)).count();
    assert_eq!((kept("out"), kept("err")), (500, 500));
}

#[test]
fn standard_streams_can_be_closed() {
    let bundle = Bundle::sh("cat; echo out; echo err >&2; exit 5");
    let inner = format!("{:?} <&- >&- 2>&-", bundle.command());
    let status = tests::status(Command::new("bash").args(["-c", &inner]));
    assert_eq!(status.code(), Some(5));
}

#[test]
fn output_to_a_full_disk_is_an_error() {
    let bundle = Bundle::sh("head -c 100000 /dev/zero; exit 0");
    let run = bundle
        .command()
        .stdin(Stdio::null())
        .stdout(File::options().write(true).open("/dev/full").unwrap())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stderr);
    assert!(text.contains("No space left on device"), "{text}");
    assert_ne!(run.status.code(), Some(0));
}

#[test]
fn input_written_before_the_container_runs_is_kept() {
    let mut run = Bundle::new(&["cat"]).start();
    run.write(b"early\n");
    run.finish().code(0).stdout("early\n");
}
