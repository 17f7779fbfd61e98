//! Makes templates without being asked: a machine that boots because there is no template for it is [`Wanted`] again, and a
//! process of its own makes the template.
//!
//! The machine's process cannot do it: it gives up its rights before the guest runs, it ends with the container, and the
//! container's cgroup counts what it uses. So a process that has nothing of the container starts `vmm template make`: for an engine's
//! container the one of `vmm create`, once the container is created; in the foreground this one, before it gives up its
//! rights. Nothing waits for that process: it has no descriptors of its caller, a session of its own and low priority.
//!
//! A claim in the store ([`Store::claim`]) excludes a second attempt for the same key, also after a failure.

use std::fs;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use host::confine::cores::Cookie;
use host::{confine, sys};
use plan::{VmPlan, VmSettings};
use serde::{Deserialize, Serialize};

use super::{Making, Store, Wanted, make, store};
use crate::commands::inherited;
use crate::config::RunConfig;
use crate::logging;

/// Time in which a container that was just created gets started, and does the most of its own start.
const DELAY: Duration = Duration::from_secs(2);
/// How long to wait for a host that has time and memory, and how often to look.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_secs(1);
/// When an attempt may be repeated for which the host had no time.
const BUSY_RETRY: Duration = Duration::from_secs(60);
/// Percentages of the last ten seconds in which a task waited for a CPU, and for memory, up to which the host is idle.
const CPU_PRESSURE: f64 = 25.0;
const MEMORY_PRESSURE: f64 = 1.0;
/// Memory in KiB that must be available. Two machines, one after the other, and the file use some 60 MiB.
const AVAILABLE: u64 = 256 << 10;
/// Limit of an order's length in bytes. It fits into a pipe.
const ORDER_MAX: u64 = 16 << 10;

/// The words with which such a process is started, after the program's name.
pub const WORDS: [&str; 2] = ["template", "make"];

/// What a process that makes a template is told.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Order {
    directory: PathBuf,
    limit: u64,
    patience: Duration,
    /// Whether to wait for an idle host.
    waits: bool,
    wanted: Wanted,
}

impl Order {
    fn of(config: &RunConfig, wanted: Wanted) -> Order {
        Order {
            directory: config.templates.path().to_owned(),
            limit: config.templates.limit(),
            patience: config.agent_timeout,
            waits: config.making == Making::Idle,
            wanted,
        }
    }

    /// Returns the settings and the plan of the ordered machine, which has no pod.
    fn resolve(self) -> (RunConfig, VmPlan) {
        let Order { directory, limit, patience, wanted, .. } = self;
        let Wanted { memory_mib, vcpus, kernel, share, cmdline, .. } = wanted;
        let settings =
            VmSettings { memory_mib: Some(memory_mib), vcpus: Some(vcpus), share, ..VmSettings::default() };
        let plan = VmPlan { memory_mib, vcpus, kernel, share, cmdline, ..VmPlan::new(&settings, "") };
        let config = RunConfig::blank(settings, Store::new(Some(directory), limit, |_| None), patience);
        (config, plan)
    }
}

/// Starts a process that makes the template of this machine. Returns once it runs, and does not wait for its end. Whatever fails,
/// machines boot as before.
pub fn launch(config: &RunConfig, wanted: Wanted) {
    if let Err(error) = start(&Order::of(config, wanted)) {
        log::debug!("start to make a template: {error}");
    }
}

/// The caller ends before it, or ignores the ends of its children. It is a new program and no fork: this process has threads, and memory that a fork would copy.
fn start(order: &Order) -> io::Result<()> {
    let text = serde_json::to_vec(order)?;
    let mut maker = Command::new("/proc/self/exe")
        .args(WORDS)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // It fits into the pipe, so this does not wait.
    maker.stdin.take().map_or(Ok(()), |mut input| input.write_all(&text))
}

/// `vmm template make`: makes the template that the order on standard input describes.
pub fn fulfil() -> Result<()> {
    sys::leave_session().context("begin a session")?;
    std::env::set_current_dir("/").context("leave the directory")?;
    let mut text = String::new();
    io::stdin().take(ORDER_MAX).read_to_string(&mut text).context("read the order")?;
    let order: Order = serde_json::from_str(&text).context("parse the order")?;
    yield_to_others();
    let (waits, anew) = (order.waits, order.wanted.anew);
    if waits {
        // Before all else: the machine that boots at the moment needs the CPU.
        std::thread::sleep(DELAY);
    }
    confine::prepare(logging::forbidden).context("prepare the confinement")?;
    // The machine that booted has given this process its cookie.
    Cookie::begin().and_then(Cookie::wait).context("leave the machine's cores")?;
    let (config, mut plan) = order.resolve();
    // As containers have them. They are no part of the template.
    plan.pod.parameters = inherited()?.parameters;
    let key = config.template_key(&plan).map_err(anyhow::Error::msg)?;
    let store = &config.templates;
    if waits && !await_idle_host() {
        return Ok(store.fail(&key, "", BUSY_RETRY)?);
    }
    match make::make_if_free(&config, &plan, anew) {
        // Another one is being made, so this one is made after the next start.
        Ok(_) => store.forget(&key),
        Err(error) => {
            store.fail(&key, &format!("{error:#}"), store::RETRY)?;
            return Err(error);
        }
    }
    Ok(())
}

