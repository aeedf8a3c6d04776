//! `cargo xtask demo`: story S1's network, real traffic, and what breaks and heals in it.

use std::process::ExitCode;

use clap::Parser;
use tests::demo;

fn main() -> ExitCode {
    match demo::run(&demo::Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
