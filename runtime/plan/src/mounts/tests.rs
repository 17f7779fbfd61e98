use serde_json::{Value, json};

use agent_proto::command::Protocol;
use oci::bundle::SocketFile;

use super::*;
use crate::settings::VmSettings;
use crate::vm::VmPlan;

fn planned(mounts: Value, device_sources: &[(usize, DeviceNode)]) -> Result<Mounts> {
    let mut json: Value = serde_json::from_str(oci::DEFAULT_CONFIG).unwrap();
    json["mounts"] = mounts;
    let mut bundle = Bundle::check(Path::new("/b"), oci::json::from_value(&json).unwrap()).unwrap();
    bundle.device_sources = device_sources.iter().copied().collect();
    super::mounts(&bundle, "c1", &[])
}

#[test]
fn a_bind_of_a_device_is_one_of_the_guest_s() {
    let bind = |source: &str, target: &str| json!({"destination": target, "type": "bind", "source": source, "options": ["rbind", "ro"]});
    let mounts = json!([bind("/dev/null", "/etc/motd"), bind("/data", "/data"), bind("/dev/loop3", "/l")]);
    let node = |is_block, major, minor| DeviceNode { is_block, major, minor };
    let plan = planned(mounts.clone(), &[(0, node(false, 1, 3)), (2, node(true, 7, 3))]).unwrap();
    let kinds: Vec<_> = plan.mounts.iter().map(|it| (it.kind.as_str(), it.source.as_str())).collect();
    assert_eq!(kinds, [("device", "c 1:3"), ("bind", "/c1/mounts/0"), ("device", "b 7:3")]);
    assert_eq!(plan.binds.len(), 2);

    let error = planned(mounts, &[(0, node(false, 10, 232))]).unwrap_err().to_string();
    let message = "config.json mounts[0].source: not supported: /dev/null is a device of the host's kernel";
    assert_eq!(error, message);
}

#[test]
fn binds_of_sockets_have_numbers_and_the_attributes_of_the_host_s() {
    let bind =
        |target: &str| json!({"destination": target, "type": "bind", "source": "/x", "options": ["ro"]});
    let mut json: Value = serde_json::from_str(oci::DEFAULT_CONFIG).unwrap();
    json["mounts"] = json!([bind("run/a.sock"), bind("/data"), bind("/b.sock")]);
    let mut bundle = Bundle::check(Path::new("/b"), oci::json::from_value(&json).unwrap()).unwrap();
    let file = |mode| SocketFile { mode, uid: 5, gid: 999 };
    bundle.socket_sources = [(0, file(0o660)), (2, file(0o7))].into();
    let plan = super::mounts(&bundle, "c1", &[]).unwrap();
    let mounts: Vec<_> =
        plan.mounts.iter().map(|it| [&it.kind, &it.source, &it.destination].map(String::as_str)).collect();
    let expected =
        [["socket", "0", "/run/a.sock"], ["bind", "/c1/mounts/0", "/data"], ["socket", "1", "/b.sock"]];
    assert_eq!(mounts, expected);
    assert_eq!((plan.mounts[0].data.as_str(), plan.mounts[2].data.as_str()), ("660 5 999", "7 5 999"));
    assert_eq!(plan.binds.len(), 2);

    let planned = |protocol| {
        let settings = VmSettings { protocol, ..VmSettings::default() };
        VmPlan::for_bundle(&bundle, "c1", &settings).map_err(|error| error.to_string())
    };
    assert_eq!(planned(Protocol::Extended).unwrap().sockets, [Path::new("/x"), Path::new("/x")]);
    assert!(planned(Protocol::Api4244).unwrap_err().contains("mounts[0].source"));
}

#[test]
fn a_bind_of_dev_is_a_directory_with_the_guest_s_devices() {
    let dev = json!({"destination": "/dev", "type": "bind", "source": "/dev/", "options": ["rbind"]});
    let shm = json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm"});
    let plan = planned(json!([dev, shm]), &[]).unwrap();
    let kinds: Vec<_> = plan.mounts.iter().map(|it| (it.kind.as_str(), it.destination.as_str())).collect();
    assert_eq!(kinds, [("tmpfs", "/dev"), ("devpts", "/dev/pts"), ("tmpfs", "/dev/shm")]);
    assert_eq!((plan.binds.len(), plan.notices.len()), (1, 1));
    let paths: Vec<_> = plan.devices.iter().map(|device| device.path.as_str()).collect();
    for path in ["/dev/null", "/dev/net/tun", "/dev/fuse", "/dev/loop7"] {
        assert!(paths.contains(&path), "{path}");
    }
    assert!(plan.devices.iter().all(|device| device.mode & 0o777 == 0o666));
}

#[test]
fn mounts_below_a_read_only_bind_are_mounts_of_their_own() {
    let bind =
        |options: Value| json!({"destination": "/data/", "type": "bind", "source": "/x", "options": options});
    let planned = |options| {
        let mut json: Value = serde_json::from_str(oci::DEFAULT_CONFIG).unwrap();
        json["mounts"] = json!([bind(options)]);
        let mut bundle = Bundle::check(Path::new("/b"), oci::json::from_value(&json).unwrap()).unwrap();
        bundle.mounts_below = [(0, vec![MountBelow { path: "a/b".into(), flags: libc::MS_NOEXEC }])].into();
        super::mounts(&bundle, "c1", &[]).unwrap()
    };
    let plan = planned(json!(["rbind", "ro"]));
    let mounts = plan.mounts.iter().map(|it| (it.destination.as_str(), it.source.as_str(), it.flags));
    let expected = [
        ("/data/", "/c1/mounts/0", libc::MS_BIND | libc::MS_REC | libc::MS_RDONLY),
        ("/data/a/b", "/c1/mounts/0/a/b", libc::MS_BIND | libc::MS_NOEXEC),
    ];
    assert_eq!(mounts.collect::<Vec<_>>(), expected);
    assert!(plan.binds[1].read_only_top && !plan.binds[1].read_only);
    // The bind is the host's mount, without a copy that could be read-only.
    let plan = planned(json!(["rbind", "ro", "rslave"]));
    assert!(plan.binds[1].read_only && !plan.binds[1].read_only_top);
    assert_eq!(plan.mounts.len(), 1);
}
