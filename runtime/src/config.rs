//! Merges command line, environment and configuration file: `Settings` of each source become one `RunConfig`. Code
//! below this module reads no other source.
//!
//! A flag overrides the environment (`VMM_MEMORY`, …), which overrides the configuration file, which overrides the
//! default. The configuration file is the first of `$XDG_CONFIG_HOME/vmm/config.json`, `~/.config/vmm/config.json` and
//! `/etc/vmm/config.json`: a JSON object whose keys are the flags' names.

use host::HostError;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use agent_proto::command::Protocol;
use plan::{Console, ShareType, VhostNet, VmPlan, VmSettings};

use crate::cli::{RunArgs, Settings};
use crate::deadlines;
use crate::state::{StateRoot, is_id};
use crate::template::{Key, Making, Store, Use};

/// Size of all templates together, in MiB: some 25 of them.
const DEFAULT_LIMIT_MIB: u32 = 512;
/// The id if neither the command line nor the name of the bundle's directory gives one.
const DEFAULT_ID: &str = "container";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read or parsed.
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("{name} {value:?}: {why}")]
    Value { name: &'static str, value: String, why: &'static str },
}

pub type Result<T, E = ConfigError> = std::result::Result<T, E>;

impl Settings {
    fn from_env(lookup: impl Fn(&str) -> Option<OsString>) -> Settings {
        // A value that is not UTF-8 is refused later, by the check of the setting.
        let text = |name: &str| lookup(name).map(|value| value.to_string_lossy().into_owned());
        Settings {
            memory: text("VMM_MEMORY"),
            cpus: text("VMM_CPUS"),
            kernel: lookup("VMM_KERNEL").map(PathBuf::from),
            initrd: lookup("VMM_INITRD").map(PathBuf::from),
            agent: text("VMM_AGENT"),
            cmdline: text("VMM_CMDLINE"),
            console: text("VMM_CONSOLE"),
            share: text("VMM_SHARE"),
            vhost_net: text("VMM_VHOST_NET"),
            template: text("VMM_TEMPLATE"),
            template_dir: lookup("VMM_TEMPLATE_DIR").map(PathBuf::from),
            template_limit: text("VMM_TEMPLATE_LIMIT"),
            template_make: text("VMM_TEMPLATE_MAKE"),
            marks: lookup("VMM_MARKS").map(PathBuf::from),
            default_memory: text("VMM_DEFAULT_MEMORY"),
            max_memory: text("VMM_MAX_MEMORY"),
            max_cpus: text("VMM_MAX_CPUS"),
            agent_timeout: text("VMM_AGENT_TIMEOUT"),
        }
    }

