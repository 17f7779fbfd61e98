//! Languages and a browser, from Debian's packages: programs that adapt to the memory and the CPUs that they find, watch
//! files, compile at run time, and confine their own processes.

use std::fs;
use std::thread::available_parallelism;

use tempfile::TempDir;

use crate::case::{Case, case};
use crate::engine::Engine;
use crate::images;

pub const CASES: &[Case] = &[
    case!(java_has_the_memory_and_cpus_of_its_container),
    case!(java_without_limits_has_those_of_the_host),
    case!(node_watches_files_of_a_volume),
    case!(cargo_builds_on_all_cpus),
    case!(chromium_runs_a_page),
    case!(chromium_has_a_sandbox_of_its_own),
];

/// Asserts that `count` is the number of CPUs of the host: those of this process or, because Linux before 6.2 forgets the
/// affinity of a process that moves to a cgroup with the cpuset controller, all.
pub fn assert_cpus(count: &str) {
    let own = available_parallelism().expect("count CPUs").get();
    let text = fs::read_to_string("/proc/cpuinfo").expect("read /proc/cpuinfo");
    let all = text.lines().filter(|line| line.starts_with("processor")).count();
    assert!([own, all].map(|cpus| cpus.to_string()).contains(&count.to_owned()), "{count} of {own} or {all}");
}

/// Runs `script` in a new container of the image `languages`, with all CPUs of the host and these flags. Returns its output.
#[track_caller]
fn run(engine: &Engine, flags: &[&str], script: &str) -> String {
    images::import_languages(engine);
    let words = [&["run", "--rm"], engine.all_cpus(), flags, &["languages", "sh", "-ec", script]].concat();
    // In a guest of an emulated host, programs of this size take four to eight times as long as with runc.
    let done = engine.start_command(&words).for_longer(4).finish();
    assert!(done.status.success(), "{words:?}: {done}");
    done.text()
}

fn java_has_the_memory_and_cpus_of_its_container(engine: &Engine) {
    let script = "cat >/tmp/Main.java <<-END
	import java.util.stream.IntStream;
	public class Main {
	  public static void main(String[] words) {
	    Runtime here = Runtime.getRuntime();
	    long sum = IntStream.range(0, 200000).parallel().asLongStream().sum();
	    System.out.println(here.availableProcessors() + \" \" + (here.maxMemory() >> 20) + \" \" + sum);
	  }
	}
	END
        java -XX:TieredStopAtLevel=1 /tmp/Main.java";
    let text = run(engine, &["-m", "768m"], script);
    let words: Vec<&str> = text.split(' ').collect();
    assert_cpus(words[0]);
    assert_eq!(words[2], "19999900000", "{text}");
    // A quarter of the limit is the heap, of which some collectors keep a part for copies.
    let heap: u32 = words[1].parse().expect("a number of MiB");
    assert!((160..=192).contains(&heap), "{text}");
}

fn java_without_limits_has_those_of_the_host(engine: &Engine) {
    let script = "java -XX:+PrintFlagsFinal -version 2>/dev/null | awk '$2 == \"MaxHeapSize\" {print $4}'";
    let heap: f64 = run(engine, &[], script).parse().expect("a size");
    let text = fs::read_to_string("/proc/meminfo").expect("read /proc/meminfo");
    let kilobytes = text.split_whitespace().nth(1).and_then(|word| word.parse::<f64>().ok());
    let quarter = kilobytes.expect("the size of the memory") * 1024.0 / 4.0;
    assert!((heap / quarter - 1.0).abs() < 0.05, "{heap} of {quarter}");
}

fn node_watches_files_of_a_volume(engine: &Engine) {
    images::import_languages(engine);
    let dir = TempDir::new().expect("create a directory for the volume");
    let volume = format!("{}:/data", dir.path().display());
    let script =
        "require('fs').watch('/data', (event, name) => console.log('changed ' + name)); console.log('ready')";
    engine.start_container("watcher", &["-v", &volume, "languages", "node", "-e", script], "ready");
    engine.ok(&["exec", "watcher", "touch", "/data/from-inside"]);
    engine.wait_log("watcher", "changed from-inside");
    fs::write(dir.path().join("from-outside"), "").expect("write a file of the volume");
    engine.wait_log("watcher", "changed from-outside");
}

fn cargo_builds_on_all_cpus(engine: &Engine) {
    let script = "mkdir -p /app/src/bin; cd /app
        printf '[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2021\"\n' >Cargo.toml
        for name in one two three; do
            echo 'fn main() { println!(\"{}\", std::thread::available_parallelism().unwrap()) }' >src/bin/$name.rs
        done
        cargo build --offline --quiet
        target/debug/one; target/debug/two; target/debug/three; nproc";
    let text = run(engine, &[], script);
    let counts: Vec<&str> = text.lines().collect();
    assert_eq!(counts, [counts[0]; 4]);
    assert_cpus(counts[0]);
}

/// A page whose text comes from a script.
const PAGE: &str =
    "<body><script>document.body.append(['made', 'by', 'a', 'script'].join(' '))</script></body>";
/// What the script makes of the page.
const MADE: &str = "</script>made by a script";

/// Has Chromium print the document that it makes of a page.
fn chromium(engine: &Engine, flags: &[&str], words: &str) -> String {
    let script = format!(
        "cd; echo \"{PAGE}\" >page.html
        chromium-headless-shell {words} --disable-gpu --dump-dom file://$PWD/page.html 2>log || cat log"
    );
    run(engine, &[&["-e", "HOME=/tmp", "-m", "1g"], flags].concat(), &script)
}

fn chromium_runs_a_page(engine: &Engine) {
    let text = chromium(engine, &[], "--no-sandbox");
    assert!(text.contains(MADE), "{text}");
}

fn chromium_has_a_sandbox_of_its_own(engine: &Engine) {
    // Docker's filter forbids the user namespaces of which the sandbox consists.
    let text = chromium(engine, &["-u", "1000", "--security-opt", "seccomp=unconfined"], "");
    assert!(text.contains(MADE), "{text}");
}
