//! What continuous integration runs: style, documentation, tests, demo.

use std::ffi::OsString;

use anyhow::Result;

use crate::setup::{self, Need};
use crate::{build, run, test, workspace};

/// Runs every check, all of them even where one fails; the tests' closing line comes last.
///
/// Returns whether all of them are good.
///
/// # Errors
/// A tool that the checks need can't be had.
pub(crate) fn everything() -> Result<bool> {
    let route = setup::ensure(Need::Ci)?;
    let mut failed = Vec::new();
    let mut check = |name: &str, result: Result<()>| {
        if let Err(error) = result {
            eprintln!("error: {error:#}");
            failed.push(name.to_owned());
        }
    };

    heading("format");
    check("format", build::run(workspace::cargo().args(["fmt", "--all", "--check"]), "cargo fmt --check"));

    heading("the eBPF object");
    check("eBPF build", build::ebpf(route));

    heading("clippy");
    let mut clippy = workspace::cargo();
    // With the tests' profile: what the compiler itself runs, macros and build scripts, is then compiled once.
    clippy.args(["clippy", "--profile", build::SUITES, "--all-targets", "--", "-D", "warnings"]);
    check("clippy", build::run(&mut clippy, "clippy of the host's crates"));
    check("eBPF clippy", build::ebpf_clippy(route));

    heading("documentation");
    let mut doc = workspace::cargo();
    doc.args(["doc", "--profile", build::SUITES, "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings");
    check("documentation", build::run(&mut doc, "cargo doc"));

    heading("tests");
    let report = test::run(&test::Options::default());
    let closing = report.as_ref().ok().map(test::Report::closing_line);
    check("tests", report.and_then(|report| report.verdict()));

    // As the tests have built it: what else there is to a release takes as long to compile as they do.
    heading("demo");
    for (name, args) in [("demo", &["--quiet"][..]), ("demo with Kubernetes", &["--kubernetes", "--quiet"])] {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        check(name, run::demo_command(build::SUITES, &args).and_then(|mut demo| build::run(&mut demo, name)));
    }

    let good = failed.is_empty();
    println!(
        "=== {}",
        if good { "every check passed".to_owned() } else { format!("failed: {}", failed.join(", ")) }
    );
    if let Some(closing) = closing {
        println!("{closing}");
    }
    Ok(good)
}

fn heading(title: &str) {
    println!("=== {title}");
}
