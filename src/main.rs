//! The `tailrace` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    tailrace::cli::main()
}
