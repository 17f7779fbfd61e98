//! Translates the user namespace: `linux.uidMappings` and `linux.gidMappings`. Also translates container ids in other
//! fields to guest ids, because the agent mounts file systems and creates nodes before the user namespace exists.

use agent_proto::payload::{Device, IdMap, IdMaps, Mount};
use oci::error::{Result, invalid};
use oci::spec::{IdMapping, Linux};

/// Maximum number of ranges that the kernel accepts (linux/user_namespace.h, UID_GID_MAP_MAX_EXTENTS).
const RANGES_MAX: usize = 340;

/// Returns the id maps of the container's user namespace, if it has one. Without one they have no effect, as with runc.
pub fn maps(linux: &Linux) -> Result<Option<IdMaps>> {
    if !linux.has_namespace("user") {
        return Ok(None);
    }
    let users = ranges("linux.uidMappings", &linux.uid_mappings)?;
    Ok(Some(IdMaps { users, groups: ranges("linux.gidMappings", &linux.gid_mappings)? }))
}

fn ranges(path: &str, list: &[IdMapping]) -> Result<Vec<IdMap>> {
    if list.len() > RANGES_MAX {
        return Err(invalid(path, format!("more than {RANGES_MAX} ranges")));
    }
    let fits = |first: u32, size: u32| size > 0 && first.checked_add(size).is_some();
    for (index, range) in list.iter().enumerate() {
        if !fits(range.container_id, range.size) || !fits(range.host_id, range.size) {
            return Err(invalid(&format!("{path}[{index}]"), "not a valid range of ids"));
        }
    }
    let ranges: Vec<IdMap> = list
        .iter()
        .map(|range| IdMap { inside: range.container_id, outside: range.host_id, size: range.size })
        .collect();
    match IdMap::outside(&ranges, 0) {
        Some(_) => Ok(ranges),
        None => Err(invalid(path, "no range contains id 0")),
    }
}

/// Gives mounts the owners that they would have if the container mounted them: tmpfs and devpts belong to the
/// container's root by default, and the ids in their options are ids of the container.
pub fn translate_mounts(maps: &IdMaps, mounts: &mut [Mount]) -> Result<()> {
    for mount in mounts {
        let added: &[(&str, &[IdMap])] = match mount.kind.as_str() {
            "tmpfs" => &[("uid", &maps.users), ("gid", &maps.groups)],
            "devpts" => &[("gid", &maps.groups)],
            _ => continue,
        };
        let mut words: Vec<String> =
            mount.data.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        for (name, ranges) in added {
            let given = words
                .iter()
                .position(|word| word.strip_prefix(name).is_some_and(|rest| rest.starts_with('=')));
            let id = match given {
                Some(at) => words.remove(at)[name.len() + 1..].parse().ok(),
                None => Some(0),
            };
            let path = format!("mounts of {}: {name}", mount.destination);
            let id = id.ok_or_else(|| invalid(&path, "not a number"))?;
            words.push(format!("{name}={}", outside(&path, ranges, id)?));
        }
        mount.data = words.join(",");
    }
    Ok(())
}

/// Gives device nodes the owners that they would have if the container created them.
pub fn translate_devices(maps: &IdMaps, devices: &mut [Device]) -> Result<()> {
    for device in devices {
        let path = format!("linux.devices of {}", device.path);
        device.uid = outside(&path, &maps.users, device.uid)?;
        device.gid = outside(&path, &maps.groups, device.gid)?;
    }
    Ok(())
}

fn outside(path: &str, ranges: &[IdMap], id: u32) -> Result<u32> {
    IdMap::outside(ranges, id)
        .ok_or_else(|| invalid(path, format!("id {id} is not mapped in the user namespace")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn maps_of(linux: Value) -> Result<Option<IdMaps>> {
        maps(&serde_json::from_value(linux).unwrap())
    }

    fn two_ranges() -> IdMaps {
        let users = vec![
            IdMap { inside: 0, outside: 1000, size: 1 },
            IdMap { inside: 1, outside: 100_000, size: 65536 },
        ];
        IdMaps { groups: users.clone(), users }
    }

    #[test]
    fn mappings_become_maps() {
        let range = |container, host, size| json!({"containerID": container, "hostID": host, "size": size});
        let list = json!([range(0, 1000, 1), range(1, 100_000, 65536)]);
        let linux = json!({"namespaces": [{"type": "user"}], "uidMappings": list, "gidMappings": list});
        assert_eq!(maps_of(linux).unwrap(), Some(two_ranges()));
        assert_eq!(maps_of(json!({})).unwrap(), None);
        assert_eq!(maps_of(json!({"uidMappings": [range(0, 0, 1)]})).unwrap(), None);
        for (linux, message) in [
            (json!({"namespaces": [{"type": "user"}]}), "linux.uidMappings: no range contains id 0"),
            (
                json!({"namespaces": [{"type": "user"}], "uidMappings": [range(0, 5, 0)]}),
                "linux.uidMappings[0]: not a valid range of ids",
            ),
            (
                json!({"namespaces": [{"type": "user"}], "uidMappings": [range(0, u32::MAX, 2)]}),
                "linux.uidMappings[0]: not a valid range of ids",
            ),
            (
                json!({"namespaces": [{"type": "user"}], "uidMappings": [range(0, 5, 1)], "gidMappings": [range(1, 5, 1)]}),
                "linux.gidMappings: no range contains id 0",
            ),
        ] {
            assert_eq!(maps_of(linux).unwrap_err().to_string(), format!("config.json {message}"));
        }
    }

    #[test]
    fn owners_are_translated_to_guest_ids() {
        let mount =
            |kind: &str, data: &str| Mount { kind: kind.into(), data: data.into(), ..Mount::default() };
        let mut mounts = [
            mount("tmpfs", "mode=755,uid=7"),
            mount("tmpfs", ""),
            mount("devpts", "newinstance,gid=5"),
            mount("proc", ""),
        ];
        translate_mounts(&two_ranges(), &mut mounts).unwrap();
        let data = mounts.map(|mount| mount.data);
        assert_eq!(data, ["mode=755,uid=100006,gid=1000", "uid=1000,gid=1000", "newinstance,gid=100004", ""]);
        assert!(translate_mounts(&two_ranges(), &mut [mount("tmpfs", "uid=70000")]).is_err());
        assert!(translate_mounts(&two_ranges(), &mut [mount("tmpfs", "uid=x")]).is_err());
        let mut devices = [Device { uid: 1, gid: 0, ..Device::default() }];
        translate_devices(&two_ranges(), &mut devices).unwrap();
        assert_eq!((devices[0].uid, devices[0].gid), (100_000, 1000));
    }
}
