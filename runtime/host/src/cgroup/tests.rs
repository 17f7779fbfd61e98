use serde_json::{Value, json};

use super::*;

/// Directories that imitate hierarchies.
struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Host {
        Host { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Creates a hierarchy with files, which then contain what is written to them.
    fn tree(&self, name: &str, controllers: &[&str], files: &[&str]) -> Hierarchy {
        for file in files {
            let path = self.path(name).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let controllers = controllers.iter().map(|&name| name.to_owned()).collect();
        Hierarchy { mount: self.path(name), controllers, own: PathBuf::new() }
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

fn make(trees: &Hierarchies) -> Result<Cgroup> {
    let path = CgroupPath::parse("/a/b").unwrap();
    let cgroup = Cgroup::at(trees, &path)?;
    make_directories(trees, |tree| tree.path_of(&path)).map(|()| cgroup)
}

/// Limits the cgroup as for a machine of 64 MiB.
fn limit(cgroup: &Cgroup, resources: Value) -> Result<()> {
    cgroup.limit(&serde_json::from_value(resources).unwrap(), 64)
}

#[test]
fn version_2_is_made_from_the_top_with_controllers_and_limits() {
    let host = Host::new();
    let files =
        ["cgroup.subtree_control", "a/b/cgroup.procs", "a/b/memory.max", "a/b/cpu.weight", "a/b/io.weight"];
    let trees = Hierarchies { unified: Some(host.tree("two", &[], &files)), legacy: vec![] };
    fs::write(host.path("two/cgroup.controllers"), "pids\n").unwrap();
    let limits = json!({"memory": {"limit": 1 << 20}, "cpu": {"shares": 1024}, "blockIO": {"weight": 10}});
    let cgroup = make(&trees).unwrap();
    limit(&cgroup, limits).unwrap();
    assert_eq!(cgroup.version(), Version::Two);
    assert_eq!(host.file("two/cgroup.subtree_control"), "+pids");
    assert_eq!(host.file("two/a/b/memory.max"), limits::machine_bytes(64).to_string());
    assert_eq!(host.file("two/a/b/cpu.weight"), "100");
    assert_eq!(host.file("two/a/b/io.weight"), "default 1");
    cgroup.join().unwrap();
    assert_eq!(host.file("two/a/b/cgroup.procs"), "0");
    assert_eq!(cgroup.read("cpu.weight"), "100");
    assert_eq!(cgroup.files("io"), ["io.weight"]);
    for (text, quota) in [("50000 100000\n", 50_000), ("max 100000\n", -1), ("", -1)] {
        fs::write(host.path("two/a/b/cpu.max"), text).unwrap();
        assert_eq!(cgroup.cpu_quota(), quota);
    }
}

#[test]
fn version_1_is_a_directory_in_each_tree_and_a_set_of_cpus_is_never_empty() {
    let host = Host::new();
    let memory = host.tree("memory", &["memory"], &["a/b/memory.limit_in_bytes"]);
    let cpuset =
        host.tree("cpuset", &["cpuset"], &["cpuset.cpus", "a/cpuset.cpus", "a/b/cpuset.cpus", "cpuset.mems"]);
    fs::write(host.path("cpuset/cpuset.cpus"), "0-3\n").unwrap();
    let named = host.tree("systemd", &["name=systemd"], &["tasks"]);
    let trees = Hierarchies {
        unified: Some(host.tree("unified", &[], &["cgroup.controllers"])),
        legacy: vec![named, memory, cpuset],
    };
    let cgroup = make(&trees).unwrap();
    limit(&cgroup, json!({"memory": {"limit": 1 << 20}})).unwrap();
    assert_eq!(cgroup.version(), Version::One);
    assert_eq!(host.file("memory/a/b/memory.limit_in_bytes"), limits::machine_bytes(64).to_string());
    assert_eq!(host.file("cpuset/a/cpuset.cpus"), "0-3");
    assert_eq!(host.file("cpuset/a/b/cpuset.cpus"), "0-3");
    assert!(host.path("systemd/a/b").is_dir() && host.path("unified/a/b").is_dir());
    for file in ["memory/a/b/memory.limit_in_bytes", "cpuset/a/b/cpuset.cpus"] {
        fs::remove_file(host.path(file)).unwrap();
    }
    cgroup.remove().unwrap();
    assert!(!host.path("memory/a/b").exists() && host.path("memory/a").exists());
    // Removing it again is no error.
    cgroup.remove().unwrap();
}

#[test]
fn limits_without_a_host_controller_are_refused_by_name() {
    let host = Host::new();
    let trees = Hierarchies { unified: Some(host.tree("two", &[], &["x"])), legacy: vec![] };
    let cgroup = make(&trees).unwrap();
    let error = limit(&cgroup, json!({"blockIO": {"weight": 10}})).unwrap_err();
    let at = host.path("two/a/b");
    let expected = format!(
        "config.json linux.resources.blockIO.weight: not supported: the host has no io.weight in {}",
        at.display()
    );
    assert_eq!(error.to_string(), expected);
    cgroup.remove().unwrap();
    assert!(!at.exists() && host.path("two/a").exists());
}

#[test]
fn a_cgroup_with_processes_is_refused() {
    let host = Host::new();
    let trees = Hierarchies { unified: Some(host.tree("two", &[], &["a/b/cgroup.procs"])), legacy: vec![] };
    fs::write(host.path("two/a/b/cgroup.procs"), "17\n").unwrap();
    let error = make(&trees).unwrap_err();
    assert!(matches!(error, CgroupError::Busy(path) if path == host.path("two/a/b")));
    assert_eq!(host.file("two/a/b/cgroup.procs"), "17\n");
}

#[test]
fn a_limit_that_depends_on_a_later_one_is_retried() {
    let host = Host::new();
    let trees = Hierarchies { unified: Some(host.tree("two", &[], &["a/b/second"])), legacy: vec![] };
    let cgroup = make(&trees).unwrap();
    // A write to a directory fails, like a value that the kernel refuses.
    fs::create_dir(host.path("two/a/b/first")).unwrap();
    let setting = |file: &str| Setting { at: file.into(), files: vec![(file.into(), "1".into())] };
    let error = cgroup.set(vec![setting("first"), setting("second")]).unwrap_err();
    assert!(matches!(error, CgroupError::Setting { at, .. } if at == "first"));
    assert_eq!(host.file("two/a/b/second"), "1");
}

#[test]
fn this_process_is_in_a_cgroup() {
    let own = Cgroup::of_process(std::process::id()).unwrap();
    let again: Cgroup = serde_json::from_str(&serde_json::to_string(&own).unwrap()).unwrap();
    assert_eq!(own, again);
}
