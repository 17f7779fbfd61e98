//! A podfile as it is written: hyperd's format (`UserPod`, `UserContainer`), in JSON or YAML, with its names and their
//! capitals.
//!
//! The structs have all keys of the format, and an unknown key is an error. Keys that are not supported have the type
//! [`Given`], and [`refuse`](super::refuse) refuses them by their path. The key `ownPids` of a container is an
//! addition.

use host::HostError;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use oci::spec::Given;
use serde::{Deserialize, Serialize};

/// Maximum size of a podfile, which can contain files as text or in base64.
const PODFILE_MAX: u64 = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum PodfileError {
    /// The podfile, or a file that it names, cannot be read, or its JSON is not valid.
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("parse {}: {why}", path.display())]
    Yaml { path: PathBuf, why: String },
    /// A value is not valid or is missing. `path` is its JSON path.
    #[error("podfile {path}: {why}")]
    Invalid { path: String, why: String },
    #[error("podfile {path}: not supported: {why}")]
    Unsupported { path: String, why: String },
}

pub type Result<T, E = PodfileError> = std::result::Result<T, E>;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Podfile {
    pub id: String,
    pub hostname: String,
    /// `pod`, or empty.
    #[serde(rename = "type")]
    pub kind: String,
    /// Restart policy of containers without one.
    pub restart_policy: Option<RestartPolicy>,
    /// Whether containers have a terminal by default.
    pub tty: bool,
    /// Labels, copied to the state file.
    pub labels: BTreeMap<String, String>,
    pub resource: Resource,
    pub log: Log,
    pub dns: Vec<String>,
    pub dns_options: Vec<String>,
    pub dns_search: Vec<String>,
    pub containers: Vec<UserContainer>,
    pub files: Vec<File>,
    pub volumes: Vec<Volume>,
    pub interfaces: Given,
    pub services: Given,
    pub portmappings: Given,
    pub portmapping_white_lists: Given,
}

/// What happens after the exit of a container's init process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RestartPolicy {
    /// The container stays stopped.
    #[default]
    Never,
    /// The container is restarted if its exit code is not 0.
    OnFailure,
    /// The container is always restarted.
    Always,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resource {
    pub vcpu: Option<u8>,
    /// Memory in MiB.
    pub memory: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `json-file` (default) or `none`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `max-size` and `max-file`.
    pub config: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct UserContainer {
    /// Not supported: the name is the identity.
    pub id: Given,
    /// Name, unique in the pod.
    pub name: String,
    /// A directory: a root file system, or an OCI bundle.
    pub image: String,
    pub workdir: Option<String>,
    /// Overrides the pod's policy.
    pub restart_policy: Option<RestartPolicy>,
    /// Overrides the pod's setting.
    pub tty: Option<bool>,
    pub sysctl: BTreeMap<String, String>,
    /// Environment variables, which override the image's.
    pub envs: Vec<Env>,
    pub command: Vec<String>,
    /// Program, placed before the arguments.
    pub entrypoint: Vec<String>,
    pub ports: Given,
    pub volumes: Vec<VolumeMount>,
    pub files: Vec<FileMount>,
    pub user: User,
    pub labels: BTreeMap<String, String>,
    #[serde(rename = "StopSignal")]
    pub stop_signal: String,
    pub ulimits: Vec<Ulimit>,
    /// Overrides the path of the log.
    pub log_path: String,
    pub read_only: bool,
    pub cache: Given,
    /// An addition to the format: the container has its own PID namespace, with its init process as process 1.
    /// Otherwise all containers see each other's processes.
    pub own_pids: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Env {
    /// Name, without `=`.
    pub env: String,
    /// Value; may be empty.
    pub value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct VolumeMount {
    /// Mount point in the container.
    pub path: String,
    /// Name of one of the pod's volumes.
    pub volume: String,
    pub read_only: bool,
    /// The volume itself, instead of a name.
    pub detail: Option<Volume>,
}

/// A volume: a directory or a file of the host.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Volume {
    /// Name, unique in the pod.
    pub name: String,
    /// Path on the host.
    pub source: String,
    /// `vfs`, or empty.
    pub format: String,
    pub option: Given,
    pub fstype: Given,
    pub cache: Given,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileMount {
    /// Path in the container.
    pub path: String,
    /// Name of one of the pod's files.
    pub filename: String,
    /// Mode, in octal digits.
    pub perm: String,
    /// Number of the owner, or `root`.
    pub user: String,
    /// Number of the group, or `root`.
    pub group: String,
    /// The file itself, instead of a name.
    pub detail: Option<File>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    /// Name, unique in the pod.
    pub name: String,
    /// `raw` (default) or `base64`.
    pub encoding: String,
    /// `file://` and a path on the host, instead of contents.
    pub uri: String,
    pub content: String,
}

/// User and groups of a container. Names are looked up in the container's own files.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct User {
    /// Name or number of the user.
    pub name: String,
    /// Name or number of the group.
    pub group: String,
    /// Names or numbers of further groups.
    pub additional_groups: Vec<String>,
}

/// A resource limit (getrlimit(2)).
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct Ulimit {
    /// Name without prefix, such as `nofile`.
    pub name: String,
    /// Upper bound of the soft limit; -1 for no limit.
    pub hard: i64,
    /// The effective limit; -1 for no limit.
    pub soft: i64,
}

/// Reads a container to be added to a pod. Returns it unparsed, after a check of its syntax.
pub fn read_value(path: &Path) -> Result<serde_json::Value> {
    read::<UserContainer>(path).and_then(|_| read(path))
}

/// Reads a podfile or a part of one, as YAML if its name ends so.
pub fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = text(path).map_err(HostError::at("read podfile", path))?;
    if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
        return yaml(&text).map_err(|why| PodfileError::Yaml { path: path.to_owned(), why });
    }
    Ok(serde_json::from_str(&text).map_err(HostError::at("parse", path))?)
}

