//! `cargo xtask bench network`: traffic between containers and the host, compared with runc, and with QEMU and vhost-net.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{ClockArg, operations, report_in, write_file, write_report};
use crate::checkout::top;
use crate::executable::static_program;
use crate::host::{self, Clock, Host};
use crate::steps::{output, say};
use crate::{apt, bundle, kernel, newc, program};

/// Timeout of the bench in seconds.
const DEADLINE_SECONDS: u64 = 3600;
/// What is counted for each operation: exits of the machine, and of these notifications to its devices; halts; interrupts of
/// its devices; switches of its threads, and packets at the bridge.
const COUNTS: [&str; 6] = ["exits", "kicks", "halts", "interrupts", "switches", "packets"];
/// The init of QEMU's guest.
const INIT: &str = "#!/busybox sh
exec < /dev/null > /dev/null 2>&1
/busybox mount -t proc proc /proc
/busybox ip address add 10.77.0.2/24 dev eth0
/busybox ip link set eth0 up
/network-bench work
/busybox reboot -f
";

/// Options for measuring the network.
#[derive(clap::Args)]
pub struct NetworkArgs {
    /// Clock: seconds, or instructions (in the emulated KVM host)
    #[arg(long, value_enum, default_value = "instructions")]
    clock: ClockArg,
    /// Containers of each runtime
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Only these kinds of traffic: streams, requests, connections, packets
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    only: Vec<String>,
    /// Another `vmm` program to measure in the same run, such as that of an earlier commit
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
}

/// Runs the bench, prints its table and writes the samples.
pub fn network(args: &NetworkArgs) -> anyhow::Result<()> {
    ensure!(args.runs > 0, "--runs is 0");
    apt::install(&["runc", "busybox-static", "iproute2"])?;
    let program = program::program()?;
    let bench = static_program("tests", "network-bench")?;
    let mut words = vec![
        "bash".to_owned(),
        top().join("tests/bench/network.sh").display().to_string(),
        bench.display().to_string(),
        bundle::busybox(&program, &["true"])?.display().to_string(),
        kernel::kernel(kernel::Variant::Base)?.vmlinux.display().to_string(),
        initramfs(&bench)?.display().to_string(),
        args.runs.to_string(),
        args.only.join(","),
        program.display().to_string(),
    ];
    if let Some(other) = &args.against {
        let other = other.canonicalize().with_context(|| format!("resolve {}", other.display()))?;
        words.push(other.display().to_string());
    }
    say(&format!("running containers with each runtime {} times in turn", args.runs));
    let text = match args.clock {
        ClockArg::Wall if host::kvm_usable() => output(Command::new(&words[0]).args(&words[1..]))?,
        clock => {
            let counted = clock == ClockArg::Instructions;
            let host = Host::new().clock(if counted { Clock::Instructions } else { Clock::Wall });
            // The contenders read files through 9p; staged files do not add its latency to the result.
            report_in(&host.memory(4096).deadline(DEADLINE_SECONDS).stage_opened(counted), &words)?
        }
    };
    let report: Value = serde_json::from_str(&text).context("parse the bench's report")?;
    print!("{}", operations::tables(&report, &COUNTS)?);
    write_report(&format!("network-{:?}.json", args.clock).to_lowercase(), &report.to_string())
}

/// Returns the path of an initramfs that gives the guest its address and runs the bench's work.
fn initramfs(bench: &std::path::Path) -> anyhow::Result<PathBuf> {
    let mut archive = Vec::new();
    for dir in ["dev", "proc"] {
        newc::append(&mut archive, dir, 0o040_755, &[]);
    }
    // The guest has no console.
    newc::append_node(&mut archive, "dev/null", 0o020_666, (1, 3));
    newc::append(&mut archive, "init", 0o100_755, INIT.as_bytes());
    for (name, file) in [("busybox", "/bin/busybox".as_ref()), ("network-bench", bench)] {
        let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
        newc::append(&mut archive, name, 0o100_755, &bytes);
    }
    newc::finish(&mut archive);
    write_file("network.cpio", &archive)
}