    /// Reads the first configuration file that exists.
    fn from_file(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Settings> {
        let user = lookup("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| lookup("HOME").map(|home| Path::new(&home).join(".config")));
        for path in user.into_iter().chain([PathBuf::from("/etc")]).map(|dir| dir.join("vmm/config.json")) {
            match fs::read(&path) {
                Ok(text) => {
                    return Ok(
                        serde_json::from_slice(&text).map_err(HostError::at("parse configuration", &path))?
                    );
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                // HOME may be another user's, as under setpriv or sudo. If it is not accessible, it counts as empty.
                Err(error)
                    if error.kind() == io::ErrorKind::PermissionDenied && !path.starts_with("/etc") => {}
                Err(error) => return Err(HostError::at("read configuration", &path)(error).into()),
            }
        }
        Ok(Settings::default())
    }

    /// Takes from `other` the settings that are not set here.
    fn or(self, other: Settings) -> Settings {
        Settings {
            memory: self.memory.or(other.memory),
            cpus: self.cpus.or(other.cpus),
            kernel: self.kernel.or(other.kernel),
            initrd: self.initrd.or(other.initrd),
            agent: self.agent.or(other.agent),
            cmdline: self.cmdline.or(other.cmdline),
            console: self.console.or(other.console),
            share: self.share.or(other.share),
            vhost_net: self.vhost_net.or(other.vhost_net),
            template: self.template.or(other.template),
            template_dir: self.template_dir.or(other.template_dir),
            template_limit: self.template_limit.or(other.template_limit),
            template_make: self.template_make.or(other.template_make),
            marks: self.marks.or(other.marks),
            default_memory: self.default_memory.or(other.default_memory),
            max_memory: self.max_memory.or(other.max_memory),
            max_cpus: self.max_cpus.or(other.max_cpus),
            agent_timeout: self.agent_timeout.or(other.agent_timeout),
        }
    }
}

/// The merged configuration of `vmm run`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Default))]
pub struct RunConfig {
    pub bundle: PathBuf,
    /// The container's id, which is a valid file name.
    pub id: String,
    /// The id comes from the command line, so other commands can find the container.
    pub is_named: bool,
    pub vm: VmSettings,
    /// Replaces the embedded kernel.
    pub kernel: Option<PathBuf>,
    /// Replaces the embedded initramfs.
    pub initrd: Option<PathBuf>,
    /// Destination of the boot's timeline: a file, or `-` for only the table on stderr.
    pub marks: Option<PathBuf>,
    pub agent_timeout: Duration,
    /// Whether the machine continues from a template.
    pub template: Use,
    /// Whether one is made for a machine that boots because there is none.
    pub making: Making,
    pub templates: Store,
    /// The directory of the checkpoint from which the container goes on.
    pub image: Option<PathBuf>,
    /// The directory in which this user's machines meet, whatever root their engines use.
    pub meeting: StateRoot,
}

impl RunConfig {
    /// Returns the container's id of a command line.
    pub fn named(args: &RunArgs) -> Result<String> {
        bundle_and_id(args.target.clone(), args.bundle.clone()).map(|(_, id, _)| id)
    }

    /// Settings of a machine without a container.
    pub fn blank(vm: VmSettings, templates: Store, agent_timeout: Duration) -> RunConfig {
        RunConfig {
            bundle: PathBuf::new(),
            id: String::new(),
            is_named: false,
            vm,
            kernel: None,
            initrd: None,
            marks: None,
            agent_timeout,
            template: Use::default(),
            making: Making::default(),
            templates,
            image: None,
            meeting: StateRoot::new(None, |_| None),
        }
    }

    /// Merges the sources. `lookup` reads the environment.
    pub fn resolve(args: RunArgs, lookup: impl Fn(&str) -> Option<OsString> + Copy) -> Result<RunConfig> {
        let settings = args.settings.or(Settings::from_env(lookup)).or(Settings::from_file(lookup)?);
        let (bundle, id, is_named) = bundle_and_id(args.target, args.bundle)?;
        let protocol = protocol(settings.agent.as_deref(), settings.initrd.is_some())?;
        let max_memory_mib = size("max-memory", settings.max_memory.as_deref(), None)?;
        let vm = VmSettings {
            memory_mib: size("memory", settings.memory.as_deref(), max_memory_mib)?,
            default_memory_mib: size("default-memory", settings.default_memory.as_deref(), max_memory_mib)?,
            max_memory_mib,
            own_kernel: settings.kernel.is_none(),
            vcpus: settings.cpus.map(|text| vcpus("cpus", &text)).transpose()?,
            max_vcpus: settings.max_cpus.map(|text| vcpus("max-cpus", &text)).transpose()?,
            systemd_cgroup: args.engine.systemd_cgroup,
            protocol,
            cmdline: settings.cmdline,
            console: settings.console.map(|text| console(&text)),
            share: share(settings.share, protocol)?,
            vhost_net: settings.vhost_net.map(|text| vhost_net(&text)).transpose()?.unwrap_or_default(),
            marks: settings.marks.is_some(),
            ..VmSettings::default()
        };
        let limit_mib =
            settings.template_limit.map_or(Ok(DEFAULT_LIMIT_MIB), |text| mib("template-limit", &text))?;
        Ok(RunConfig {
            bundle,
            id,
            is_named,
            vm,
            kernel: settings.kernel,
            initrd: settings.initrd,
            marks: settings.marks,
            agent_timeout: settings.agent_timeout.map_or(Ok(deadlines::AGENT), |text| timeout(&text))?,
            template: settings.template.map_or(Ok(Use::default()), |text| template(&text))?,
            making: settings.template_make.map_or(Ok(Making::default()), |text| making(&text))?,
            templates: Store::new(settings.template_dir, u64::from(limit_mib) << 20, lookup),
            image: args.image,
            meeting: StateRoot::new(None, lookup),
        })
    }

    /// Returns the key of the template from which `plan`'s machine continues, or why it cannot continue from any.
    pub fn template_key(&self, plan: &VmPlan) -> std::result::Result<Key, &'static str> {
        if self.kernel.is_some() || self.initrd.is_some() {
            return Err("a kernel or an initramfs is given");
        }
        if self.vm.console.as_ref().is_some_and(|console| console.serial) {
            return Err("the machine has a serial port");
        }
        Key::of(plan)
    }
}

fn invalid(name: &'static str, value: &str, why: &'static str) -> ConfigError {
    ConfigError::Value { name, value: value.to_owned(), why }
}

/// Parses setting `name`, a size in MiB that must not exceed `max`.
fn size(name: &'static str, text: Option<&str>, max: Option<u32>) -> Result<Option<u32>> {
    let Some(text) = text else { return Ok(None) };
    let mib = memory_mib(name, text)?;
    if max.is_some_and(|max| mib > max) {
        return Err(invalid(name, text, "exceeds max-memory"));
    }
    Ok(Some(mib))
}

fn memory_mib(name: &'static str, text: &str) -> Result<u32> {
    let mib = mib(name, text)?;
    if mib < plan::limits::MIN_MEMORY_MIB {
        return Err(invalid(name, text, "a guest needs at least 64 MiB"));
    }
    Ok(mib)
}

/// Parses a number of MiB, or of GiB with a suffix.
fn mib(name: &'static str, text: &str) -> Result<u32> {
    let error = |why| invalid(name, text, why);
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 1024),
        _ => (text, 1),
    };
    let number: u32 = digits.parse().map_err(|_| error("not a number of MiB"))?;
    number.checked_mul(factor).ok_or_else(|| error("too large"))
}

