//! The `kanmon` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_userspace::cli::main()
}
