//! The error of a command: a code for the host's decisions, and a text with step, operand and cause.

use alloc::format;
use alloc::string::String;

use agent_proto::payload::{ErrorCode, ErrorReply};
use rustix::io::Errno;

/// Exit code of a process that could not be started for another reason than its program.
pub const START_FAILED: i32 = 125;

/// An error that is reported to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Kind of failure.
    pub code: ErrorCode,
    /// Text for the user.
    pub text: String,
}

impl Fault {
    /// Returns a fault of `code` with `text`.
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Fault {
        Fault { code, text: text.into() }
    }

    /// Returns a fault with code [`ErrorCode::Failed`].
    pub fn failed(text: impl Into<String>) -> Fault {
        Fault::new(ErrorCode::Failed, text)
    }

    /// Returns the fault of an invalid command.
    pub fn bad_request(text: impl Into<String>) -> Fault {
        Fault::new(ErrorCode::BadRequest, text)
    }

    /// Returns the fault for an unknown name.
    pub fn not_found(what: &str, name: &str) -> Fault {
        Fault::new(ErrorCode::NotFound, format!("no such {what}: {name}"))
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

impl From<Fault> for ErrorReply {
    fn from(fault: Fault) -> ErrorReply {
        ErrorReply { code: fault.code, message: fault.text }
    }
}

/// Adds step and operand to the error of a system call.
pub trait Step<T> {
    /// Converts an error into the fault `verb operand: cause`.
    fn step(self, verb: &str, operand: &str) -> Result<T, Fault>;
}

impl<T> Step<T> for rustix::io::Result<T> {
    fn step(self, verb: &str, operand: &str) -> Result<T, Fault> {
        self.map_err(|errno| step_failed(verb, operand, errno))
    }
}

#[cold]
fn step_failed(verb: &str, operand: &str, errno: Errno) -> Fault {
    let cause = cause(errno);
    if operand.is_empty() {
        Fault::failed(format!("{verb}: {cause}"))
    } else {
        Fault::failed(format!("{verb} {operand}: {cause}"))
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
        let fault = Err::<(), _>(Errno::NOENT).step("mount", "/proc").unwrap_err();
        assert_eq!(fault, Fault::failed("mount /proc: no such file or directory"));
    }

    #[test]
    fn unknown_cause_is_its_number() {
        assert_eq!(cause(Errno::BADMSG), "error 74");
    }

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(Fault::new(ErrorCode::NotExecutableMissing, "").exit_code(), 127);
        assert_eq!(Fault::new(ErrorCode::NotExecutable, "").exit_code(), 126);
        assert_eq!(Fault::failed("").exit_code(), 125);
    }
}
