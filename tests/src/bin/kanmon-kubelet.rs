//! The test bed's kubelet: see [`tests::kubelet`] for what it does and what it does not.

use std::process::ExitCode;

use clap::Parser;
use tests::kubelet;

fn main() -> ExitCode {
    match kubelet::run(kubelet::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
