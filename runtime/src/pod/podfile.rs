//! A podfile as it is written: hyperd's format (`UserPod`), in JSON or YAML. Names are the format's own, capitals included.
//!
//! Everything that the format has is here; what cannot be honoured is of type [`Given`], and [`refuse`](super::refuse)
//! says so by its path. A key that the format does not have is an error. One key is ours: `ownPids` of a container.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use oci::spec::Given;
use serde::{Deserialize, Serialize};

/// The largest podfile: files are in it, as text or in base64.
pub const PODFILE_MAX: u64 = 4 << 20;

/// Why a podfile cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum PodfileError {
    /// It cannot be read.
    #[error("read podfile {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not the JSON that it should be; the cause names line and column.
    #[error("parse {}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It is not the YAML that it should be.
    #[error("parse {}: {why}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Why, with line and column.
        why: String,
    },
    /// A value that makes no sense, or one that is missing.
    #[error("podfile {path}: {why}")]
    Invalid {
        /// JSON path.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A field that cannot be honoured.
    #[error("podfile {path}: not supported: {why}")]
    Unsupported {
        /// JSON path.
        path: String,
        /// What exactly, or why not.
        why: String,
    },
    /// A file or directory that it names cannot be used.
    #[error("open {what} {}", path.display())]
    Source {
        /// Its JSON path.
        what: String,
        /// The path on the host.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// This module's result.
pub type Result<T, E = PodfileError> = std::result::Result<T, E>;

/// A pod.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Podfile {
    /// The pod's name.
    pub id: String,
    /// Its host name.
    pub hostname: String,
    /// `pod`, or nothing.
    #[serde(rename = "type")]
    pub kind: String,
    /// What is done when a container ends that has no policy of its own.
    pub restart_policy: Option<RestartPolicy>,
    /// Containers that say nothing else have a terminal.
    pub tty: bool,
    /// For whoever lists pods.
    pub labels: BTreeMap<String, String>,
    /// The machine's size.
    pub resource: Resource,
    /// Where output is kept.
    pub log: Log,
    /// Name servers.
    pub dns: Vec<String>,
    /// Options of the resolver.
    pub dns_options: Vec<String>,
    /// Domains of the resolver.
    pub dns_search: Vec<String>,
    /// What runs.
    pub containers: Vec<Container>,
    /// Files for the containers.
    pub files: Vec<File>,
    /// Volumes for the containers.
    pub volumes: Vec<Volume>,
    /// Not honoured.
    pub interfaces: Given,
    /// Not honoured.
    pub services: Given,
    /// Not honoured.
    pub portmappings: Given,
    /// Not honoured.
    pub portmapping_white_lists: Given,
}

/// What is done when a container's first process ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RestartPolicy {
    /// Nothing.
    #[default]
    Never,
    /// It is started again if it did not end with 0.
    OnFailure,
    /// It is started again.
    Always,
}

/// The machine's size.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resource {
    /// Virtual CPUs.
    pub vcpu: Option<u8>,
    /// MB.
    pub memory: Option<u32>,
}

/// Where output is kept.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `json-file`, `none`, or nothing, which is the former.
    #[serde(rename = "type")]
    pub kind: String,
    /// `max-size` and `max-file`.
    pub config: BTreeMap<String, String>,
}

/// A container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Container {
    /// Not honoured: the name is the identity.
    pub id: Given,
    /// Unique in the pod.
    pub name: String,
    /// A directory: a root file system, or an OCI bundle.
    pub image: String,
    /// Working directory.
    pub workdir: Option<String>,
    /// In place of the pod's.
    pub restart_policy: Option<RestartPolicy>,
    /// In place of the pod's.
    pub tty: Option<bool>,
    /// Kernel parameters.
    pub sysctl: BTreeMap<String, String>,
    /// Environment, above the image's.
    pub envs: Vec<Env>,
    /// Arguments.
    pub command: Vec<String>,
    /// Program, before the arguments.
    pub entrypoint: Vec<String>,
    /// Not honoured.
    pub ports: Given,
    /// What is mounted.
    pub volumes: Vec<VolumeMount>,
    /// Files that it finds.
    pub files: Vec<FileMount>,
    /// Who it runs as.
    pub user: User,
    /// For whoever lists containers.
    pub labels: BTreeMap<String, String>,
    /// What it is asked to end with.
    #[serde(rename = "StopSignal")]
    pub stop_signal: String,
    /// Limits.
    pub ulimits: Vec<Ulimit>,
    /// In place of the log's own place.
    pub log_path: String,
    /// It cannot write to its root.
    pub read_only: bool,
    /// Not honoured.
    pub cache: Given,
    /// Ours: it has process ids of its own, and is process 1 there. Without it all containers see each other's processes.
    pub own_pids: bool,
}

/// An environment variable.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Env {
    /// Name.
    pub env: String,
    /// Value.
    pub value: String,
}

