//! `vmm spec`: writes an initial config.json.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use oci::DEFAULT_CONFIG;

/// Writes [`DEFAULT_CONFIG`], which equals the output of `runc spec`, to config.json in `bundle`. Fails if the file
/// exists.
pub fn spec(bundle: &Path) -> Result<()> {
    let path = bundle.join("config.json");
    let write =
        || OpenOptions::new().write(true).create_new(true).open(&path)?.write_all(DEFAULT_CONFIG.as_bytes());
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_written_once() {
        let folder = tempfile::tempdir().unwrap();
        spec(folder.path()).unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("config.json")).unwrap(), DEFAULT_CONFIG);
        assert!(spec(folder.path()).is_err());
    }
}
