//! `kanmon preflight` on a real gateway between real clusters: it finds nothing wrong where nothing is, each fault in
//! its own line, and the agent that runs there says the same in `NetworkValid`.

mod faults;
mod site;

use std::time::Duration;

use tests::{
    kube::{KubeCluster, condition, condition_message},
    scene::SMALL,
};

use faults::{FAULTS, SECURITY_GROUP, declaring};
use site::{At, Site};

/// How long an agent may take to notice: two rounds of its probes on a busy machine.
const NOTICED: Duration = Duration::from_secs(120);

#[test]
fn a_sound_gateway_passes_and_each_planted_fault_fails_in_its_own_line() {
    let site = Site::start().unwrap();
    let report = site.preflight(&[]).unwrap();
    assert_eq!((report.unsound(), report.exit), (vec![], 0), "{}", report.text);
    for check in [
        "kernel",
        "capabilities",
        "pins",
        "interface",
        "xdp",
        "offloads",
        "rp-filter",
        "source-check",
        "snat-ports",
        "node-ports",
        "cidr",
        "api-server",
        "api-version",
        "api-rights",
        "clock",
        "snat-address",
        "route",
        "probe",
        "way-back",
        "mtu",
        "vip-route",
    ] {
        assert!(
            report.findings.iter().any(|found| found.check == check),
            "{check} is looked at: {}",
            report.text
        );
    }

    // All of them, so that a run tells everything that it has found out.
    let wrong: Vec<String> = FAULTS.iter().filter_map(|fault| fault.try_on(&site).err()).collect();
    assert!(wrong.is_empty(), "{} of {} faults:\n{}", wrong.len(), FAULTS.len(), wrong.join("\n"));
}

#[test]
fn beside_a_running_agent_it_passes_too_and_the_agent_says_of_each_member_what_it_would() {
    let site = Site::start().unwrap();
    let stage = site.stage();
    let agent = stage.start_agent(&stage.gateway(), &SMALL).unwrap();
    let gateway = stage.kube("gateway").unwrap();
    for member in ["hangzhou", "shanghai"] {
        wait_for_network(gateway, member, "True/Valid", "");
    }
    let report = site.preflight(&[]).unwrap();
    assert_eq!((report.unsound(), report.exit), (vec![], 0), "{}", report.text);

    let (block, unblock) = SECURITY_GROUP;
    site.type_at(At::Node("hangzhou"), block).unwrap();
    wait_for_network(gateway, "hangzhou", "False/ProbeBlocked", "answer");
    wait_for_network(gateway, "shanghai", "True/Valid", "");
    site.type_at(At::Node("hangzhou"), unblock).unwrap();
    wait_for_network(gateway, "hangzhou", "True/Valid", "");

    site.type_at(At::Desk, &declaring("shanghai", "podCIDRs", "10.0.0.0/15")).unwrap();
    wait_for_network(gateway, "shanghai", "False/CIDROverlap", "10.0.0.0/16 of member hangzhou");
    wait_for_network(gateway, "hangzhou", "True/Valid", "");
    site.declare().unwrap();
    wait_for_network(gateway, "shanghai", "True/Valid", "");
    agent.interrupt().unwrap();
}

/// Waits until the agent says so of a member's networks, and names the culprit.
fn wait_for_network(gateway: &KubeCluster, member: &str, wanted: &str, naming: &str) {
    let path = format!("/apis/kanmon.dev/v1alpha1/memberclusters/{member}");
    gateway
        .see(&format!("{member}'s networks are {wanted}"), &path, NOTICED, |object| {
            let named = condition_message(object, "NetworkValid").contains(naming);
            (condition(object, "NetworkValid") == wanted && named).then_some(())
        })
        .unwrap();
}
