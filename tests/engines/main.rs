//! Tests of container engines: each case uses an engine's command line, once with `runc` and once with `vmm`, and must
//! pass with both. The engines are Debian's, unmodified, and started by this program. On a host with cgroup v1, only the cases
//! for such a host run.
//!
//! `engines [--core] [--runtime NAME] [FILTER...]` runs cases, for `cargo xtask test --engines`. It writes the table of
//! results to `$VMM_ENGINES_TABLE`, if that is set, after each case. For `cargo xtask bench docker`, `engines --bench RUNS [--all]`
//! measures.

mod bench;
mod build;
mod bundles;
mod case;
mod cgroup1;
mod containerd;
mod engine;
mod everyday;
mod exec;
mod faults;
mod images;
mod languages;
mod leftovers;
mod life;
mod limits;
mod nested;
mod network;
mod parameter;
mod podman;
mod pods;
mod programs;
mod rootless;
mod security;
mod settings;
mod shared;
mod streams;
mod systemd;
mod table;
mod volumes;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use case::{Case, Group};
use engine::{Engine, Kind};
use table::{Outcome, Table};

/// The runtimes that are compared.
const RUNTIMES: [&str; 2] = ["runc", "vmm"];

/// All cases, in the order in which they run and are listed in the table.
const GROUPS: &[Group] = &[
    Group { name: "streams", engine: Kind::Docker, cases: streams::CASES },
    Group { name: "life", engine: Kind::Docker, cases: life::CASES },
    Group { name: "exec", engine: Kind::Docker, cases: exec::CASES },
    Group { name: "everyday", engine: Kind::Docker, cases: everyday::CASES },
    Group { name: "settings", engine: Kind::Docker, cases: settings::CASES },
    Group { name: "limits", engine: Kind::Docker, cases: limits::CASES },
    Group { name: "security", engine: Kind::Docker, cases: security::CASES },
    Group { name: "volumes", engine: Kind::Docker, cases: volumes::CASES },
    Group { name: "network", engine: Kind::Docker, cases: network::CASES },
    Group { name: "shared", engine: Kind::Docker, cases: shared::CASES },
    Group { name: "build", engine: Kind::Docker, cases: build::CASES },
    Group { name: "faults", engine: Kind::Docker, cases: faults::CASES },
    Group { name: "programs", engine: Kind::Docker, cases: programs::CASES },
    Group { name: "languages", engine: Kind::Docker, cases: languages::CASES },
    Group { name: "nested", engine: Kind::Docker, cases: nested::CASES },
    Group { name: "systemd", engine: Kind::DockerOfSystemd, cases: systemd::CASES },
    Group { name: "cgroup1", engine: Kind::DockerOfCgroup1, cases: cgroup1::CASES },
    Group { name: "podman", engine: Kind::Podman, cases: podman::CASES },
    Group { name: "pods", engine: Kind::Podman, cases: pods::CASES },
    Group { name: "rootless", engine: Kind::RootlessPodman, cases: rootless::CASES },
    Group { name: "rootless", engine: Kind::RootlessDocker, cases: rootless::DOCKER_CASES },
    Group { name: "containerd", engine: Kind::Containerd, cases: containerd::CASES },
    Group { name: "bundles", engine: Kind::None, cases: bundles::CASES },
];

/// The command line.
#[derive(Default)]
struct Options {
    core: bool,
    runtime: Option<String>,
    bench: Option<usize>,
    all: bool,
    filters: Vec<String>,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--core" => options.core = true,
                "--runtime" => options.runtime = Some(words.next().ok_or("--runtime needs a name")?),
                "--bench" => {
                    let runs = words.next().and_then(|word| word.parse().ok());
                    options.bench = Some(runs.ok_or("--bench needs a number of runs")?);
                }
                "--all" => options.all = true,
                flag if flag.starts_with("--") => return Err(format!("{flag}: unknown flag")),
                _ => options.filters.push(word),
            }
        }
        Ok(options)
    }

    /// Whether the case is to run.
    fn wants(&self, group: &Group, case: &Case) -> bool {
        let name = case.full_name(group);
        let named = self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter));
        named && (case.core || !self.core)
    }
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("engines: {error}");
            return ExitCode::from(2);
        }
    };
    if let Some(runs) = options.bench {
        bench::bench(runs, options.all);
        return ExitCode::SUCCESS;
    }
    let mut table = Table::new(GROUPS);
    let kinds: &[Kind] = match cgroup1::is_host() {
        true => &[Kind::DockerOfCgroup1],
        false => &[
            Kind::Docker,
            Kind::DockerOfSystemd,
            Kind::Podman,
            Kind::RootlessPodman,
            Kind::RootlessDocker,
            Kind::Containerd,
            Kind::None,
        ],
    };
    for &kind in kinds {
        for runtime in RUNTIMES {
            if options.runtime.as_deref().is_none_or(|only| only == runtime) {
                run_engine(kind, runtime, &options, &mut table);
            }
        }
    }
    println!("{}", table.summary());
    if table.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Runs the selected cases of an engine with one runtime.
fn run_engine(kind: Kind, runtime: &'static str, options: &Options, table: &mut Table) {
    let wanted: Vec<(&Group, &Case)> = GROUPS
        .iter()
        .filter(|group| group.engine == kind)
        .flat_map(|group| group.cases.iter().map(move |case| (group, case)))
        .filter(|(group, case)| options.wants(group, case))
        .collect();
    if wanted.is_empty() {
        return;
    }
    let engine = Engine::start(kind, runtime);
    for (group, case) in wanted {
        let begun = Instant::now();
        let outcome = run_case(&engine, case);
        let name = case.full_name(group);
        println!("{} {runtime} {name} ... {outcome} ({:.1} s)", kind.name(), begun.elapsed().as_secs_f32());
        table.add(kind, &name, runtime, outcome);
        // A run that its deadline ends has a table of what it ran.
        if let Some(path) = std::env::var_os("VMM_ENGINES_TABLE") {
            std::fs::write(&path, table.markdown()).expect("write the table");
        }
    }
}

/// Runs a case. It fails if it leaves something on the host.
fn run_case(engine: &Engine, case: &Case) -> Outcome {
    let ran = catch_unwind(AssertUnwindSafe(|| (case.run)(engine)));
    let clean = catch_unwind(AssertUnwindSafe(|| engine.clean()));
    match (ran, clean) {
        (Err(_), _) => {
            engine.show_log();
            Outcome::Failed
        }
        (Ok(()), Err(_)) => Outcome::Failed,
        (Ok(()), Ok(())) if case.refused.is_some() && engine.is_vm() => Outcome::Refused,
        (Ok(()), Ok(())) => Outcome::Passed,
    }
}
