//! The exit codes of `vmm run` and other commands.
//!
//! | code | condition |
//! |---|---|
//! | the container's | its init process exited |
//! | 128 + n | signal n killed it, or signal n ended `vmm` before the process ran |
//! | 125 | `vmm` failed: bad command line or bundle, no KVM, a guest that panicked, output that could not be written |
//! | 126 | the container's program exists and cannot be executed |
//! | 127 | the container's program does not exist |
//! | the first failed container's | `vmm pod run`: the first nonzero code in the podfile's order, else 0 |
//! | 1 | `vmm check` found that no guest can run; `vmm create`, `start` and so on failed, as in runc |
//! | 255 | `vmm exec` could not start the program, as in runc |
//!
//! A client that closes stdout (`| head`) is not a failure: the container's next write fails, as on a pipe. Any other
//! output that cannot be written (a full disk) is dropped, the container continues to its end, and the exit code is
//! 125, because the container's own code would hide the loss.

use agent_proto::payload::{ErrorCode, Exit};
use link::LinkError;

use crate::sandbox::SandboxError;
use crate::session::SessionError;

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CodedError {
    pub code: u8,
    pub message: String,
}

/// `vmm` itself failed.
pub const FAILED: u8 = 125;
/// A command of an OCI container's life failed, as in runc.
pub const OCI_FAILED: u8 = 1;
/// `vmm exec` could not start the program, as in runc.
pub const EXEC_FAILED: u8 = 255;
/// The container's program cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The container's program does not exist.
pub const NOT_FOUND: u8 = 127;

/// Returns the exit code for the end of the container's init process.
pub fn of_exit(exit: &Exit) -> u8 {
    match (exit.code, exit.signal) {
        (_, Some(signal)) => of_signal(signal),
        // An exit status has 8 bits. A larger one of the guest is truncated, as by a shell.
        (Some(code), None) => (code & 0xff) as u8,
        (None, None) => FAILED,
    }
}

/// Returns the exit code for death by `signal`: 128 + n.
pub fn of_signal(signal: i32) -> u8 {
    128 + (signal & 0x7f) as u8
}

/// Returns the exit code for an error that the agent reported.
pub fn of_agent_error(code: ErrorCode) -> u8 {
    match code {
        ErrorCode::NotExecutableMissing => NOT_FOUND,
        ErrorCode::NotExecutable => NOT_EXECUTABLE,
        _ => FAILED,
    }
}

/// Returns the exit code and the printed line for an error of `vmm`.
pub fn of_error(error: &anyhow::Error) -> (u8, String) {
    let mut message = without_numbers(&format!("{error:#}"));
    if let Some(CodedError { code, .. }) = error.downcast_ref() {
        return (*code, message);
    }
    let code = match error.downcast_ref::<SessionError>() {
        Some(SessionError::Interrupted(signal)) => of_signal(*signal),
        // The signal's purpose, the end of the container, is achieved.
        Some(SessionError::Unkilled { .. }) => of_signal(libc::SIGKILL),
        Some(SessionError::Link(LinkError::Refused { code, .. })) => of_agent_error(*code),
        _ => FAILED,
    };
    if is_kvm(error) {
        message += " (`vmm check` says what is missing)";
    }
    (code, message)
}

/// Removes ` (os error N)`, which the standard library appends to the system's messages.
fn without_numbers(message: &str) -> String {
    let mut words = message.split(" (os error ");
    let mut plain = words.next().unwrap_or_default().to_owned();
    for rest in words {
        match rest.split_once(')') {
            Some((number, rest)) if number.bytes().all(|b| b.is_ascii_digit()) => plain += rest,
            _ => {
                plain += " (os error ";
                plain += rest;
            }
        }
    }
    plain
}

fn is_kvm(error: &anyhow::Error) -> bool {
    let error = match error.downcast_ref::<SandboxError>() {
        Some(SandboxError::Vm(error)) => Some(error),
        _ => error.downcast_ref::<vmm::Error>(),
    };
    matches!(error, Some(vmm::Error::Kvm(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_words_stand_without_their_numbers() {
        let check = |given: &str, wanted: &str| assert_eq!(without_numbers(given), wanted);
        check("open /x: No such file or directory (os error 2)", "open /x: No such file or directory");
        check("a (os error 2), b (os error 13)!", "a, b!");
        check("a file called (os error x) and (os error 2", "a file called (os error x) and (os error 2");
    }

    #[test]
    fn every_way_to_end_has_its_code() {
        let exit = |code, signal| Exit { code, signal, ..Exit::default() };
        for code in 0..=255 {
            assert_eq!(of_exit(&exit(Some(code), None)), code as u8);
        }
        assert_eq!(of_exit(&exit(None, Some(9))), 137);
        assert_eq!(of_exit(&exit(None, Some(64))), 192);
        assert_eq!(of_exit(&exit(None, None)), FAILED);
        assert_eq!(of_exit(&exit(Some(0x1_0102), None)), 2);
        assert_eq!(of_agent_error(ErrorCode::NotExecutableMissing), 127);
        assert_eq!(of_agent_error(ErrorCode::NotExecutable), 126);
        assert_eq!(of_agent_error(ErrorCode::Failed), 125);
    }
}