/// Reads a podfile's text, up to the maximum size.
fn text(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    fs::File::open(path)?.take(PODFILE_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > PODFILE_MAX { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
}

fn yaml<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, String> {
    // Further lines of the parser's message show the text around the error.
    serde_saphyr::from_str(text)
        .map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())
}

pub(super) fn invalid(path: impl Into<String>, why: impl Into<String>) -> PodfileError {
    PodfileError::Invalid { path: path.into(), why: why.into() }
}

pub(super) fn unsupported(path: impl Into<String>, why: impl Into<String>) -> PodfileError {
    PodfileError::Unsupported { path: path.into(), why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn json_and_yaml_are_equivalent() {
        let json = r#"{"id":"web","resource":{"vcpu":2,"memory":256},"restartPolicy":"onFailure","containers":[
            {"name":"a","image":"root","envs":[{"env":"A","value":"1"}],"StopSignal":"INT","ulimits":[
            {"Name":"nofile","Soft":5,"Hard":-1}],"command":["sh","-c","true"],"ownPids":true}]}"#;
        let yaml = "id: web\nresource: {vcpu: 2, memory: 256}\nrestartPolicy: onFailure\ncontainers:\n- name: a\n  image: \
                    root\n  envs: [{env: A, value: \"1\"}]\n  StopSignal: INT\n  ulimits:\n  - {Name: nofile, Soft: 5, \
                    Hard: -1}\n  command: [sh, -c, \"true\"]\n  ownPids: true\n";
        let parsed = [("p.json", json), ("p.yaml", yaml), ("p.yml", yaml)].map(|(name, text)| {
            let (_folder, path) = write(name, text);
            format!("{:?}", read::<Podfile>(&path).unwrap())
        });
        assert_eq!(parsed[0], parsed[1]);
        assert_eq!(parsed[1], parsed[2]);
    }

    #[test]
    fn parse_errors_name_the_place() {
        for (name, text, parts) in [
            ("p.json", "{\"id\":1}", &["parse ", "p.json"][..]),
            ("p.json", "{\"containers\":[{\"wonder\":1}]}", &["parse "]),
            ("p.yaml", "id: web\nwonder: 1\n", &["p.yaml: ", "wonder", "line 2"]),
            ("p.yaml", "a: &a [x]\nb: [*a", &["p.yaml: "]),
        ] {
            let (_folder, path) = write(name, text);
            let error = read::<Podfile>(&path).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        let error = read::<Podfile>(Path::new("/nonexistent/p.json")).unwrap_err().to_string();
        assert_eq!(error, "read podfile /nonexistent/p.json");
    }

    #[test]
    fn a_podfile_has_a_maximum_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.json");
        fs::File::create(&path).unwrap().set_len(PODFILE_MAX + 1).unwrap();
        let PodfileError::Host(error) = read::<Podfile>(&path).unwrap_err() else { panic!() };
        assert_eq!(error.source.kind(), io::ErrorKind::FileTooLarge);
    }
}
