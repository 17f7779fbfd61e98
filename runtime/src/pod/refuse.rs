//! Checks a podfile without access to the host: names, values, and fields that are not supported.

use std::collections::BTreeSet;

use host::signals::name::signal_of;
use oci::spec::Given;

use super::podfile::{File, Log, Podfile, PodfileError, Result, UserContainer, Volume, invalid, unsupported};
use crate::state::is_id;

/// Maximum number of containers of one pod. The agent's own maximum is higher.
pub const CONTAINERS_MAX: usize = 128;
/// Maximum length of a host name (RFC 1123: a label).
const HOSTNAME_MAX: usize = 63;
/// The rule for ids and container names, for error messages.
const NAME_RULE: &str = "must have 1 to 128 letters, digits and _+-. and must not begin with a dot";

pub fn check(pod: &Podfile) -> Result<()> {
    if !pod.id.is_empty() && !is_id(&pod.id) {
        return Err(invalid("id", format!("{:?} {NAME_RULE}", pod.id)));
    }
    if !matches!(pod.kind.as_str(), "" | "pod") {
        return Err(unsupported("type", format!("{:?}", pod.kind)));
    }
    if !pod.hostname.is_empty() && !is_label(&pod.hostname) {
        let why = format!(
            "{:?} is not a host name: 1 to {HOSTNAME_MAX} letters, digits and hyphens, no hyphen at either end",
            pod.hostname
        );
        return Err(invalid("hostname", why));
    }
    refuse(&[
        (pod.interfaces, "interfaces", "a pod has only a loopback interface"),
        (pod.services, "services", "a pod has only a loopback interface"),
        (pod.portmappings, "portmappings", "a pod has only a loopback interface"),
        (pod.portmapping_white_lists, "portmappingWhiteLists", "a pod has only a loopback interface"),
    ])?;
    check_log("log", &pod.log)?;
    for (index, file) in pod.files.iter().enumerate() {
        let at = format!("files[{index}]");
        named(&at, &file.name)?;
        check_file(&at, file)?;
    }
    unique("files", "name", pod.files.iter().map(|file| file.name.as_str()))?;
    for (index, volume) in pod.volumes.iter().enumerate() {
        let at = format!("volumes[{index}]");
        named(&at, &volume.name)?;
        check_volume(&at, volume)?;
    }
    unique("volumes", "name", pod.volumes.iter().map(|volume| volume.name.as_str()))?;
    if pod.containers.len() > CONTAINERS_MAX {
        return Err(invalid("containers", format!("limit of {CONTAINERS_MAX} containers")));
    }
    for (index, container) in pod.containers.iter().enumerate() {
        check_container(&format!("containers[{index}]"), container)?;
    }
    unique("containers", "name", pod.containers.iter().map(|container| container.name.as_str()))
}

/// Checks one container. `at` is its JSON path.
pub fn check_container(at: &str, container: &UserContainer) -> Result<()> {
    let fields = [
        (container.id, "id", "a container is known by its name"),
        (container.ports, "ports", "a pod has only a loopback interface"),
        (container.cache, "cache", "a container's root is a directory of the host"),
    ];
    for (given, field, why) in fields {
        refuse(&[(given, &format!("{at}.{field}"), why)])?;
    }
    if !is_id(&container.name) {
        return Err(invalid(format!("{at}.name"), format!("{:?} {NAME_RULE}", container.name)));
    }
    if container.image.is_empty() {
        return Err(invalid(format!("{at}.image"), "missing"));
    }
    let workdir = container.workdir.as_deref().unwrap_or("/");
    absolute(&format!("{at}.workdir"), workdir)?;
    check_words(at, container)?;
    if !container.stop_signal.is_empty() && signal_of(&container.stop_signal).is_none() {
        let why = format!("{:?} is not a signal", container.stop_signal);
        return Err(invalid(format!("{at}.StopSignal"), why));
    }
    check_mounts(at, container)
}

fn check_words(at: &str, container: &UserContainer) -> Result<()> {
    for (index, env) in container.envs.iter().enumerate() {
        if env.env.is_empty() || env.env.contains('=') {
            return Err(invalid(format!("{at}.envs[{index}].env"), format!("{:?} is not a name", env.env)));
        }
    }
    unique(&format!("{at}.envs"), "env", container.envs.iter().map(|env| env.env.as_str()))?;
    let ulimits = container.ulimits.iter().map(|limit| limit.name.as_str());
    unique(&format!("{at}.ulimits"), "Name", ulimits)?;
    for (index, limit) in container.ulimits.iter().enumerate() {
        if limit.hard >= 0 && (limit.soft < 0 || limit.soft > limit.hard) {
            return Err(invalid(format!("{at}.ulimits[{index}].Soft"), "above Hard"));
        }
    }
    let envs = container.envs.iter().flat_map(|env| [("envs", &env.env), ("envs", &env.value)]);
    let command = container.command.iter().map(|word| ("command", word));
    let entrypoint = container.entrypoint.iter().map(|word| ("entrypoint", word));
    match envs.chain(command).chain(entrypoint).find(|(_, word)| word.contains('\0')) {
        Some((field, word)) => Err(invalid(format!("{at}.{field}"), format!("{word:?} contains a NUL byte"))),
        None => Ok(()),
    }
}