/// The protocol of an initramfs that a user gave is unknown until its agent reports it.
fn protocol(agent: Option<&str>, named: bool) -> Result<Protocol> {
    match agent {
        Some("api-4244") => Ok(Protocol::Api4244),
        Some(other) => Err(invalid("agent", other, "the only protocol that can be chosen is api-4244")),
        None if named => Ok(Protocol::Negotiated),
        None => Ok(Protocol::Extended),
    }
}

fn vcpus(name: &'static str, text: &str) -> Result<u8> {
    match text.parse() {
        Ok(count @ 1..=plan::limits::MAX_VCPUS) => Ok(count),
        _ => Err(invalid(name, text, "not a number from 1 to 32")),
    }
}

/// The agent of API 4244 can only mount 9p.
fn share(given: Option<String>, protocol: Protocol) -> Result<ShareType> {
    let Some(value) = given else {
        return Ok(if protocol == Protocol::Api4244 { ShareType::P9 } else { ShareType::default() });
    };
    let error = |why| invalid("share", &value, why);
    let all = [ShareType::VirtioFs, ShareType::P9];
    match all.into_iter().find(|share| share.name() == value) {
        None => Err(error("not virtiofs or 9p")),
        Some(ShareType::VirtioFs) if protocol == Protocol::Api4244 => {
            Err(error("an agent of API 4244 supports only 9p"))
        }
        Some(share) => Ok(share),
    }
}

fn vhost_net(text: &str) -> Result<VhostNet> {
    match text {
        "auto" => Ok(VhostNet::Auto),
        "on" => Ok(VhostNet::On),
        "off" => Ok(VhostNet::Off),
        _ => Err(invalid("vhost-net", text, "not auto, on or off")),
    }
}

fn template(text: &str) -> Result<Use> {
    Use::parse(text).ok_or_else(|| invalid("template", text, "not auto, off or require"))
}

fn making(text: &str) -> Result<Making> {
    Making::parse(text).ok_or_else(|| invalid("template-make", text, "not idle, always or never"))
}

fn timeout(text: &str) -> Result<Duration> {
    match text.parse() {
        Ok(seconds @ 1..) => Ok(Duration::from_secs(seconds)),
        _ => Err(invalid("agent-timeout", text, "not a number of seconds")),
    }
}

fn console(text: &str) -> Console {
    let (serial, to) = match text.strip_prefix("serial:") {
        Some(to) => (true, to),
        None => (text == "serial", if text == "serial" { "-" } else { text }),
    };
    Console { serial, to: (to != "-").then(|| PathBuf::from(to)) }
}

/// Distinguishes `vmm run BUNDLE` from runc's `vmm run ID`. The argument is an id if --bundle is given. It is a bundle
/// if it is a directory with a config.json, and otherwise an id if the current directory is a bundle. Also returns
/// whether the user chose the id.
fn bundle_and_id(target: Option<OsString>, bundle: Option<PathBuf>) -> Result<(PathBuf, String, bool)> {
    let is_bundle = |directory: &Path| directory.join("config.json").exists();
    let (bundle, id) = match (target, bundle) {
        (target, Some(bundle)) => (bundle, target),
        (None, None) => (PathBuf::from("."), None),
        (Some(target), None) if !is_bundle(Path::new(&target)) && is_bundle(Path::new(".")) => {
            (PathBuf::from("."), Some(target))
        }
        (Some(target), None) => (PathBuf::from(target), None),
    };
    let is_named = id.is_some();
    let id = match id {
        Some(id) => given_id(&id)?,
        None => id_of_bundle(&bundle),
    };
    Ok((bundle, id, is_named))
}

fn given_id(id: &OsStr) -> Result<String> {
    let why = "an id has 1 to 128 letters, digits and _+-. and does not begin with a dot";
    match id.to_str() {
        Some(id) if is_id(id) => Ok(id.to_owned()),
        _ => Err(invalid("container id", &id.to_string_lossy(), why)),
    }
}

/// Returns the name of the bundle's directory as id, if it is a valid one.
fn id_of_bundle(bundle: &Path) -> String {
    match bundle.file_name().and_then(OsStr::to_str) {
        Some(name) if is_id(name) => name.to_owned(),
        _ => DEFAULT_ID.to_owned(),
    }
}

#[cfg(test)]
mod tests;
