//! `kanmon drain` and `kanmon undrain`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::{Output, print};
use crate::status::DEFAULT_SOCKET;
use crate::status::client::ask;
use crate::status::protocol::{Change, Named};
use crate::status::view::Drained;

/// What is to be drained or undrained, and where.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A cluster's name, or a backend as `kanmon backends` shows it: 10.0.1.10:8080, [fd00:10::a]:8080; with /tcp
    /// or /udp only that one of the two.
    #[arg(value_name = "CLUSTER|BACKEND")]
    what: String,
    /// The agent's socket.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Sentences for people, or JSON for programs.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

pub(super) fn drain(arguments: Arguments) -> Result<()> {
    run(arguments, Change::Drain)
}

pub(super) fn undrain(arguments: Arguments) -> Result<()> {
    run(arguments, Change::Undrain)
}

fn run(arguments: Arguments, change: impl FnOnce(Named) -> Change) -> Result<()> {
    let done: Drained = ask(&arguments.socket, &change(Named { what: arguments.what }))?;
    print(&match arguments.output {
        Output::Table => explain(&done),
        Output::Json => serde_json::to_string_pretty(&done).context("cannot write JSON")? + "\n",
    })
}

/// What was done, a line for each name, and then what else there is to know.
fn explain(done: &Drained) -> String {
    let state = match (done.drained, done.changed) {
        (true, true) => "is drained",
        (true, false) => "was drained by hand already",
        (false, true) => "is no longer drained by hand",
        (false, false) => "was not drained by hand",
    };
    let mut text: String = done.names.iter().map(|name| format!("{name} {state}\n")).collect();
    if done.drained && done.in_force && done.backends > 0 {
        let (backends, flows) = (count(done.backends as u64, "backend"), count(done.flows, "flow"));
        text.push_str(&format!("{backends}: no new connections; {flows} left\n"));
    }
    for note in &done.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text
}

fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(drained: bool, changed: bool) -> Drained {
        Drained {
            names: vec!["cluster hangzhou".into()],
            drained,
            changed,
            in_force: true,
            backends: 3,
            flows: 1,
            notes: Vec::new(),
        }
    }

    #[test]
    fn a_drain_tells_what_it_left_and_what_else_there_is_to_know() {
        let notes = vec!["service 192.0.2.1:80/TCP has nothing else".to_owned()];
        assert_eq!(
            explain(&Drained { notes, ..done(true, true) }),
            "cluster hangzhou is drained\n3 backends: no new connections; 1 flow left\n\
             note: service 192.0.2.1:80/TCP has nothing else\n"
        );
    }

    #[test]
    fn what_was_so_already_is_told_as_such_and_is_no_error() {
        assert!(explain(&done(true, false)).starts_with("cluster hangzhou was drained by hand already\n"));
        assert_eq!(explain(&done(false, false)), "cluster hangzhou was not drained by hand\n");
        assert_eq!(explain(&done(false, true)), "cluster hangzhou is no longer drained by hand\n");
    }
}
