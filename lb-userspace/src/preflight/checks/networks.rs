//! CIDR planning.

use super::super::facts::Networks;
use super::super::finding::Finding;
use crate::desired::conflicts;

/// `cidr`: networks that overlap, cannot be read, are not declared, or do not hold what is there.
pub(in super::super) fn check(networks: &Networks) -> Vec<Finding> {
    let mut findings: Vec<Finding> = networks
        .unreadable
        .iter()
        .map(|(object, what)| Finding::failed("cidr", object, what, "correct the manifest"))
        .collect();
    findings.extend(conflicts(&networks.known).into_iter().map(|(a, b)| {
        let fix =
            "give each site networks of its own; the network between them can route an address to one only";
        Finding::failed("cidr", b.site.to_string(), format!("the {b} overlaps the {a}"), fix)
    }));
    if findings.is_empty() {
        let known = networks.known.len();
        let message = if known == 1 {
            "1 network, which overlaps no other".to_owned()
        } else {
            format!("{known} networks, none overlaps another")
        };
        findings.push(Finding::ok("cidr", "all networks", message));
    }
    findings.extend(networks.outside.iter().map(|(member, what)| {
        let fix = "declare the network that it is in; endpoints outside are refused";
        Finding::failed("cidr", format!("member {member}"), what, fix)
    }));
    findings.extend(networks.undeclared.iter().map(|(member, field)| {
        let fix = format!("say `{field}` in its MemberCluster, so that overlaps can be seen");
        Finding::warning("cidr", format!("member {member}"), format!("declares no {field}"), fix)
    }));
    findings
}