fn check_mounts(at: &str, container: &UserContainer) -> Result<()> {
    for (index, mount) in container.volumes.iter().enumerate() {
        let at = format!("{at}.volumes[{index}]");
        absolute(&format!("{at}.path"), &mount.path)?;
        match &mount.detail {
            Some(volume) => check_volume(&format!("{at}.detail"), volume)?,
            None if mount.volume.is_empty() => return Err(invalid(format!("{at}.volume"), "missing")),
            None => {}
        }
    }
    for (index, mount) in container.files.iter().enumerate() {
        let at = format!("{at}.files[{index}]");
        absolute(&format!("{at}.path"), &mount.path)?;
        mode(&at, &mount.perm)?;
        owner(&format!("{at}.user"), &mount.user)?;
        owner(&format!("{at}.group"), &mount.group)?;
        match &mount.detail {
            Some(file) => check_file(&format!("{at}.detail"), file)?,
            None if mount.filename.is_empty() => return Err(invalid(format!("{at}.filename"), "missing")),
            None => {}
        }
    }
    let volumes = container.volumes.iter().map(|mount| mount.path.trim_end_matches('/'));
    let files = container.files.iter().map(|mount| mount.path.as_str());
    let mut seen = BTreeSet::new();
    match volumes.chain(files).find(|path| !seen.insert(*path)) {
        Some(path) => Err(invalid(at, format!("two mounts on {path}"))),
        None => Ok(()),
    }
}

/// Parses a file's mode: octal digits, or empty for 0755.
pub fn mode(at: &str, perm: &str) -> Result<u32> {
    if perm.is_empty() {
        return Ok(0o755);
    }
    match u32::from_str_radix(perm, 8) {
        Ok(mode @ 0..=0o7777) if perm.bytes().all(|byte| byte.is_ascii_digit()) => Ok(mode),
        _ => Err(invalid(format!("{at}.perm"), format!("{perm:?} is not a mode in octal digits"))),
    }
}

/// Parses an owner's number. The host does not look up names in the container's files.
pub fn owner(at: &str, name: &str) -> Result<u32> {
    match name {
        "" | "root" => Ok(0),
        name => name
            .parse()
            .map_err(|_| unsupported(at, format!("{name:?}: a file's owner must be a number or \"root\""))),
    }
}

fn check_file(at: &str, file: &File) -> Result<()> {
    if !matches!(file.encoding.as_str(), "" | "raw" | "base64") {
        return Err(invalid(format!("{at}.encoding"), format!("{:?} is not raw or base64", file.encoding)));
    }
    if file.uri.is_empty() {
        return Ok(());
    }
    if !file.content.is_empty() {
        return Err(invalid(format!("{at}.uri"), "uri and content exclude each other"));
    }
    match file.uri.strip_prefix("file://") {
        Some(path) => absolute(&format!("{at}.uri"), path),
        None => Err(unsupported(format!("{at}.uri"), format!("{:?}: only file:// is supported", file.uri))),
    }
}

fn check_volume(at: &str, volume: &Volume) -> Result<()> {
    if !matches!(volume.format.as_str(), "" | "vfs") {
        return Err(unsupported(
            format!("{at}.format"),
            format!("{:?}: only vfs is supported", volume.format),
        ));
    }
    for (given, field) in [(volume.option, "option"), (volume.fstype, "fstype"), (volume.cache, "cache")] {
        refuse(&[(given, &format!("{at}.{field}"), "a volume is a path on the host")])?;
    }
    if volume.source.is_empty() {
        return Err(invalid(format!("{at}.source"), "missing: a path on the host"));
    }
    Ok(())
}

pub fn check_log(at: &str, log: &Log) -> Result<()> {
    if !matches!(log.kind.as_str(), "" | "json-file" | "none") {
        return Err(unsupported(
            format!("{at}.type"),
            format!("{:?}: only json-file and none are supported", log.kind),
        ));
    }
    match log.config.keys().find(|key| !matches!(key.as_str(), "max-size" | "max-file")) {
        Some(key) => {
            Err(unsupported(format!("{at}.config.{key}"), "only max-size and max-file are supported"))
        }
        None => Ok(()),
    }
}

fn refuse(fields: &[(Given, &str, &str)]) -> Result<()> {
    match fields.iter().find(|(given, ..)| given.0) {
        Some((_, path, why)) => Err(unsupported(*path, *why)),
        None => Ok(()),
    }
}

fn unique<'a>(at: &str, field: &str, names: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for (index, name) in names.enumerate() {
        if !seen.insert(name) {
            return Err(invalid(format!("{at}[{index}].{field}"), format!("duplicate {name:?}")));
        }
    }
    Ok(())
}

fn named(at: &str, name: &str) -> Result<()> {
    if name.is_empty() { Err(invalid(format!("{at}.name"), "missing")) } else { Ok(()) }
}

fn absolute(at: &str, path: &str) -> Result<(), PodfileError> {
    if path.starts_with('/') { Ok(()) } else { Err(invalid(at, format!("{path:?} is not absolute"))) }
}

/// Whether `name` is a valid host name.
pub fn is_label(name: &str) -> bool {
    (1..=HOSTNAME_MAX).contains(&name.len())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests;