/// A volume in a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct VolumeMount {
    /// Where in the container.
    pub path: String,
    /// Which of the pod's volumes.
    pub volume: String,
    /// It cannot be written.
    pub read_only: bool,
    /// The volume itself, where it is not the pod's.
    pub detail: Option<Volume>,
}

/// A volume: a directory or a file of the host.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Volume {
    /// Unique in the pod.
    pub name: String,
    /// Path on the host.
    pub source: String,
    /// `vfs` or nothing.
    pub format: String,
    /// Not honoured.
    pub option: Given,
    /// Not honoured.
    pub fstype: Given,
    /// Not honoured.
    pub cache: Given,
}

/// A file in a container.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileMount {
    /// Where in the container.
    pub path: String,
    /// Which of the pod's files.
    pub filename: String,
    /// Mode, in octal digits.
    pub perm: String,
    /// Owner's number, or `root`.
    pub user: String,
    /// Group's number, or `root`.
    pub group: String,
    /// The file itself, where it is not the pod's.
    pub detail: Option<File>,
}

/// A file's contents.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    /// Unique in the pod.
    pub name: String,
    /// `raw`, `base64`, or nothing, which is the former.
    pub encoding: String,
    /// `file://` and a path on the host, in place of contents.
    pub uri: String,
    /// The contents.
    pub content: String,
}

/// Who a container runs as; names are the container's own.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct User {
    /// Name or number.
    pub name: String,
    /// Name or number.
    pub group: String,
    /// Names or numbers.
    pub additional_groups: Vec<String>,
}

/// A limit (getrlimit(2)).
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct Ulimit {
    /// `nofile` and so on.
    pub name: String,
    /// The most that soft may be raised to; -1 for no limit.
    pub hard: i64,
    /// The limit in force; -1 for no limit.
    pub soft: i64,
}

/// Reads a podfile; it is YAML if its name says so.
pub fn read(path: &Path) -> Result<Podfile> {
    read_as(path)
}

/// Reads one container, to be added to a pod, as it is written; that it is one is seen at once.
pub fn read_value(path: &Path) -> Result<serde_json::Value> {
    read_as::<Container>(path).and_then(|_| read_as(path))
}

fn read_as<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = text(path).map_err(|source| PodfileError::Read { path: path.to_owned(), source })?;
    if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
        return yaml(&text).map_err(|why| PodfileError::Yaml { path: path.to_owned(), why });
    }
    serde_json::from_str(&text).map_err(|source| PodfileError::Json { path: path.to_owned(), source })
}

/// Reads a podfile's text, as far as one may be.
pub fn text(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    fs::File::open(path)?.take(PODFILE_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > PODFILE_MAX { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
}

fn yaml<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, String> {
    // The parser's further lines show the text around the place.
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
    fn json_and_yaml_say_the_same() {
        let json = r#"{"id":"web","resource":{"vcpu":2,"memory":256},"restartPolicy":"onFailure","containers":[
            {"name":"a","image":"root","envs":[{"env":"A","value":"1"}],"StopSignal":"INT","ulimits":[
            {"Name":"nofile","Soft":5,"Hard":-1}],"command":["sh","-c","true"],"ownPids":true}]}"#;
        let yaml = "id: web\nresource: {vcpu: 2, memory: 256}\nrestartPolicy: onFailure\ncontainers:\n- name: a\n  image: \
                    root\n  envs: [{env: A, value: \"1\"}]\n  StopSignal: INT\n  ulimits:\n  - {Name: nofile, Soft: 5, \
                    Hard: -1}\n  command: [sh, -c, \"true\"]\n  ownPids: true\n";
        let parsed = [("p.json", json), ("p.yaml", yaml), ("p.yml", yaml)].map(|(name, text)| {
            let (_folder, path) = write(name, text);
            format!("{:?}", read(&path).unwrap())
        });
        assert_eq!(parsed[0], parsed[1]);
        assert_eq!(parsed[1], parsed[2]);
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_place() {
        for (name, text, parts) in [
            ("p.json", "{\"id\":1}", &["parse ", "p.json"][..]),
            ("p.json", "{\"containers\":[{\"wonder\":1}]}", &["parse "]),
            ("p.yaml", "id: web\nwonder: 1\n", &["p.yaml: ", "wonder", "line 2"]),
            ("p.yaml", "a: &a [x]\nb: [*a", &["p.yaml: "]),
        ] {
            let (_folder, path) = write(name, text);
            let error = read(&path).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        assert!(matches!(read(Path::new("/nonexistent/p.json")), Err(PodfileError::Read { .. })));
    }

    #[test]
    fn a_podfile_is_not_read_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.json");
        fs::File::create(&path).unwrap().set_len(PODFILE_MAX + 1).unwrap();
        let PodfileError::Read { source, .. } = read(&path).unwrap_err() else { panic!() };
        assert_eq!(source.kind(), io::ErrorKind::FileTooLarge);
    }
}
