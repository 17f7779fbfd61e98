//! The error of a command: a code for the host's decisions, and a text with step, operand and cause.

use alloc::format;
use alloc::string::String;

use agent_proto::payload::{ErrorCode, ErrorReply};
use rustix::io::Errno;

/// Exit code of a process that could not be started for another reason than its program.
pub const START_FAILED: i32 = 125;

/// An error that is reported to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Kind of failure.
    pub code: ErrorCode,
    /// Text for the user.
    pub text: String,
}

impl Error {
    /// Returns an error of `code` with `text`.
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Error {
        Error { code, text: text.into() }
    }

    /// Returns an error with code [`ErrorCode::Failed`].
    pub fn failed(text: impl Into<String>) -> Error {
        Error::new(ErrorCode::Failed, text)
    }

    /// Returns the error of an invalid command.
    pub fn bad_request(text: impl Into<String>) -> Error {
        Error::new(ErrorCode::BadRequest, text)
    }

    /// Returns the error for an unknown name.
    pub fn not_found(what: &str, name: &str) -> Error {
        Error::new(ErrorCode::NotFound, format!("no such {what}: {name}"))
    }

    /// Returns the exit code that API 4244 reports for a process that could not be started.
    pub fn exit_code(&self) -> i32 {
        match self.code {
            ErrorCode::NotExecutableMissing => 127,
            ErrorCode::NotExecutable => 126,
            _ => START_FAILED,
        }
    }
}

impl From<Error> for ErrorReply {
    fn from(error: Error) -> ErrorReply {
        ErrorReply { code: error.code, message: error.text }
    }
}

/// Adds step and operand to the error of a system call.
pub trait Step<T> {
    /// Converts the error of a system call into the error `verb operand: cause`.
    fn step(self, verb: &str, operand: &str) -> Result<T, Error>;
}

impl<T> Step<T> for rustix::io::Result<T> {
    fn step(self, verb: &str, operand: &str) -> Result<T, Error> {
        self.map_err(|errno| step_failed(verb, operand, errno))
    }
}

#[cold]
fn step_failed(verb: &str, operand: &str, errno: Errno) -> Error {
    let cause = cause(errno);
    if operand.is_empty() {
        Error::failed(format!("{verb}: {cause}"))
    } else {
        Error::failed(format!("{verb} {operand}: {cause}"))
    }
}

/// Returns the text for `errno`, or its number.
pub fn cause(errno: Errno) -> String {
    CAUSES
        .iter()
        .find(|(known, _)| *known == errno)
        .map_or_else(|| format!("error {}", errno.raw_os_error()), |(_, text)| (*text).into())
}

const CAUSES: &[(Errno, &str)] = &[
    (Errno::PERM, "operation not permitted"),
    (Errno::NOENT, "no such file or directory"),
    (Errno::SRCH, "no such process"),
    (Errno::IO, "input/output error"),
    (Errno::NXIO, "no such device or address"),
    (Errno::TOOBIG, "argument list too long"),
    (Errno::NOEXEC, "exec format error"),
    (Errno::BADF, "bad file descriptor"),
    (Errno::AGAIN, "resource temporarily unavailable"),
    (Errno::NOMEM, "cannot allocate memory"),
    (Errno::ACCESS, "permission denied"),
    (Errno::BUSY, "device or resource busy"),
    (Errno::EXIST, "file exists"),
    (Errno::XDEV, "invalid cross-device link"),
    (Errno::NODEV, "no such device (the guest kernel may lack its driver or file system)"),
    (Errno::NOTDIR, "not a directory"),
    (Errno::ISDIR, "is a directory"),
    (Errno::INVAL, "invalid argument"),
    (Errno::CONNREFUSED, "connection refused"),
    (Errno::TIMEDOUT, "connection timed out"),
    (Errno::MFILE, "too many open files"),
    (Errno::TXTBSY, "text file busy"),
    (Errno::NOSPC, "no space left on device"),
    (Errno::ROFS, "read-only file system"),
    (Errno::PIPE, "broken pipe"),
    (Errno::NAMETOOLONG, "file name too long"),
    (Errno::NOSYS, "function not implemented in the guest kernel"),
    (Errno::NOTEMPTY, "directory not empty"),
    (Errno::LOOP, "too many levels of symbolic links"),
    (Errno::OPNOTSUPP, "operation not supported"),
    (Errno::ADDRNOTAVAIL, "cannot assign requested address"),
    (Errno::NETUNREACH, "network is unreachable"),
    (Errno::HOSTUNREACH, "no route to host"),
    (Errno::TIMEDOUT, "timed out"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_step_operand_and_cause() {
        let error = Err::<(), _>(Errno::NOENT).step("mount", "/proc").unwrap_err();
        assert_eq!(error, Error::failed("mount /proc: no such file or directory"));
    }

    #[test]
    fn unknown_cause_is_its_number() {
        assert_eq!(cause(Errno::BADMSG), "error 74");
    }

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(Error::new(ErrorCode::NotExecutableMissing, "").exit_code(), 127);
        assert_eq!(Error::new(ErrorCode::NotExecutable, "").exit_code(), 126);
        assert_eq!(Error::failed("").exit_code(), 125);
    }
}
