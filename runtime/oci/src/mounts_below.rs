//! Mounts of the host below the source of a read-only bind. `ro` is about the bind alone (config.md, "Mounts"): what is
//! mounted below keeps its own options, unless `rro` is given as well.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::mount_options::MountOptions;
use crate::spec::Mount;

/// Maximum number of mounts below one bind. If there are more, they are read-only with it.
pub const MOUNTS_BELOW_MAX: usize = 64;

/// A mount below the source of a bind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountBelow {
    /// Path, relative to the source.
    pub path: PathBuf,
    /// MS_* flags.
    pub flags: u64,
}

/// Whether the mounts below keep their own options while the bind itself is read-only.
pub fn keeps_own_options(mount: &Mount, source_flags: u64) -> bool {
    let options = MountOptions::parse(&mount.options);
    let read_only = (options.flags | source_flags) & libc::MS_RDONLY != 0;
    let of_all = options.recursive_set & libc::MOUNT_ATTR_RDONLY != 0;
    read_only && options.flags & libc::MS_REC != 0 && !of_all
}

/// Returns the mounts below a directory, parents first, from the text of `/proc/self/mountinfo` (proc(5)).
pub fn find(mountinfo: &str, directory: &Path) -> Vec<MountBelow> {
    let mut found: Vec<MountBelow> = Vec::new();
    for line in mountinfo.lines() {
        let mut fields = line.split(' ').skip(4);
        let (Some(point), Some(options)) = (fields.next(), fields.next()) else { continue };
        let point = unescaped(point);
        let Ok(path) = point.strip_prefix(directory) else { continue };
        if path == Path::new("") {
            // It covers what was found below an earlier mount there.
            found.clear();
            continue;
        }
        found.retain(|other| !other.path.starts_with(path));
        let words: Vec<String> = options.split(',').map(str::to_owned).collect();
        found.push(MountBelow { path: path.to_owned(), flags: MountOptions::parse(&words).flags });
    }
    found
}

/// mountinfo escapes blanks, tabs, newlines and backslashes as octal numbers.
fn unescaped(text: &str) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        let number = (byte == b'\\').then(|| after.get(..3)).flatten();
        let number = number.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(number.unwrap_or(byte));
        rest = if number.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_are_found_with_their_options() {
        let mountinfo = "20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                         30 20 0:5 / /data/old rw - tmpfs x rw\n\
                         31 20 8:2 / /data rw,relatime - ext4 /dev/sdb rw\n\
                         32 31 0:6 / /data/a\\040b ro,nosuid,noexec,relatime - tmpfs x rw\n\
                         33 31 0:7 / /data/c rw - tmpfs x rw\n\
                         34 33 0:8 / /data/c/d rw - tmpfs x rw\n\
                         35 20 0:9 / /database rw - tmpfs x rw\n\
                         36 31 0:9 / /data/c ro - tmpfs x rw\n";
        let below = |path: &str, flags| MountBelow { path: path.into(), flags };
        let first = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_RELATIME;
        let expected = [below("a b", first), below("c", libc::MS_RDONLY)];
        assert_eq!(find(mountinfo, Path::new("/data")), expected);
        assert_eq!(find(mountinfo, Path::new("/data/c/d")), []);
    }

    #[test]
    fn only_a_bind_with_what_is_below_it_has_mounts_with_other_options() {
        let keeps = |words: &str, flags| {
            let options = words.split(' ').map(str::to_owned).collect();
            keeps_own_options(&Mount { options, ..Mount::default() }, flags)
        };
        assert!(keeps("rbind ro", 0) && keeps("rbind", libc::MS_RDONLY));
        for words in ["rbind", "bind ro", "rbind ro rro", "rbind rro", "rbind ro rw"] {
            assert!(!keeps(words, 0), "{words}");
        }
    }
}
