//! `cargo xtask test`: all tests.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::ensure;

use crate::checkout::target_dir;
use crate::engines::{self, Cases, engines};
use crate::executable::{static_program, test_program};
use crate::host::Host;
use crate::kvm_tests::KvmTests;
use crate::steps::{cargo, run, say};
use crate::{apt, bundle, check, dist, program, suites};

/// Timeout of the whole-VM tests in seconds: several times their duration, and well below CI's timeout.
const VM_TESTS_SECONDS: u64 = 2400;
/// Crates with unsafe code whose tests run as a program of this machine.
const UNSAFE_CRATES: [&str; 4] = ["agent", "devices", "host", "vmm"];
/// Tests that do not work with AddressSanitizer: threads with a seccomp filter, which its system calls violate, and a count
/// of resident memory, which includes its own.
const UNSANITIZED: [&str; 3] =
    ["confine::tests", "an_unprivileged_thread_is_only_itself", "ten_thousand_drivers_leave_nothing_behind"];
/// Timeout of the tests of the release files in seconds.
const DIST_TESTS_SECONDS: u64 = 600;

/// Selection of tests.
#[derive(clap::Args)]
pub struct Args {
    /// Only the unit tests
    #[arg(long)]
    unit: bool,
    /// Only the unit tests of the crates with unsafe code, with AddressSanitizer
    #[arg(long, conflicts_with = "unit")]
    sanitizer: bool,
    /// Only the whole-VM tests
    #[arg(long, conflicts_with_all = ["unit", "sanitizer"])]
    vm: bool,
    /// Only the tests of Docker, Podman and containerd: all cases, with runc and with vmm
    #[arg(long, conflicts_with_all = ["unit", "sanitizer", "vm"])]
    engines: bool,
    /// Only the tests of the release files: the Debian package with Docker, and the tarball
    #[arg(long, conflicts_with_all = ["unit", "sanitizer", "vm", "engines"])]
    dist: bool,
    /// Write the results to tests/engines/RESULTS.md
    #[arg(long, requires = "engines")]
    record: bool,
    /// Only the public OCI test suite in this checkout, with runc and with vmm; may be repeated
    #[arg(long, value_name = "DIR", conflicts_with_all = ["unit", "sanitizer", "vm", "engines", "dist"])]
    oci: Vec<PathBuf>,
    /// Only the CRI suite in this checkout of cri-tools, with containerd and runc, and with vmm
    #[arg(long, value_name = "DIR", conflicts_with_all = ["unit", "sanitizer", "vm", "engines", "dist", "oci"])]
    cri: Option<PathBuf>,
    /// Run no tests; write the table again from the last results
    #[arg(long, requires = "oci")]
    table: bool,
    /// Only tests whose names contain this text; with --engines and --vm several texts
    filter: Vec<String>,
}

/// Runs the selected tests: by default checks, unit tests, whole-VM tests, core cases of the engines, and tests of the
/// release files. The test runners print their own summaries.
pub fn test(args: &Args) -> anyhow::Result<()> {
    if args.engines {
        return engines(&Cases { core: false, filters: &args.filter, record: args.record });
    }
    ensure!(args.vm || args.filter.len() < 2, "several filters are accepted only with --engines and --vm");
    if !args.oci.is_empty() {
        return suites::run_suites(&args.oci, args.filter.first().map(String::as_str), args.table);
    }
    if let Some(checkout) = &args.cri {
        return suites::cri::run_cri(checkout, args.filter.first().map(String::as_str));
    }
    if args.dist {
        return dist_tests(args);
    }
    if args.sanitizer {
        return sanitizer_tests(args);
    }
    if !args.vm {
        if args.filter.is_empty() {
            check::check()?;
        }
        unit_tests(args)?;
    }
    if !args.unit {
        vm_tests(args)?;
    }
    if !args.unit && !args.vm && args.filter.is_empty() {
        engines(&Cases { core: true, filters: &[], record: false })?;
        dist_tests(args)?;
    }
    Ok(())
}

fn unit_tests(args: &Args) -> anyhow::Result<()> {
    say("unit tests");
    let mut words = vec!["test", "--workspace", "--exclude", "tests"];
    words.extend(args.filter.iter().map(String::as_str));
    run(cargo().args(words))
}

/// Runs the unit tests of the crates with unsafe code, instrumented by AddressSanitizer: a use of freed memory, an access
/// outside an object or a leak fails them.
fn sanitizer_tests(args: &Args) -> anyhow::Result<()> {
    say("unit tests with AddressSanitizer");
    // The architecture's own target: with it, cargo does not instrument build scripts and macros.
    let mut words = vec!["test", "--target", "x86_64-unknown-linux-gnu", "--lib", "--test", "*"];
    words.extend(UNSAFE_CRATES.iter().flat_map(|name| ["-p", name]));
    words.extend(args.filter.iter().map(String::as_str));
    words.push("--");
    words.extend(UNSANITIZED.iter().flat_map(|name| ["--skip", name]));
    run(cargo()
        .args(words)
        .env("CARGO_TARGET_DIR", target_dir().join("sanitizer"))
        .env("RUSTFLAGS", "-Zsanitizer=address")
        // The flag is unstable. This variable permits it with the project's stable compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        // By default 256 MiB of freed memory are kept, which tests that measure this process's memory would see.
        .env("ASAN_OPTIONS", "quarantine_size_mb=1:thread_local_quarantine_size_kb=64"))
}

/// Builds the whole-VM tests and runs them with a usable KVM: natively, or in the emulated KVM host.
fn vm_tests(args: &Args) -> anyhow::Result<()> {
    apt::install(&["busybox-static", "e2fsprogs", "iproute2", "sqlite3", "strace", "uidmap"])?;
    let program = program::program()?;
    let debian = rootfs_archive(&bundle::debian(&program)?)?;
    say("building the whole-VM tests");
    let tests = test_program("vm")?;
    let mut words = vec![tests.into()];
    words.extend(args.filter.iter().map(OsString::from));
    let guest = static_program("tests", "guest")?;
    // Templates are made in the tests of that alone: others mean machines that boot, and count processes.
    let environment = vec![
        ("VMM_TEST_GUEST", guest.into()),
        ("VMM_TEST_DEBIAN", debian.into()),
        ("VMM_TEMPLATE_MAKE", "never".into()),
    ];
    let tests = KvmTests { name: "whole-VM tests", program: &program, words, environment };
    tests.run(Host::new().memory(6144).deadline(VM_TESTS_SECONDS))
}

/// Builds the release files and tests them in the emulated KVM host, so that they are not installed on this machine.
fn dist_tests(args: &Args) -> anyhow::Result<()> {
    apt::install(&engines::PACKAGES)?;
    let dir = dist::dist(dist::TEST_MAINTAINER)?.dir;
    say("building the tests of the release files");
    let tests = test_program("dist")?;
    let mut words = vec![tests.into()];
    words.extend(args.filter.iter().map(OsString::from));
    let (program, environment) = (program::program()?, vec![("VMM_TEST_DIST", dir.into())]);
    let tests = KvmTests { name: "tests of the release files", program: &program, words, environment };
    tests.check(tests.run_emulated(Host::new().memory(6144).deadline(DIST_TESTS_SECONDS), &[])?)
}

/// Returns the path of an archive of the bundle's root file system. Creates the archive once.
fn rootfs_archive(dir: &Path) -> anyhow::Result<PathBuf> {
    let archive = dir.join("rootfs.tar");
    if !archive.exists() {
        bundle::pack(&dir.join("rootfs"), &archive)?;
    }
    Ok(archive)
}
