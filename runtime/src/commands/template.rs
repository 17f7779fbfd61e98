//! `vmm template`: makes, lists and removes templates.

use anyhow::{Context, Result, bail};
use host::confine;
use oci::Bundle;
use plan::VmPlan;
use serde::Serialize;

use super::{columns, inherited, print};
use crate::cli::RunArgs;
use crate::cli::template::{TemplateCommand, TemplateCreateArgs};
use crate::config::RunConfig;
use crate::template::{Found, Key, Store, make, maker};
use crate::{assembly, logging};

/// What is known of a template.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// `ok`, or why no machine continues from it.
    state: String,
    memory: String,
    vcpus: String,
    kernel: String,
    /// Bytes on the disk.
    size: u64,
    created: String,
}

/// Executes a `vmm template` command. Returns the exit code.
pub fn template(command: TemplateCommand) -> Result<u8> {
    match command {
        TemplateCommand::Create(args) => create(*args)?,
        TemplateCommand::List { json, verify } => list(&store()?, json, verify)?,
        TemplateCommand::Rm { templates, all } => remove(&store()?, templates, all)?,
        TemplateCommand::Gc => collect(&store()?)?,
        TemplateCommand::Make => maker::fulfil()?,
    }
    Ok(0)
}

fn resolve(args: RunArgs) -> Result<RunConfig> {
    Ok(RunConfig::resolve(args, |name| std::env::var_os(name))?)
}

fn store() -> Result<Store> {
    Ok(resolve(RunArgs::default())?.templates)
}

fn create(args: TemplateCreateArgs) -> Result<()> {
    let TemplateCreateArgs { bundle, force, settings } = args;
    let mut config = resolve(RunArgs { bundle: bundle.clone(), settings, ..RunArgs::default() })?;
    config.vm.inherited = inherited()?;
    let mut plan = match bundle {
        Some(_) => VmPlan::for_bundle(&Bundle::load(&config.bundle)?, &config.id, &config.vm)?,
        None => VmPlan::new(&config.vm, ""),
    };
    plan.fill(assembly::host());
    confine::prepare(logging::forbidden).context("prepare the confinement")?;
    let (path, made) = make::make(&config, &plan, force)?;
    let what = if made { "made" } else { "is there already" };
    print(&format!("{} {what}: {} MiB, {} vCPUs\n", path.display(), plan.memory_mib, plan.vcpus))
}

fn list(store: &Store, json: bool, verify: bool) -> Result<()> {
    let rows: Vec<Row> = store.names()?.into_iter().filter_map(|name| row(store, name, verify)).collect();
    if json {
        return print(&format!("{}\n", serde_json::to_string_pretty(&rows)?));
    }
    let cells = rows.into_iter().map(|row| {
        let size = format!("{:.1} MiB", row.size as f64 / f64::from(1 << 20));
        [row.name, row.memory, row.vcpus, row.kernel, size, row.created, row.state]
    });
    print(&columns(["NAME", "MEMORY", "VCPUS", "KERNEL", "SIZE", "CREATED", "STATE"], cells, (0, 2)))
}

/// Returns what is known of a template, unless it has just been removed.
fn row(store: &Store, name: String, verify: bool) -> Option<Row> {
    let (size, made) = store.measure(&name)?;
    let opened = store.open(&name);
    let label = match &opened {
        Ok(Some(found)) => String::from_utf8_lossy(&found.snapshot.label).into_owned(),
        _ => String::new(),
    };
    let state = match opened {
        Ok(None) => return None,
        Ok(Some(found)) => state(&found, verify),
        Err(error) => format!("{:#}", anyhow::Error::from(error)),
    };
    let value = |line| Key::value(&label, line).to_owned();
    Some(Row {
        state,
        memory: value("memory"),
        vcpus: value("vcpus"),
        kernel: value("kernel"),
        size,
        created: logging::timestamp(made),
        name,
    })
}

fn state(found: &Found, verify: bool) -> String {
    if !Key::is_current(&found.snapshot.label) {
        return "of another program, host kernel or microcode".to_owned();
    }
    match verify.then(|| found.snapshot.verify(&found.memory)) {
        Some(Err(error)) => error.to_string(),
        _ => "ok".to_owned(),
    }
}

fn remove(store: &Store, names: Vec<String>, all: bool) -> Result<()> {
    let locked = store.lock()?;
    let names = if all { store.names()? } else { names };
    for name in names {
        if !locked.remove(&name)? && !all {
            bail!("there is no template {name:?}");
        }
    }
    Ok(())
}

fn collect(store: &Store) -> Result<()> {
    if !store.exists() {
        return Ok(());
    }
    let locked = store.lock()?;
    store.forget_attempts(None);
    for name in store.names()? {
        let usable = matches!(store.open(&name), Ok(Some(found)) if state(&found, false) == "ok");
        if !usable && locked.remove(&name)? {
            print(&format!("{name} removed\n"))?;
        }
    }
    Ok(())
}
