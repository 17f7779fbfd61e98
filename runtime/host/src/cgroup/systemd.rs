//! systemd scopes (org.freedesktop.systemd1(5), systemd.scope(5)): systemd manages the cgroup on requests over D-Bus.
//!
//! Uses the private socket of the manager, which needs no bus daemon: the system manager's for root, otherwise the
//! user's.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oci::cgroups_path::Scope;
use rustbus::message_builder::MessageType;
use rustbus::message_builder::{MarshalledMessage, MarshalledMessageBody, MessageBuilder};
use rustbus::wire::ObjectPath;
use rustbus::wire::errors::MarshalError;
use rustbus::{Marshal, Signature};

use self::dbus::{Connection, DbusError};
use super::{Setting, Version};
use crate::user::User;

mod dbus;

/// Directory that exists if systemd is running (sd_booted(3)).
const RUNS: &str = "/run/systemd/system";
/// Path of the manager's socket below the system's or user's runtime directory.
const SOCKET: &str = "systemd/private";
/// Timeout of all calls together.
const DEADLINE: Duration = Duration::from_secs(30);
/// Default period of a CPU quota in microseconds.
const PERIOD: &str = "100000";
/// Limit of CPU and node numbers in a set, exclusive (Linux, CONFIG_NR_CPUS).
const SET_MAX: usize = 8192;

const SERVICE: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    #[error("--systemd-cgroup: systemd does not run on this host")]
    Missing,
    #[error("call systemd at {}", path.display())]
    Connection {
        path: PathBuf,
        #[source]
        source: DbusError,
    },
    #[error("systemd: {call} {unit}: {message}")]
    Refused {
        call: &'static str,
        unit: String,
        /// D-Bus name of the error.
        name: String,
        message: String,
    },
}

type Result<T, E = SystemdError> = std::result::Result<T, E>;

/// Value of a property; a D-Bus variant.
#[derive(Clone, Debug, PartialEq, Eq, Marshal, Signature)]
pub enum Value {
    /// Type `b`.
    Bool(bool),
    /// Type `t`.
    Number(u64),
    /// Type `s`.
    Text(String),
    /// Type `au`: process ids.
    Processes(Vec<u32>),
    /// Type `ay`: one bit per CPU or node.
    Set(Vec<u8>),
}

/// Whether the user's systemd manages this process's cgroups, not the system's.
fn is_rootless() -> bool {
    User::of_process().is_rootless(std::env::var_os("USER").as_deref())
}

/// Name and value of a unit's property.
pub type Property = (String, Value);

/// A connection to systemd's manager.
pub struct Manager {
    connection: Connection,
    path: PathBuf,
}

impl Manager {
    /// Connects to the manager of the system for root, otherwise of the user.
    pub fn connect() -> Result<Manager> {
        if !Path::new(RUNS).is_dir() {
            return Err(SystemdError::Missing);
        }
        let user = || std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let runtime = if is_rootless() { user() } else { Some(PathBuf::from("/run")) };
        let path = runtime.ok_or(SystemdError::Missing)?.join(SOCKET);
        match Connection::connect(&path, Instant::now() + DEADLINE) {
            Ok(connection) => Ok(Manager { connection, path }),
            Err(source) => Err(SystemdError::Connection { path, source }),
        }
    }

    /// Creates a scope with `processes` in it, and waits for the job.
    pub fn start(&mut self, scope: &Scope, processes: Vec<u32>, mut properties: Vec<Property>) -> Result<()> {
        let default = if is_rootless() { "user.slice" } else { "system.slice" };
        let slice = if scope.slice.is_empty() { default } else { &scope.slice };
        let text = |name: &str, value: &str| (name.to_owned(), Value::Text(value.to_owned()));
        properties.extend([text("Description", "vmm container"), text("Slice", slice)]);
        properties.push(("PIDs".to_owned(), Value::Processes(processes)));
        properties.push(("DefaultDependencies".to_owned(), Value::Bool(false)));
        for name in ["Delegate", "MemoryAccounting", "CPUAccounting", "TasksAccounting"] {
            properties.push((name.to_owned(), Value::Bool(true)));
        }
        self.call("Subscribe", "", |_| Ok(()))?;
        let job = match self.start_unit(&scope.unit, &properties) {
            // systemd keeps a failed unit until it is reset.
            Err(SystemdError::Refused { name, .. }) if name == UNIT_EXISTS => {
                self.call("ResetFailedUnit", &scope.unit, |body| body.push_param(&scope.unit))?;
                self.start_unit(&scope.unit, &properties)?
            }
            other => other?,
        };
        let result = self.wait_for(&job)?;
        if result == "done" {
            return Ok(());
        }
        let (call, unit, message) =
            ("StartTransientUnit", scope.unit.clone(), format!("the job's result is {result}"));
        Err(SystemdError::Refused { call, unit, name: String::new(), message })
    }

    fn start_unit(&mut self, unit: &str, properties: &[Property]) -> Result<String> {
        let none: &[(String, Vec<Property>)] = &[];
        let reply = self
            .call("StartTransientUnit", unit, |body| body.push_param4(unit, "replace", properties, none))?;
        let job = reply.body.parser().get::<ObjectPath<String>>();
        job.map(|job| job.as_ref().to_owned()).map_err(|error| self.broken(error.into()))
    }

