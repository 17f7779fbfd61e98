//! WRITEFILE and READFILE: files of a container, accessed through the root of its init process.
//!
//! All paths are resolved inside that root. Only regular files are opened, so that devices and FIFOs of the container
//! cannot block the agent or have side effects.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use agent_proto::command::{CONTROL_FRAME_MAX, CONTROL_HEADER, Code};
use agent_proto::control::CONTROL_ID;
use agent_proto::payload::FileCommand;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::container::rootfs::{Root, kind};
use crate::error::{Error, Step};
use crate::state::{Setting, State};

/// Limit of bytes of a file in one reply.
pub const READ_MAX: usize = CONTROL_FRAME_MAX - CONTROL_HEADER - CONTROL_ID;
/// Limit of bytes that are read at a time, because files in /proc do not report their size.
const READ_STEP: usize = 64 << 10;

impl State {
    /// Writes the data after the command's JSON. Without an offset they replace the content of the file; with an offset
    /// they are written there. A missing file and missing parent directories are created.
    pub(crate) fn write_file(&mut self, payload: &[u8]) -> Result<(), Error> {
        let (command, data) = split(payload)?;
        let root = self.root_of(&command.container)?;
        let path = command.file.as_str();
        let found = root.create_file(path)?;
        let flags = if command.offset.is_some() { OFlags::WRONLY } else { OFlags::WRONLY | OFlags::TRUNC };
        let file = open_regular(&found, flags).step("open", path)?;
        let mut at = command.offset.unwrap_or(0);
        let mut rest = data;
        while !rest.is_empty() {
            match rustix::io::pwrite(&file, rest, at) {
                Ok(0) => return Err(Errno::NOSPC).step("write", path),
                Ok(count) => {
                    rest = &rest[count..];
                    at += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).step("write", path),
            }
        }
        Ok(())
    }

    /// Returns the content of the file, or the requested part of it.
    pub(crate) fn read_file(&mut self, command: &FileCommand) -> Result<Vec<u8>, Error> {
        let root = self.root_of(&command.container)?;
        let path = command.file.as_str();
        let file =
            root.find(path).and_then(|found| open_regular(&found, OFlags::RDONLY)).step("open", path)?;
        let length =
            command.length.map_or(usize::MAX, |length| usize::try_from(length).unwrap_or(usize::MAX));
        let start = command.offset.unwrap_or(0);
        let mut data = Vec::new();
        while data.len() < length {
            // Read one byte more than fits into a reply, to detect files that are too large.
            let room = (READ_MAX + 1 - data.len()).min(READ_STEP).min(length - data.len());
            if room == 0 {
                return Err(too_large(path));
            }
            let filled = data.len();
            data.resize(filled + room, 0);
            let read = rustix::io::pread(&file, &mut data[filled..], start + filled as u64);
            let count = match read {
                Err(Errno::INTR) => 0,
                other => other.step("read", path)?,
            };
            data.truncate(filled + count);
            if read == Ok(0) {
                break;
            }
        }
        if data.len() > READ_MAX { Err(too_large(path)) } else { Ok(data) }
    }

    fn root_of(&self, id: &str) -> Result<Root, Error> {
        let (pid, _) = self.init_of(id)?;
        match self.setting {
            Setting::Guest => Root::open(&format!("/proc/{}/root", pid.as_raw_nonzero())),
            Setting::Host => Root::open("/"),
        }
    }
}

/// Splits WRITEFILE's payload into a JSON object and the data that follow it.
fn split(payload: &[u8]) -> Result<(FileCommand, &[u8]), Error> {
    let code = Code::WriteFile;
    let mut objects = serde_json::Deserializer::from_slice(payload).into_iter::<FileCommand>();
    match objects.next() {
        Some(Ok(command)) => {
            let data = &payload[objects.byte_offset()..];
            Ok((command, data))
        }
        Some(Err(error)) => Err(Error::bad_request(format!("{code:?}: {error}"))),
        None => Err(Error::bad_request(format!("{code:?}: no JSON"))),
    }
}

/// Opens the file of `found`, if it is a regular file. The magic link in /proc refers to exactly that file, even if its
/// name has been reused.
fn open_regular(found: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    match kind(found) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Errno::ISDIR),
        _ => return Err(Errno::OPNOTSUPP),
    }
    let path: String = format!("/proc/self/fd/{}", found.as_raw_fd());
    rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
}

fn too_large(path: &str) -> Error {
    Error::failed(format!("read {path}: larger than {READ_MAX} bytes, the limit of one reply"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_begin_after_the_object_even_with_braces_in_its_strings() {
        let (command, data) = split(br#"{"container":"c","file":"/a}\"{b"}} {data"#).unwrap();
        assert_eq!((command.file.as_str(), data), ("/a}\"{b", &b"} {data"[..]));
        let (_, data) = split(br#"{"container":"c","file":"/a"}"#).unwrap();
        assert_eq!(data, b"");
        let (_, data) = split(b"{\"container\":\"c\",\"file\":\"/a\"}\xff\0").unwrap();
        assert_eq!(data, [0xff, 0]);
    }

    #[test]
    fn payload_without_an_object_is_refused() {
        assert_eq!(split(b"").unwrap_err().text, "WriteFile: no JSON");
        assert!(split(br#"{"container":"c"}data"#).unwrap_err().text.contains("missing field `file`"));
        assert!(split(b"data").is_err());
    }
}
