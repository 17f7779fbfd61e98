//! Names that a guest sends, checked once.

use std::ffi::CStr;

use super::errno::{Errno, Result};
use super::tree::{MAX_NAME, is_plain};

/// A name of one component: it can only lead to an entry of its directory.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a>(&'a CStr);

impl<'a> Name<'a> {
    /// Checks a name. ENAMETOOLONG if it is too long, EINVAL if it is empty, `.`, `..` or contains a slash.
    pub fn new(name: &'a CStr) -> Result<Name<'a>> {
        match name.count_bytes() {
            len if len > MAX_NAME => Err(Errno(libc::ENAMETOOLONG)),
            _ if is_plain(name.to_bytes()) => Ok(Name(name)),
            _ => Err(Errno(libc::EINVAL)),
        }
    }

    /// The name as a string for system calls.
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }
}

/// The name of an extended attribute. Operations refuse those that the guest may not use.
#[derive(Clone, Copy, Debug)]
pub struct XattrName<'a>(&'a CStr);

impl<'a> XattrName<'a> {
    /// Checks a name. ERANGE if it is empty or longer than 255 bytes.
    pub fn new(name: &'a CStr) -> Result<XattrName<'a>> {
        if name.is_empty() || name.count_bytes() > MAX_NAME {
            Err(Errno(libc::ERANGE))
        } else {
            Ok(XattrName(name))
        }
    }

    /// The name as a string for system calls.
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_component_of_limited_length() {
        for name in [c"", c".", c"..", c"/", c"a/b", c"../etc"] {
            assert_eq!(Name::new(name).err(), Some(Errno(libc::EINVAL)), "{name:?}");
        }
        assert_eq!(Name::new(c"...").unwrap().as_c_str(), c"...");
        let [longest, longer] = [255, 256].map(|len| std::ffi::CString::new("x".repeat(len)).unwrap());
        assert!(Name::new(&longest).is_ok() && XattrName::new(&longest).is_ok());
        assert_eq!(Name::new(&longer).err(), Some(Errno(libc::ENAMETOOLONG)));
        assert_eq!(XattrName::new(&longer).err(), Some(Errno(libc::ERANGE)));
        assert_eq!(XattrName::new(c"").err(), Some(Errno(libc::ERANGE)));
    }
}
