//! mount(8)'s option words to mount(2)'s arguments (config.md, "Mounts"; runc's table of options).

use libc::{
    MS_BIND, MS_DIRSYNC, MS_I_VERSION, MS_LAZYTIME, MS_MANDLOCK, MS_NOATIME, MS_NODEV, MS_NODIRATIME,
    MS_NOEXEC, MS_NOSUID, MS_POSIXACL, MS_PRIVATE, MS_RDONLY, MS_REC, MS_RELATIME, MS_REMOUNT, MS_SHARED,
    MS_SILENT, MS_SLAVE, MS_STRICTATIME, MS_SYNCHRONOUS, MS_UNBINDABLE,
};

/// linux/mount.h; libc does not have it.
const MS_NOSYMFOLLOW: u64 = 256;

/// What mount(2) gets for a list of option words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// MS_* flags without propagation.
    pub flags: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE, with MS_REC or not; 0 for none.
    pub propagation: u64,
    /// The file system's own options, joined with commas.
    pub data: String,
}

/// Words that set (`true`) or clear flags. The recursive words (`rro`) of a bind are the plain ones here: a host
/// directory is one mount in the guest, whatever is mounted below it on the host.
const FLAGS: [(&str, bool, u64); 47] = [
    ("acl", true, MS_POSIXACL),
    ("async", false, MS_SYNCHRONOUS),
    ("atime", false, MS_NOATIME),
    ("bind", true, MS_BIND),
    ("defaults", true, 0),
    ("dev", false, MS_NODEV),
    ("diratime", false, MS_NODIRATIME),
    ("dirsync", true, MS_DIRSYNC),
    ("exec", false, MS_NOEXEC),
    ("iversion", true, MS_I_VERSION),
    ("lazytime", true, MS_LAZYTIME),
    ("loud", false, MS_SILENT),
    ("mand", true, MS_MANDLOCK),
    ("noacl", false, MS_POSIXACL),
    ("noatime", true, MS_NOATIME),
    ("nodev", true, MS_NODEV),
    ("nodiratime", true, MS_NODIRATIME),
    ("noexec", true, MS_NOEXEC),
    ("noiversion", false, MS_I_VERSION),
    ("nolazytime", false, MS_LAZYTIME),
    ("nomand", false, MS_MANDLOCK),
    ("norelatime", false, MS_RELATIME),
    ("nostrictatime", false, MS_STRICTATIME),
    ("nosuid", true, MS_NOSUID),
    ("nosymfollow", true, MS_NOSYMFOLLOW),
    ("rbind", true, MS_BIND | MS_REC),
    ("relatime", true, MS_RELATIME),
    ("remount", true, MS_REMOUNT),
    ("ro", true, MS_RDONLY),
    ("ratime", false, MS_NOATIME),
    ("rdev", false, MS_NODEV),
    ("rdiratime", false, MS_NODIRATIME),
    ("rexec", false, MS_NOEXEC),
    ("rnoatime", true, MS_NOATIME),
    ("rnodev", true, MS_NODEV),
    ("rnodiratime", true, MS_NODIRATIME),
    ("rnoexec", true, MS_NOEXEC),
    ("rnosuid", true, MS_NOSUID),
    ("rrelatime", true, MS_RELATIME),
    ("rro", true, MS_RDONLY),
    ("rrw", false, MS_RDONLY),
    ("rsuid", false, MS_NOSUID),
    ("rw", false, MS_RDONLY),
    ("silent", true, MS_SILENT),
    ("strictatime", true, MS_STRICTATIME),
    ("suid", false, MS_NOSUID),
    ("sync", true, MS_SYNCHRONOUS),
];

const PROPAGATION: [(&str, u64); 8] = [
    ("private", MS_PRIVATE),
    ("rprivate", MS_PRIVATE | MS_REC),
    ("rshared", MS_SHARED | MS_REC),
    ("rslave", MS_SLAVE | MS_REC),
    ("runbindable", MS_UNBINDABLE | MS_REC),
    ("shared", MS_SHARED),
    ("slave", MS_SLAVE),
    ("unbindable", MS_UNBINDABLE),
];

impl MountOptions {
    /// Reads `words` in order: a later word wins over an earlier one, as in mount(8).
    pub fn parse(words: &[String]) -> MountOptions {
        let mut options = MountOptions::default();
        for word in words {
            if let Some(&(_, set, flags)) = FLAGS.iter().find(|(name, ..)| name == word) {
                options.flags = if set { options.flags | flags } else { options.flags & !flags };
            } else if let Some(&(_, propagation)) = PROPAGATION.iter().find(|(name, _)| name == word) {
                options.propagation = propagation;
            } else {
                if !options.data.is_empty() {
                    options.data.push(',');
                }
                options.data.push_str(word);
            }
        }
        options
    }

    /// Whether the mount is read-only.
    pub fn read_only(&self) -> bool {
        self.flags & MS_RDONLY != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_flags_propagation_and_data() {
        for (words, flags, propagation, data) in [
            ("", 0, 0, ""),
            ("nosuid noexec nodev", MS_NOSUID | MS_NOEXEC | MS_NODEV, 0, ""),
            (
                "nosuid strictatime mode=755 size=65536k",
                MS_NOSUID | MS_STRICTATIME,
                0,
                "mode=755,size=65536k",
            ),
            ("ro rw", 0, 0, ""),
            ("rw ro", MS_RDONLY, 0, ""),
            ("rbind rprivate ro", MS_BIND | MS_REC | MS_RDONLY, MS_PRIVATE | MS_REC, ""),
            ("bind rro slave", MS_BIND | MS_RDONLY, MS_SLAVE, ""),
            ("newinstance ptmxmode=0666 gid=5", 0, 0, "newinstance,ptmxmode=0666,gid=5"),
            ("noatime atime defaults sync async dirsync", MS_DIRSYNC, 0, ""),
            ("nosuid suid nodev dev noexec exec", 0, 0, ""),
            ("relatime nodiratime remount", MS_RELATIME | MS_NODIRATIME | MS_REMOUNT, 0, ""),
        ] {
            let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
            let expected = MountOptions { flags, propagation, data: data.to_owned() };
            assert_eq!(MountOptions::parse(&words), expected, "{words:?}");
        }
    }
}
