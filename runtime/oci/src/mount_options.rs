//! Translates mount(8)'s option words to mount(2)'s arguments (config.md, "Mounts"; runc's table of options).

use libc::{
    MOUNT_ATTR__ATIME, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY, MOUNT_ATTR_RELATIME,
    MOUNT_ATTR_STRICTATIME, MS_BIND, MS_DIRSYNC, MS_I_VERSION, MS_LAZYTIME, MS_MANDLOCK, MS_NOATIME,
    MS_NODEV, MS_NODIRATIME, MS_NOEXEC, MS_NOSUID, MS_POSIXACL, MS_PRIVATE, MS_RDONLY, MS_REC, MS_RELATIME,
    MS_REMOUNT, MS_SHARED, MS_SILENT, MS_SLAVE, MS_STRICTATIME, MS_SYNCHRONOUS, MS_UNBINDABLE,
};

/// From linux/mount.h; libc does not define it.
pub const MS_NOSYMFOLLOW: u64 = 256;

/// Arguments of mount(2) and mount_setattr(2) for a list of option words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// MS_* flags without propagation.
    pub flags: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE, possibly with MS_REC; 0 for no change of propagation.
    pub propagation: u64,
    /// MOUNT_ATTR_* to set on the mount and all mounts below it.
    pub recursive_set: u64,
    /// MOUNT_ATTR_* to clear on the same mounts.
    pub recursive_clear: u64,
    /// Whether the directory's content is copied into the mount (`tmpcopyup`).
    pub copy_up: bool,
    /// Options of the file system, joined with commas.
    pub data: String,
}

/// Words that set (`true`) or clear (`false`) flags.
const FLAGS: [(&str, bool, u64); 35] = [
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
    ("rw", false, MS_RDONLY),
    ("silent", true, MS_SILENT),
    ("strictatime", true, MS_STRICTATIME),
    ("suid", false, MS_NOSUID),
    ("symfollow", false, MS_NOSYMFOLLOW),
    ("sync", true, MS_SYNCHRONOUS),
];

/// Words that set (`true`) or clear (`false`) attributes of a mount and of all mounts below it.
const RECURSIVE: [(&str, bool, u64); 18] = [
    ("ratime", false, MOUNT_ATTR__ATIME),
    ("rdev", false, MOUNT_ATTR_NODEV),
    ("rdiratime", false, MOUNT_ATTR_NODIRATIME),
    ("rexec", false, MOUNT_ATTR_NOEXEC),
    ("rnoatime", true, MOUNT_ATTR_NOATIME),
    ("rnodev", true, MOUNT_ATTR_NODEV),
    ("rnodiratime", true, MOUNT_ATTR_NODIRATIME),
    ("rnoexec", true, MOUNT_ATTR_NOEXEC),
    ("rnorelatime", false, MOUNT_ATTR__ATIME),
    ("rnostrictatime", false, MOUNT_ATTR__ATIME),
    ("rnosuid", true, MOUNT_ATTR_NOSUID),
    ("rnosymfollow", true, MOUNT_ATTR_NOSYMFOLLOW),
    ("rrelatime", true, MOUNT_ATTR_RELATIME),
    ("rro", true, MOUNT_ATTR_RDONLY),
    ("rrw", false, MOUNT_ATTR_RDONLY),
    ("rstrictatime", true, MOUNT_ATTR_STRICTATIME),
    ("rsuid", false, MOUNT_ATTR_NOSUID),
    ("rsymfollow", false, MOUNT_ATTR_NOSYMFOLLOW),
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

/// The word for a tmpfs that starts with a copy of the directory it covers.
pub const COPY_UP: &str = "tmpcopyup";

/// Whether the specification defines `word`, or `word` is empty. Other words are options of the file system.
pub fn is_known(word: &str) -> bool {
    word.is_empty() || words().any(|known| known == word)
}

/// Returns all words that the specification defines.
pub fn words() -> impl Iterator<Item = &'static str> {
    let words = FLAGS.iter().chain(&RECURSIVE).map(|(name, ..)| *name);
    words.chain(PROPAGATION.iter().map(|(name, _)| *name)).chain([COPY_UP])
}

/// Returns the propagation flags of `word`.
pub fn propagation(word: &str) -> Option<u64> {
    PROPAGATION.iter().find(|(name, _)| *name == word).map(|(_, flags)| *flags)
}

