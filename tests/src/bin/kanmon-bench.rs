//! `cargo xtask bench`: Kanmon beside what does the same work, on story S1's network.

use std::process::ExitCode;

use clap::Parser;
use tests::bench;

fn main() -> ExitCode {
    match bench::run(&bench::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