    /// Waits for the end of a job and returns its result.
    fn wait_for(&mut self, job: &str) -> Result<String> {
        loop {
            let signal = self.connection.signal().map_err(|source| self.broken(source))?;
            if signal.dynheader.member.as_deref() != Some("JobRemoved") {
                continue;
            }
            let parsed = signal.body.parser().get4::<u32, ObjectPath<String>, String, String>();
            let (_, ended, _, result) = parsed.map_err(|error| self.broken(error.into()))?;
            if ended.as_ref() == job {
                return Ok(result);
            }
        }
    }

    /// Changes properties of a unit until the host's next boot.
    pub fn set(&mut self, unit: &str, properties: &[Property]) -> Result<()> {
        self.call("SetUnitProperties", unit, |body| body.push_param3(unit, true, properties)).map(drop)
    }

    /// Stops a unit. A unit that does not exist is no error.
    pub fn stop(&mut self, unit: &str) -> Result<()> {
        match self.call("StopUnit", unit, |body| body.push_param2(unit, "replace")) {
            Err(SystemdError::Refused { name, .. }) if name == NO_SUCH_UNIT => Ok(()),
            other => other.map(drop),
        }
    }

    fn call(
        &mut self,
        call: &'static str,
        unit: &str,
        fill: impl FnOnce(&mut MarshalledMessageBody) -> Result<(), MarshalError>,
    ) -> Result<MarshalledMessage> {
        let mut message =
            MessageBuilder::new().call(call).with_interface(MANAGER).on(OBJECT).at(SERVICE).build();
        let filled = fill(&mut message.body).map_err(DbusError::from);
        let reply =
            filled.and_then(|()| self.connection.call(&message)).map_err(|source| self.broken(source))?;
        if reply.typ == MessageType::Error {
            let name = reply.dynheader.error_name.clone().unwrap_or_default();
            let message = reply.body.parser().get::<String>().unwrap_or_else(|_| name.clone());
            return Err(SystemdError::Refused { call, unit: unit.to_owned(), name, message });
        }
        Ok(reply)
    }

    fn broken(&self, source: DbusError) -> SystemdError {
        SystemdError::Connection { path: self.path.clone(), source }
    }
}

/// Returns limits as properties of a unit, as far as systemd supports them. Otherwise systemd would reset the limits
/// whenever it rewrites the unit's files.
pub fn properties(settings: &[Setting], version: Version) -> Vec<Property> {
    let files = || settings.iter().flat_map(|setting| &setting.files);
    let value = |wanted: &str| files().find(|(file, _)| file == wanted).map(|(_, value)| value.as_str());
    let mut properties = Vec::new();
    let mut add = |name: &str, value: Value| properties.push((name.to_owned(), value));
    for (file, name) in [
        ("memory.max", "MemoryMax"),
        ("memory.low", "MemoryLow"),
        ("memory.swap.max", "MemorySwapMax"),
        ("cpu.weight", "CPUWeight"),
        ("io.weight", "IOWeight"),
        ("pids.max", "TasksMax"),
        ("memory.limit_in_bytes", "MemoryLimit"),
        ("cpu.shares", "CPUShares"),
        ("blkio.weight", "BlockIOWeight"),
    ] {
        if let Some(number) = value(file).and_then(|text| number(text.trim_start_matches("default "))) {
            add(name, Value::Number(number));
        }
    }
    let (quota, period) = match version {
        Version::One => (value("cpu.cfs_quota_us"), value("cpu.cfs_period_us").unwrap_or(PERIOD)),
        Version::Two => value("cpu.max")
            .and_then(|text| text.split_once(' '))
            .map_or((None, PERIOD), |both| (Some(both.0), both.1)),
    };
    if let (Some(quota), Some(period)) =
        (quota.and_then(number), number(period).filter(|period| *period != 0))
    {
        add("CPUQuotaPerSecUSec", Value::Number(per_second(quota, period)));
        if version == Version::Two {
            add("CPUQuotaPeriodUSec", Value::Number(period));
        }
    }
    // systemd does not support CPU sets of version 1 and does not change them.
    for (file, name) in [("cpuset.cpus", "AllowedCPUs"), ("cpuset.mems", "AllowedMemoryNodes")] {
        if let Some(set) = value(file).filter(|_| version == Version::Two).and_then(bits) {
            add(name, Value::Set(set));
        }
    }
    properties
}

/// Parses a limit. No limit is systemd's maximum number.
fn number(text: &str) -> Option<u64> {
    if matches!(text, "max" | "-1") { Some(u64::MAX) } else { text.parse().ok() }
}

/// Returns CPU time per second in microseconds, rounded up to the 10 ms that systemd uses.
fn per_second(quota: u64, period: u64) -> u64 {
    if quota == u64::MAX {
        quota
    } else {
        quota.saturating_mul(1_000_000).div_ceil(period).next_multiple_of(10_000)
    }
}

/// Parses a list of numbers and ranges to a bit mask, in which the lowest bit of the first byte is number 0.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last >= SET_MAX {
            return None;
        }
        bits.resize(bits.len().max(last / 8 + 1), 0);
        (first..=last).for_each(|bit| bits[bit / 8] |= 1 << (bit % 8));
    }
    Some(bits)
}

#[cfg(test)]
mod tests;