impl MountOptions {
    /// Parses `words` in order. A later word overrides an earlier one, as in mount(8).
    pub fn parse(words: &[String]) -> MountOptions {
        let mut options = MountOptions::default();
        for word in words {
            if let Some(&(_, set, flags)) = FLAGS.iter().find(|(name, ..)| name == word) {
                options.flags = if set { options.flags | flags } else { options.flags & !flags };
            } else if let Some(&(_, set, attribute)) = RECURSIVE.iter().find(|(name, ..)| name == word) {
                options.change(set, attribute);
            } else if let Some(flags) = propagation(word) {
                options.propagation = flags;
            } else if word == COPY_UP {
                options.copy_up = true;
            } else if !word.is_empty() {
                if !options.data.is_empty() {
                    options.data.push(',');
                }
                options.data.push_str(word);
            }
        }
        options
    }

    fn change(&mut self, set: bool, attribute: u64) {
        // Attributes in the mask of the access time are values of one field: a new value first clears the old one.
        let access_time = attribute & !MOUNT_ATTR__ATIME == 0;
        let bits = if access_time { MOUNT_ATTR__ATIME } else { attribute };
        self.recursive_set &= !bits;
        self.recursive_clear &= !bits;
        if set {
            self.recursive_set |= attribute;
        }
        if access_time || !set {
            self.recursive_clear |= bits;
        }
    }

    /// Adds the flags of the mount on which a bind's source is, which the bind keeps. Given options decide about access
    /// times.
    pub fn keep(&mut self, source: u64) {
        let given = self.flags & (MS_NOATIME | MS_NODIRATIME | MS_RELATIME | MS_STRICTATIME) != 0;
        self.flags |= if given { source & !(MS_NOATIME | MS_NODIRATIME) } else { source };
    }

    /// Returns the MOUNT_ATTR_* about access times, and whether they are for the mounts below as well. `None` if no word
    /// is about them.
    pub fn access_time(&self) -> Option<(u64, bool)> {
        const ALL: u64 = MOUNT_ATTR__ATIME | MOUNT_ATTR_NODIRATIME;
        if (self.recursive_set | self.recursive_clear) & ALL != 0 {
            return Some((self.recursive_set & ALL, true));
        }
        let time = match self.flags {
            flags if flags & MS_NOATIME != 0 => MOUNT_ATTR_NOATIME,
            flags if flags & MS_STRICTATIME != 0 => MOUNT_ATTR_STRICTATIME,
            flags if flags & (MS_RELATIME | MS_NODIRATIME) != 0 => MOUNT_ATTR_RELATIME,
            _ => return None,
        };
        let directories = if self.flags & MS_NODIRATIME != 0 { MOUNT_ATTR_NODIRATIME } else { 0 };
        Some((time | directories, false))
    }

    pub fn read_only(&self) -> bool {
        self.flags & MS_RDONLY != 0 || self.recursive_set & MOUNT_ATTR_RDONLY != 0
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
            ("bind slave", MS_BIND, MS_SLAVE, ""),
            ("newinstance ptmxmode=0666 gid=5", 0, 0, "newinstance,ptmxmode=0666,gid=5"),
            ("noatime atime defaults sync async dirsync", MS_DIRSYNC, 0, ""),
            ("nosuid suid nodev dev noexec exec", 0, 0, ""),
            ("relatime nodiratime remount", MS_RELATIME | MS_NODIRATIME | MS_REMOUNT, 0, ""),
        ] {
            let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
            let data = data.to_owned();
            let expected = MountOptions { flags, propagation, data, ..MountOptions::default() };
            assert_eq!(MountOptions::parse(&words), expected, "{words:?}");
        }
    }

    #[test]
    fn recursive_words_become_attributes() {
        for (words, set, clear) in [
            ("rro", 1, 0),
            ("rro rrw", 0, 1),
            ("rrw rro", 1, 0),
            ("rnosuid rnodev rnoexec", 0xe, 0),
            ("rsuid rdev rexec rdiratime rsymfollow", 0, 0x20_008e),
            ("rnoatime", 0x10, 0x70),
            ("rnoatime ratime", 0, 0x70),
            ("rnoatime rstrictatime rnodiratime", 0xa0, 0x70),
            ("rrelatime", 0, 0x70),
        ] {
            let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
            let expected = MountOptions { recursive_set: set, recursive_clear: clear, ..Default::default() };
            assert_eq!(MountOptions::parse(&words), expected, "{words:?}");
            assert_eq!(expected.read_only(), set & 1 != 0);
        }
    }

    /// config.md, "Linux mount options": the words of the table in its order, without idmap and ridmap.
    #[test]
    fn every_word_of_the_specification_is_known() {
        let words = "async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev \
            nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime \
            rbind rdev rdiratime relatime remount rexec rnoatime rnodiratime rnoexec rnorelatime rnostrictatime rnosuid \
            rnosymfollow ro rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared \
            silent slave strictatime suid sync tmpcopyup unbindable";
        for word in words.split_whitespace() {
            assert!(is_known(word), "{word}");
        }
        assert!(!is_known("size=1m") && !is_known("idmap"));
    }
}
