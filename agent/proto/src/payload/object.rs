//! Deserialization of the agent's objects. serde's derive keeps every field of an object in a separate `Option`, also
//! reads arrays, and compares keys in three ways; for the objects of STARTPOD, NEWCONTAINER and EXECCMD that was a
//! sixth of the agent's size. The macro `object` writes each field directly into the default value, and one function
//! finds all keys.

use core::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, Visitor};

/// Implements `Deserialize` for an object from its keys and their fields. Missing keys keep the value of `Default`.
/// The [`Unknown`] determines how other keys are handled.
macro_rules! object {
    ($object:ident, $unknown:ident, { $($key:literal: $field:ident),+ $(,)? }) => {
        impl<'de> ::serde::Deserialize<'de> for $object {
            fn deserialize<D: ::serde::Deserializer<'de>>(from: D) -> Result<$object, D::Error> {
                #[allow(non_camel_case_types)]
                enum Field { $($field),+ }

                struct Fields;

                impl<'de> ::serde::de::Visitor<'de> for Fields {
                    type Value = $object;

                    fn expecting(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                        f.write_str("an object")
                    }

                    fn visit_map<A>(self, mut map: A) -> Result<$object, A::Error>
                    where
                        A: ::serde::de::MapAccess<'de>,
                    {
                        let mut object = $object::default();
                        let key = $crate::payload::object::Key {
                            names: &[$($key),+],
                            unknown: $crate::payload::object::Unknown::$unknown,
                        };
                        while let Some(index) = map.next_key_seed(key)? {
                            match index {
                                $(index if index == Field::$field as usize => object.$field = map.next_value()?,)+
                                _ => {
                                    map.next_value::<::serde::de::IgnoredAny>()?;
                                }
                            }
                        }
                        Ok(object)
                    }
                }

                from.deserialize_map(Fields)
            }
        }
    };
}

pub(super) use object;

/// Handling of a key that is not listed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unknown {
    /// The key is ignored.
    Ignored,
    /// The key is an error.
    Refused,
}

/// Reads a key and returns its index in `names`.
#[derive(Clone, Copy)]
pub(super) struct Key {
    pub names: &'static [&'static str],
    pub unknown: Unknown,
}

impl<'de> DeserializeSeed<'de> for Key {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<usize, D::Error> {
        from.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Key {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<usize, E> {
        match self.names.iter().position(|name| *name == key) {
            None if self.unknown == Unknown::Refused => Err(E::unknown_field(key, self.names)),
            found => Ok(found.unwrap_or(usize::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use serde_json::{Value, json};

    use crate::payload::Pod;

    /// A pod with all keys and no default values.
    fn pod() -> Value {
        let process = json!({
            "id": "init", "user": "u", "group": "g", "additionalGroups": ["a"], "terminal": true,
            "stdio": 1, "stderr": 2,
            "args": ["sh"], "envs": [{"env": "A", "value": "b"}], "workdir": "/w", "rows": 3, "columns": 4,
            "rlimits": [{"type": "RLIMIT_CORE", "hard": 6, "soft": 5}],
            "oci": {
                "capabilities": {"bounding": 1, "effective": 2, "inheritable": 3, "permitted": 4, "ambient": 5},
                "noNewPrivileges": true, "umask": 18, "oomScoreAdj": -5, "ioPriority": 7, "personality": 8,
                "scheduler": {
                    "policy": 1, "flags": 2, "nice": 3, "priority": 4, "runtime": 5, "deadline": 6, "period": 7
                },
                "seccomp": {"program": "0123456789abcdef", "flags": 1}, "cgroup": "c",
            },
        });
        let range = json!([{"inside": 1, "outside": 2, "size": 3}]);
        let oci = json!({
            "namespaces": ["pid"], "hostname": "h", "domainname": "d", "maskedPaths": ["/m"], "readonlyPaths": ["/r"],
            "mounts": [{
                "destination": "/d", "type": "tmpfs", "source": "s", "flags": 1, "propagation": 2, "recursiveSet": 3,
                "recursiveClear": 4, "copyUp": true, "data": "x",
            }],
            "devices": [{"path": "/dev/x", "mode": 1, "major": 2, "minor": 3, "uid": 4, "gid": 5}],
            "deviceRules": ["deny a"], "cgroup": {"pids.max": "1"},
            "userNamespace": {"users": range, "groups": range}, "timeOffsets": "t", "rootPropagation": 9,
        });
        json!({
            "hostname": "h", "dns": ["1.1.1.1"], "dnsSearch": ["s"], "dnsOptions": ["o"], "shareDir": "share",
            "shareType": "9p", "portmappingWhiteLists": {"internalNetworks": ["10.0.0.0/8"]},
            "restartPolicy": "never", "accounting": true, "routes": [{"dest": "d", "gateway": "g", "device": "e"}],
            "interfaces": [{
                "device": "eth0", "newDeviceName": "e", "ipAddresses": [{"ipAddress": "i", "netMask": "n"}], "mtu": 1,
                "macAddr": "m", "ipAddress": "i", "netMask": "n",
            }],
            "containers": [{
                "id": "c", "rootfs": "r", "image": "i", "addr": "a", "fstype": "f", "volumes": [null], "ports": [null],
                "fsmap": [{"source": "s", "path": "p", "readOnly": true, "dockerVolume": true}],
                "sysctl": {"a.b": "c"}, "process": process, "restartPolicy": "p", "initialize": true, "readOnly": true,
                "oci": oci,
            }],
        })
    }

    #[test]
    fn serialization_is_the_inverse_of_deserialization() {
        let read: Pod = serde_json::from_value(pod()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), pod());
    }

    #[test]
    fn unknown_keys_are_errors_only_in_the_extension() {
        let with = |path: &str| {
            let mut json = pod();
            json.pointer_mut(path).unwrap()["new"] = json!({"a": [1]});
            serde_json::from_value::<Pod>(json).map(drop).map_err(|error| error.to_string())
        };
        for path in
            ["", "/interfaces/0", "/containers/0", "/containers/0/process", "/containers/0/process/envs/0"]
        {
            assert_eq!(with(path), Ok(()), "{path}");
        }
        for path in ["/containers/0/oci", "/containers/0/oci/mounts/0", "/containers/0/process/oci"] {
            assert!(with(path).unwrap_err().starts_with("unknown field `new`"), "{path}");
        }
    }
}
