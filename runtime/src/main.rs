//! The `vmm` command; [`runtime`] is its code.

use std::process::ExitCode;

fn main() -> ExitCode {
    runtime::main()
}
