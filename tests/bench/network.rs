//! Measures the network of containers: `network-bench FOLDER RUNS GROUPS` runs this program in a container of runc and of
//! `vmm`, and in a guest of QEMU, in turn, where it is `network-bench work`. GROUPS are kinds of traffic with commas
//! between them; none stands for all. Prints the results as JSON.
//!
//! The other end of all traffic is this process, at the address of a bridge. A connection to it carries the order of the
//! operations, so that the host looks at its clock and its counters before and after each.

#[path = "network/contenders.rs"]
mod contenders;
#[path = "network/counters.rs"]
mod counters;
#[path = "network/traffic.rs"]
mod traffic;

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use contenders::{Contender, Folder, Started};
use counters::{Counters, Trace};
use traffic::Operation;

/// TCP port of the connection that carries the order of the operations.
const CONTROL: u16 = 7000;
/// Pause before each operation, in which retransmissions and acknowledgements of the one before come to rest.
const SETTLED: Duration = Duration::from_millis(100);

/// Results by operation, in order of appearance, and in each by contender.
#[derive(Default)]
struct Rows(Vec<(&'static str, Map<String, Value>)>);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["work"] => work(),
        [folder, runs, groups] => {
            let only: Vec<&str> = groups.split(',').filter(|group| !group.is_empty()).collect();
            measure(&Folder::new(folder), runs.parse().expect("RUNS is a number"), &traffic::chosen(&only));
        }
        _ => panic!("FOLDER RUNS GROUPS, or work"),
    }
}

/// Measures all contenders `runs` times in turn and prints the report.
fn measure(folder: &Folder, runs: usize, operations: &[Operation]) {
    contenders::lay_bridge();
    traffic::serve();
    let control = TcpListener::bind((contenders::HOST, CONTROL)).expect("listen");
    control.set_nonblocking(true).expect("do not block");
    let mut rows = Rows::default();
    // The last round counts what is traced alone: tracing takes time.
    for round in 0..=runs {
        let traced = round == runs;
        for contender in Contender::all(folder) {
            if traced && contender == Contender::Runc {
                continue;
            }
            eprintln!("round {round}: {}", contender.name());
            let mut started = contender.start(folder);
            let line = accept(&control, &mut started.child);
            let mut orders = Orders { to: line.try_clone().expect("duplicate"), from: BufReader::new(line) };
            for operation in operations {
                let kinds = orders.run(operation, &started, traced);
                eprintln!("{}: {kinds:.1?}", operation.name);
                rows.add(operation.name, contender.name(), &kinds);
            }
            drop(orders);
            contender.end(started, folder);
        }
    }
    let rows = rows.0.into_iter().map(|(operation, of)| json!({"operation": operation, "contenders": of}));
    println!("{}", json!({"rows": rows.collect::<Vec<_>>()}));
}

/// Returns the connection of the work in `child`.
fn accept(control: &TcpListener, child: &mut Child) -> TcpStream {
    loop {
        match control.accept() {
            Ok((line, _)) => {
                line.set_nonblocking(false).expect("block");
                line.set_nodelay(true).expect("do not wait for more to send");
                return line;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let status = child.try_wait().expect("look at the contender");
                assert!(status.is_none(), "the contender ended: {status:?}");
                sleep(Duration::from_millis(20));
            }
            Err(error) => panic!("accept: {error}"),
        }
    }
}

/// The connection to the work.
struct Orders {
    to: TcpStream,
    from: BufReader<TcpStream>,
}

impl Orders {
    /// Has the work do an operation, and returns what it took, by kind, for one of its count.
    fn run(&mut self, operation: &Operation, started: &Started, traced: bool) -> Vec<(&'static str, f64)> {
        // Fills caches, and opens the congestion window of the host's routes.
        self.order(operation, operation.count / 8);
        sleep(SETTLED);
        let count = operation.count as f64;
        if traced {
            let trace = Trace::begin();
            self.order(operation, operation.count);
            return trace.end().map(|(kind, number)| (kind, number / count)).to_vec();
        }
        let (before, begun) = (Counters::read(started), Instant::now());
        let interrupts = self.order(operation, operation.count);
        let us = begun.elapsed().as_secs_f64() * 1e6;
        let mut kinds = vec![("us", us / count), ("interrupts", interrupts / count)];
        let counted = Counters::read(started).since(&before);
        kinds.extend(counted.map(|(kind, number)| (kind, number / count)));
        kinds
    }

    /// Returns the number of interrupts of the guest's devices meanwhile.
    fn order(&mut self, operation: &Operation, count: usize) -> f64 {
        writeln!(self.to, "{}\t{count}", operation.name).expect("send an order");
        let mut line = String::new();
        self.from.read_line(&mut line).expect("wait for the operation's end");
        line.trim_end().parse().unwrap_or_else(|_| panic!("{}: the work has gone", operation.name))
    }
}

impl Rows {
    fn add(&mut self, operation: &'static str, contender: &str, kinds: &[(&str, f64)]) {
        let at = self.0.iter().position(|(known, _)| *known == operation).unwrap_or_else(|| {
            self.0.push((operation, Map::new()));
            self.0.len() - 1
        });
        let of = self.0[at].1.entry(contender).or_insert_with(|| json!({}));
        for (kind, number) in kinds {
            let samples = &mut of[kind];
            if samples.is_null() {
                *samples = json!([]);
            }
            samples.as_array_mut().expect("an array").push(json!(number));
        }
    }
}

/// Does the operations that the host orders, until it closes the connection.
fn work() {
    let line = TcpStream::connect((contenders::HOST, CONTROL)).expect("connect to the host");
    line.set_nodelay(true).expect("do not wait for more to send");
    let mut to = line.try_clone().expect("duplicate");
    for line in BufReader::new(line).lines() {
        let line = line.expect("read an order");
        let (name, count) = line.split_once('\t').expect("an operation and a count");
        let before = interrupts();
        traffic::run(name, count.parse().expect("a count"));
        writeln!(to, "{}", interrupts() - before).expect("report the end");
    }
}

/// The number of interrupts of virtio devices since the boot.
fn interrupts() -> u64 {
    let text = std::fs::read_to_string("/proc/interrupts").unwrap_or_default();
    let lines = text.lines().filter(|line| line.contains("virtio"));
    let numbers = lines.flat_map(|line| line.split_whitespace().skip(1).map_while(|word| word.parse().ok()));
    numbers.collect::<Vec<u64>>().iter().sum()
}

/// Path of this program.
fn this_program() -> PathBuf {
    std::env::current_exe().expect("find this program")
}
