//! The users of an ordinary user's containers.

use anyhow::{Context, Result};
use host::subordinate::{self, Range};
use host::{sys, user_namespace};
use oci::error::invalid;
use oci::spec::{IdMapping, Linux};

/// Gives the containers of an ordinary user that user's subordinate IDs. Must be called before threads exist, and before
/// this process gives up privileges. Translates the IDs of the host in a bundle's user namespace, which `linux` describes.
pub fn enter(linux: Option<&mut Linux>) -> Result<()> {
    if sys::effective_user() == 0 {
        return Ok(());
    }
    let ids = user_namespace::enter().context("enter a user namespace")?;
    if let Some(reason) = ids.single {
        log::info!("all of the container's files belong to the user: {reason}");
    }
    if let Some(linux) = linux.filter(|linux| linux.has_namespace("user")) {
        translate("linux.uidMappings", &mut linux.uid_mappings, &ids.users)?;
        translate("linux.gidMappings", &mut linux.gid_mappings, &ids.groups)?;
    }
    Ok(())
}

fn translate(path: &str, mappings: &mut [IdMapping], ranges: &[Range]) -> Result<()> {
    for (index, mapping) in mappings.iter_mut().enumerate() {
        let inside = subordinate::inside(ranges, mapping.host_id, mapping.size);
        let foreign = || invalid(&format!("{path}[{index}]"), "not IDs that this user may map");
        mapping.host_id = inside.ok_or_else(foreign)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_bundle_become_those_of_the_namespace_or_are_refused() {
        let ranges =
            [Range { inside: 0, outside: 1000, count: 1 }, Range { inside: 1, outside: 300, count: 9 }];
        let mapping = |host_id, size| IdMapping { container_id: 0, host_id, size };
        let mut mappings = [mapping(1000, 1), mapping(301, 8)];
        translate("p", &mut mappings, &ranges).unwrap();
        assert_eq!(mappings.map(|mapping| mapping.host_id), [0, 2]);
        let error = translate("p", &mut [mapping(1000, 1), mapping(0, 1)], &ranges).unwrap_err();
        assert!(error.to_string().ends_with("p[1]: not IDs that this user may map"), "{error}");
    }
}
