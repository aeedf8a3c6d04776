//! `kanmon preflight`.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use super::Output;
use super::tables::plain;
use crate::config::{self, Options};
use crate::desired::{Network, NetworkKind, Site, parse_cidr};
use crate::network::snat::DEFAULT_NODE_PORTS;
use crate::preflight::{self, Member, Report, Request, Status};

/// What `kanmon run` takes, and what else is to be looked at.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    options: Options,

    /// A member cluster by its kubeconfig, before it is registered; give it several times for several
    #[arg(long = "member", value_name = "NAME=KUBECONFIG", value_parser = member, help_heading = "Preflight")]
    members: Vec<Member>,

    /// A network that no object declares: OWNER is `gateway` or a member, KIND vpc, vswitch, node, pod, service or vip
    #[arg(long = "cidr", value_name = "OWNER:KIND=CIDR", value_parser = network, help_heading = "Preflight")]
    networks: Vec<Network>,

    /// The clusters' --service-node-port-range [default: 30000-32767]
    #[arg(long, value_name = "FIRST-LAST", value_parser = port_range, help_heading = "Preflight")]
    node_ports: Option<RangeInclusive<u16>>,

    /// A table for people, or JSON for programs
    #[arg(short, long, value_enum, default_value_t = Output::Table, help_heading = "Preflight")]
    output: Output,
}

/// Looks, prints, and says by the exit code whether something failed.
pub(super) fn run(arguments: Arguments) -> Result<ExitCode> {
    let Arguments { mut options, members, networks, node_ports, output } = arguments;
    let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let has_source = options.manifests.is_some()
        || options.kubeconfig.is_some()
        || (in_pod && members.is_empty())
        || options.config.is_some();
    if !has_source {
        // A plan without clusters, or with members that are named one by one: the settings want a source all the same.
        options.manifests = Some(PathBuf::from("."));
    }
    let request = Request {
        settings: config::load(options)?,
        has_source,
        members,
        networks,
        node_ports: node_ports.unwrap_or(DEFAULT_NODE_PORTS),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let facts = runtime.block_on(preflight::gather(&request))?;
    let report = preflight::judge(&facts);
    super::print(&match output {
        Output::Table => table(&report),
        Output::Json => {
            let value = json!({"ok": report.worst() != Status::Failed, "findings": report.findings});
            serde_json::to_string_pretty(&value).context("cannot write JSON")? + "\n"
        }
    })?;
    Ok(if report.worst() == Status::Failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A line a check, and their sum.
fn table(report: &Report) -> String {
    let mut table = plain(&["STATUS", "CHECK", "SUBJECT", "FOUND"]);
    for finding in &report.findings {
        let found = match &finding.fix {
            Some(fix) => format!("{}. To do: {fix}", finding.message),
            None => finding.message.clone(),
        };
        table.add_row([finding.status.name(), &finding.check, &finding.subject, &found]);
    }
    let warnings = preflight::count(report.count(Status::Warning), "warning", "warnings");
    format!("{table}\n{} ok, {warnings}, {} failed\n", report.count(Status::Ok), report.count(Status::Failed))
}

fn member(text: &str) -> Result<Member, String> {
    let (name, path) = text.split_once('=').ok_or("write NAME=KUBECONFIG")?;
    Ok(Member { name: name.to_owned(), kubeconfig: path.into() })
}

fn network(text: &str) -> Result<Network, String> {
    let parts = text.split_once('=').and_then(|(key, cidr)| Some((key.split_once(':')?, cidr)));
    let ((owner, kind), cidr) = parts.ok_or("write OWNER:KIND=CIDR, like hangzhou:vpc=20.0.0.0/8")?;
    let site = if owner == "gateway" { Site::Gateway } else { Site::Member(owner.to_owned()) };
    let known = NetworkKind::NAMED.iter().find(|(name, _)| *name == kind);
    let kind = known.map(|(_, kind)| *kind).ok_or_else(|| {
        let names: Vec<&str> = NetworkKind::NAMED.iter().map(|(name, _)| *name).collect();
        format!("{kind:?} is none of {}", names.join(", "))
    })?;
    Ok(Network { site, kind, cidr: parse_cidr(cidr)? })
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let bounds = text.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let (first, last): (u16, u16) = bounds.ok_or("write FIRST-LAST, like 30000-32767")?;
    if first > last { Err(format!("{first} is above {last}")) } else { Ok(first..=last) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_named_by_owner_and_kind() {
        let vpc = network("hangzhou:vpc=20.0.0.0/8").unwrap();
        assert_eq!(vpc.to_string(), "vpc network 20.0.0.0/8 of member hangzhou");
        assert_eq!(network("gateway:vswitch=192.168.0.0/24").unwrap().site, Site::Gateway);
        assert!(network("hangzhou:vlan=20.0.0.0/8").unwrap_err().contains("none of vpc, vswitch"));
        assert!(network("hangzhou:pod=10.0.0.1/16").unwrap_err().contains("10.0.0.0/16"));
        assert!(network("10.0.0.0/16").is_err());
    }

    #[test]
    fn a_port_range_goes_up() {
        assert_eq!(port_range("30000-32767"), Ok(30_000..=32_767));
        assert!(port_range("2-1").is_err() && port_range("x").is_err());
    }
}
