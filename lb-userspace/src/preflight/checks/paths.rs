//! The ways to the members' pods and back, and the way of VIPs to the gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::super::facts::{Arrival, Paths, Probe};
use super::super::finding::{Finding, count};
use crate::health::{Answer, blocked};

/// What every link must carry (RFC 8200, section 5).
const LEAST_MTU: u32 = 1280;

/// `snat-address`, `route`, `probe`, `way-back`, `mtu`, `vip-route`.
pub(in super::super) fn check(paths: &Paths) -> Vec<Finding> {
    let mut findings = vec![snat_address(&paths.snat_addresses)];
    findings.extend(routes(paths));
    let members: BTreeSet<&str> = paths.probes.iter().map(|probe| probe.member.as_str()).collect();
    for member in members {
        let probes: Vec<&Probe> = paths.probes.iter().filter(|probe| probe.member == member).collect();
        findings.extend(reach(member, &probes));
    }
    findings.extend(paths.without_endpoints.iter().map(|member| {
        let fix = "deploy the service, or wait until its pods are ready, and ask again";
        let message = "has no ready TCP endpoint that could be tried";
        Finding::warning("probe", format!("member {member}"), message, fix)
    }));
    findings.extend(paths.vips.iter().map(|route| vip_route(route.vip, &route.arrival)));
    findings
}

fn snat_address(addresses: &[IpAddr]) -> Finding {
    if addresses.is_empty() {
        return Finding::failed(
            "snat-address",
            "this machine",
            "the interface has no address that backends could answer to",
            "give it one (ip addr add …), or name the gateway's own with --snat-addresses",
        );
    }
    let named: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    Finding::ok("snat-address", "this machine", format!("backends see {}", named.join(", ")))
}

fn routes(paths: &Paths) -> impl Iterator<Item = Finding> {
    paths.routes.iter().map(|route| {
        let subject = route.network.site.to_string();
        let network = format!("{} network {}", route.network.kind, route.network.cidr);
        match &route.leads {
            Ok((interface, _)) => {
                Finding::ok("route", subject, format!("the {network} is reached by {interface}"))
            }
            Err(error) => {
                let fix = format!(
                    "ip route add {} via ROUTER, and the same in the network between",
                    route.network.cidr
                );
                Finding::failed("route", subject, format!("the {network}: {error}"), fix)
            }
        }
    })
}

/// A member's endpoints: whether they answer, answer each SNAT address, and what packets fit.
fn reach(member: &str, probes: &[&Probe]) -> Vec<Finding> {
    let subject = format!("member {member}");
    // A family for itself: routes and security groups are per family.
    let mut findings = Vec::new();
    for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
        let of_family: Vec<&Probe> =
            probes.iter().copied().filter(|probe| probe.endpoint.is_ipv4() == is_v4).collect();
        let answered = of_family.iter().filter(|probe| probe.answer == Answer::Answered).count();
        if of_family.is_empty() {
            continue;
        }
        findings.push(match blocked(of_family.iter().map(|probe| (probe.endpoint, &probe.answer))) {
            Some(message) => {
                let fix = "let the gateway's addresses in: security groups, network policies, firewalls of the nodes";
                Finding::failed("probe", &subject, format!("{family}: {message}"), fix)
            }
            None => {
                let tried = of_family.len();
                if answered == tried {
                    let who = count(tried, "endpoint was tried and answers", "endpoints were tried and answer");
                    Finding::ok("probe", &subject, format!("{family}: {who}"))
                } else {
                    let message = format!("{family}: {answered} of {tried} endpoints tried answer");
                    Finding::warning("probe", &subject, message, "see why with `kanmon backends`")
                }
            }
        });
    }
    findings.extend(way_back(&subject, probes));
    findings.extend(mtu(&subject, probes));
    findings
}

/// An endpoint that answers the gateway must answer each of its SNAT addresses.
fn way_back(subject: &str, probes: &[&Probe]) -> Vec<Finding> {
    let mut by_address: BTreeMap<IpAddr, Vec<(&Probe, &Answer)>> = BTreeMap::new();
    for probe in probes.iter().filter(|probe| probe.answer == Answer::Answered) {
        for (address, answer) in &probe.from_snat {
            by_address.entry(*address).or_default().push((probe, answer));
        }
    }
    let judge = |(address, answers): (IpAddr, Vec<(&Probe, &Answer)>)| {
        if answers.iter().any(|(_, answer)| **answer == Answer::Answered) {
            return Finding::ok("way-back", subject, format!("pods answer SNAT address {address}"));
        }
        match answers.iter().find(|(_, answer)| matches!(answer, Answer::Failed(_))) {
            Some((probe, Answer::Failed(reason))) => Finding::failed(
                "way-back",
                subject,
                format!(
                    "{} answers this gateway, but not its SNAT address {address}: {reason}",
                    probe.endpoint
                ),
                format!("route {address} to this gateway in the member's network, and let it in"),
            ),
            _ => Finding::warning(
                "way-back",
                subject,
                format!(
                    "SNAT address {address} is no address of this machine, so nothing can be sent from it"
                ),
                format!("see that {address} is routed here"),
            ),
        }
    };
    by_address.into_iter().map(judge).collect()
}

fn mtu(subject: &str, probes: &[&Probe]) -> Option<Finding> {
    let smallest =
        probes.iter().filter_map(|probe| Some((probe.path_mtu?, probe))).min_by_key(|(mtu, _)| *mtu)?;
    let (mtu, probe) = smallest;
    let first = probe.first_mtu.unwrap_or(mtu);
    Some(if mtu < LEAST_MTU {
        Finding::failed(
            "mtu",
            subject,
            format!(
                "packets of {mtu} bytes at most reach {}, and IPv6 needs {LEAST_MTU}",
                probe.endpoint.ip()
            ),
            "raise the MTU of the tunnel or link in between",
        )
    } else if mtu < first {
        Finding::warning(
            "mtu",
            subject,
            format!("packets of {mtu} bytes reach {}, {first} leave here", probe.endpoint.ip()),
            "none needed while ICMP gets through: TCP is clamped, and larger packets are refused with their MTU",
        )
    } else {
        Finding::ok("mtu", subject, format!("{mtu} bytes all the way"))
    })
}

fn vip_route(vip: IpAddr, arrival: &Arrival) -> Finding {
    let subject = format!("VIP {vip}");
    let fix =
        format!("route it to this gateway: a static route, or an entry of the VPC's route table, for {vip}");
    match arrival {
        Arrival::Here => Finding::ok("vip-route", subject, "the network brings it to this gateway"),
        Arrival::Own => Finding::ok("vip-route", subject, "is an address of this gateway"),
        Arrival::Refused(why) => Finding::failed("vip-route", subject, format!("the network: {why}"), fix),
        Arrival::Silence => Finding::warning(
            "vip-route",
            subject,
            "what was sent to it did not come back here; some networks bring nothing back to its sender",
            format!("try it from a client; {fix}"),
        ),
        Arrival::Unseen(why) => Finding::warning("vip-route", subject, why, fix),
    }
}
