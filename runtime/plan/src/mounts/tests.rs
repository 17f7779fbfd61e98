use serde_json::{Value, json};

use super::*;

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