/// Makes this process the first that the host does without. It may hold locks of the host's kernel for which others wait, so its
/// priority is not the lowest.
fn yield_to_others() {
    const NICE: i32 = 10;
    let lowered = sys::lower_priority(NICE);
    let others = [("/proc/self/autogroup", "10"), ("/proc/self/oom_score_adj", "1000")];
    let written = others.map(|(path, value)| fs::write(path, value));
    log::debug!("lower the priority: {lowered:?}, {written:?}");
}

/// Waits until the host has time and memory to spare. Returns whether it has.
fn await_idle_host() -> bool {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if is_idle(|path| fs::read_to_string(path).ok()) {
            return true;
        }
        std::thread::sleep(LOOK);
    }
    false
}

/// Whether the host has time and memory to spare. What it does not tell counts as idle.
fn is_idle(read: impl Fn(&str) -> Option<String>) -> bool {
    let under = |resource: &str, limit| {
        let text = read(&format!("/proc/pressure/{resource}"));
        text.and_then(|text| pressure(&text)).is_none_or(|percent| percent <= limit)
    };
    let available = read("/proc/meminfo").and_then(|text| available(&text));
    under("cpu", CPU_PRESSURE)
        && under("memory", MEMORY_PRESSURE)
        && available.is_none_or(|kib| kib >= AVAILABLE)
}

/// Returns the percentage of the last ten seconds in which some task waited (Linux, Documentation/accounting/psi.rst).
fn pressure(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

/// Returns the available memory in KiB.
fn available(text: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use plan::vm::Kernel;

    use super::super::Use;
    use super::*;

    fn config(folder: &std::path::Path) -> RunConfig {
        let store = Store::new(Some(folder.join("templates")), 1 << 20, |_| None);
        RunConfig::blank(VmSettings::default(), store, Duration::from_secs(9))
    }

    fn plan(memory_mib: u32) -> VmPlan {
        VmPlan { memory_mib, vcpus: 3, kernel: Kernel::Full, ..VmPlan::new(&VmSettings::default(), "host") }
    }

    #[test]
    fn an_order_describes_the_machine_without_its_pod() {
        let folder = tempfile::tempdir().unwrap();
        let (config, plan) = (config(folder.path()), plan(300));
        let key = config.template_key(&plan).unwrap();
        let wanted = Wanted::claim(&config, &plan, &key, true);
        let text = Wanted::report(wanted.as_ref());
        assert_eq!(Wanted::reported(&text), wanted);
        assert_eq!((Wanted::report(None), Wanted::reported("")), (String::new(), None));
        assert_eq!(Wanted::reported(&text.replacen('{', r#"{"directory":"/etc","#, 1)), None);
        let order = Order::of(&config, wanted.unwrap());
        let text = serde_json::to_string(&order).unwrap();
        assert!(!text.contains("host\"") && text.len() < ORDER_MAX as usize, "{text}");
        let read: Order = serde_json::from_str(&text).unwrap();
        assert_eq!(read, order);
        assert!(read.waits && read.wanted.anew);
        let (again, blank) = read.resolve();
        assert_eq!(again.template_key(&blank).unwrap(), key);
        assert_eq!((again.templates, again.agent_timeout), (config.templates, config.agent_timeout));
        assert_eq!(blank.pod.hostname, "");
    }

    #[test]
    fn one_process_has_the_order_and_a_failure_is_not_repeated_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let (one, other) = (plan(300), plan(400));
        let place = |plan: &VmPlan| {
            let key = config.template_key(plan).unwrap();
            Wanted::claim(&config, plan, &key, false).is_some()
        };
        assert!(place(&one) && !place(&one) && place(&other));
        let key = config.template_key(&one).unwrap();
        config.templates.forget(&key);
        assert!(place(&one));
        config.templates.fail(&key, "no luck", store::RETRY).unwrap();
        assert!(!place(&one));
        assert_eq!(config.templates.failures(), ["no luck"]);
        config.templates.fail(&key, "", Duration::ZERO).unwrap();
        assert!(place(&one));
        assert!(config.templates.failures().is_empty());
        config.templates.forget_attempts(None);
        assert!(place(&one));
    }

    #[test]
    fn nothing_is_ordered_where_nothing_can_be_made() {
        let folder = tempfile::tempdir().unwrap();
        let ordered = |config: &RunConfig| {
            let key = config.template_key(&plan(300)).unwrap();
            Wanted::claim(config, &plan(300), &key, false).is_some()
        };
        for (template, making) in
            [(Use::Off, Making::Always), (Use::Require, Making::Always), (Use::Auto, Making::Never)]
        {
            let config = RunConfig { template, making, ..config(folder.path()) };
            assert!(!ordered(&config));
            assert!(!config.templates.exists());
        }
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(!ordered(&config(&folder.path().join("file"))));
    }

    #[test]
    fn a_host_under_pressure_is_not_idle() {
        let of = |cpu: &str, memory: &str, available: &str| {
            let (cpu, memory, available) = (cpu.to_owned(), memory.to_owned(), available.to_owned());
            is_idle(move |path| match path {
                "/proc/pressure/cpu" => Some(format!("some avg10={cpu} avg60=0.00 avg300=0.00 total=1\n")),
                "/proc/pressure/memory" => {
                    Some(format!("some avg10={memory} avg60=0.00 avg300=0.00 total=1\n"))
                }
                _ => Some(format!("MemTotal: 9 kB\nMemAvailable: {available} kB\n")),
            })
        };
        assert!(of("0.00", "0.00", "9999999") && of("25.00", "1.00", "262144"));
        assert!(!of("25.01", "0.00", "9999999"));
        assert!(!of("0.00", "1.50", "9999999"));
        assert!(!of("0.00", "0.00", "262143"));
        assert!(is_idle(|_| None));
    }
}
