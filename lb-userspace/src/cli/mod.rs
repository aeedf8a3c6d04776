//! The `kanmon` command line.

mod crds;
mod drain;
mod follow;
mod preflight;
mod remote_secret;
mod tables;
mod uninstall;

use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bpf::PIN_DIR;
use crate::status::DEFAULT_SOCKET;
use crate::status::client::ask;
use crate::status::protocol::{FlowFilter, Request};
use crate::status::view;
use crate::{agent, config};

/// Kanmon: one address in front of the pods of several Kubernetes clusters.
#[derive(Debug, Parser)]
#[command(name = "kanmon", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent on this machine.
    Run(Box<config::Options>),
    /// Look at everything around a gateway before it is one: networks, routes, kernel, API servers.
    ///
    /// Takes what `kanmon run` takes. Exit code 1: something failed; warnings are none.
    Preflight(Box<preflight::Arguments>),
    /// Show the running agent at a glance.
    Status(Query),
    /// List the services that the running agent serves.
    Services(Query),
    /// List the backends of every service.
    Backends(Query),
    /// List client connections and the pods that they go to, or follow what happens to them.
    Flows(Flows),
    /// Give a cluster or a backend no new connections; those that it has go on.
    ///
    /// They live to their own end, or as long as the service's drainTimeout allows. `kanmon backends` shows how
    /// many flows are left. The drain survives restarts of the agent and ends by `kanmon undrain` alone: a service
    /// all of whose endpoints are drained refuses connections. It holds for this gateway; `state: Drain` of a
    /// MemberCluster drains on all.
    Drain(drain::Arguments),
    /// Give a cluster or a backend that was drained by hand new connections again.
    Undrain(drain::Arguments),
    /// Print or apply the definitions of Kanmon's resources: `kanmon crds | kubectl apply -f -`.
    Crds(crds::Crds),
    /// Register a Kubernetes cluster as a member: make its account, print the Secret.
    #[command(subcommand)]
    RemoteSecret(remote_secret::Command),
    /// Remove what the gateways wrote into their members and their own cluster.
    Uninstall(uninstall::Arguments),
    /// Remove what an agent left: XDP program, maps, links and socket.
    Cleanup(Cleanup),
    /// Print the version and the version of the map layout.
    Version,
}

/// Where to ask, and how to print.
#[derive(Debug, Args)]
struct Query {
    /// The agent's socket.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// A table for people, or JSON for programs.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, Args)]
struct Flows {
    #[command(flatten)]
    query: Query,
    /// Only flows of this service: NAME, NAMESPACE/NAME, VIP or VIP:PORT.
    #[arg(long)]
    service: Option<String>,
    /// Only flows of this client address.
    #[arg(long, value_name = "ADDRESS")]
    client: Option<IpAddr>,
    /// At most so many flows [default: 1000]; with --follow so many records [default: no limit].
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print what happens to flows from now on: opened, rescued, closed; with `-o json` a record a line.
    #[arg(short, long)]
    follow: bool,
}

/// Flows that are listed where nobody says how many.
const LISTED: usize = 1000;

#[derive(Debug, Args)]
struct Cleanup {
    /// Directory of the pins.
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pin_dir: PathBuf,
    /// The agent's socket, removed as well.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

/// Parses the command line and does what it says. Errors are printed to stderr, as one line and their causes.
#[must_use]
pub fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    let done = match command {
        Command::Preflight(arguments) => return preflight::run(*arguments),
        Command::Run(args) => agent::run(*args),
        Command::Status(query) => show(&query, &Request::Status, tables::status),
        Command::Services(query) => {
            show(&query, &Request::Services, |rows: &Vec<view::Service>| tables::services(rows))
        }
        Command::Backends(query) => {
            show(&query, &Request::Backends, |rows: &Vec<view::Backend>| tables::backends(rows))
        }
        Command::Flows(flows) => {
            if flows.follow {
                return follow::run(flows).map(|()| ExitCode::SUCCESS);
            }
            let limit = Some(flows.limit.unwrap_or(LISTED));
            let filter = FlowFilter { service: flows.service, client: flows.client, limit };
            show(&flows.query, &Request::Flows(filter), |rows: &Vec<view::Flow>| tables::flows(rows))
        }
        Command::Drain(arguments) => drain::drain(arguments),
        Command::Undrain(arguments) => drain::undrain(arguments),
        Command::Crds(args) => crds::run(args),
        Command::RemoteSecret(command) => remote_secret::run(command),
        Command::Uninstall(arguments) => uninstall::run(arguments),
        Command::Cleanup(cleanup) => {
            let removed = agent::cleanup(&cleanup.pin_dir, &cleanup.socket)?;
            print(&removed)
        }
        Command::Version => print(&format!(
            "kanmon {} (map layout {})\n",
            env!("CARGO_PKG_VERSION"),
            lb_common::abi::ABI_VERSION
        )),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn show<T: DeserializeOwned + Serialize>(
    query: &Query,
    request: &Request,
    table: impl FnOnce(&T) -> String,
) -> Result<()> {
    let view: T = ask(&query.socket, request)?;
    print(&match query.output {
        Output::Table => table(&view),
        Output::Json => serde_json::to_string_pretty(&view).context("cannot write JSON")? + "\n",
    })
}

fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// `kanmon flows | head` ends us before we have written everything: that is no error.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn explain(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}\n");
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Many errors of libraries repeat their cause in their own text.
        if !last.contains(&cause) {
            text.push_str(&format!("  because: {cause}\n"));
        }
        last = cause;
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_error_is_told_with_its_causes_and_without_repetition() {
        let error = anyhow::anyhow!("permission denied")
            .context("cannot read x: permission denied")
            .context("cannot start");
        assert_eq!(explain(&error), "error: cannot start\n  because: cannot read x: permission denied\n");
    }

    #[test]
    fn flows_can_be_filtered_and_printed_as_json() {
        let cli = Cli::parse_from(["kanmon", "flows", "--service", "demo/httpbin", "-o", "json"]);
        let Command::Flows(flows) = cli.command else { panic!("flows") };
        assert_eq!(flows.service.as_deref(), Some("demo/httpbin"));
        assert_eq!(flows.query.output, Output::Json);
    }
}
