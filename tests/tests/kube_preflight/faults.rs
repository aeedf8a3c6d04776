//! What is planted, how it is taken back, and which lines it makes of preflight's report.

use std::fmt::Write;

use anyhow::Result;
use k8s_openapi::jiff::SignedDuration;
use tests::netns::Link;

use super::site::{At, Finding, Report, Site};

/// A fault.
pub(crate) struct Fault {
    name: &'static str,
    /// What brings it about.
    plant: &'static [Step],
    /// What undoes it.
    mend: &'static [Step],
    /// Arguments of preflight instead of the usual ones.
    instead: &'static [&'static str],
    /// Every line that is not well then. A single one that failed makes the exit code.
    lines: &'static [Line],
}

/// One step of planting or mending.
enum Step {
    /// A line of shell.
    Type(At, &'static str),
    /// A network of a member is declared otherwise: member, field, networks.
    Declare(&'static str, &'static str, &'static str),
    /// Something that no shell does.
    Do(fn(&Site) -> Result<()>),
}

/// A line of the report: status, check, part of the subject, and parts of what it says.
struct Line(&'static str, &'static str, &'static str, &'static [&'static str]);

use Step::{Declare, Do, Type};

/// What blocks the gateway at a member's nodes as a security group would, and what lets it in again.
pub(crate) const SECURITY_GROUP: (&str, &str) = (
    "nft 'table inet wall { chain forward { type filter hook forward priority 0; \
     ip saddr 192.168.0.0/24 tcp dport 8080 drop; ip6 saddr fd00:c0a8::/64 tcp dport 8080 drop; }; }'",
    "nft delete table inet wall",
);
const AS_DECLARED: &[Step] = &[Do(Site::declare)];
const A_SECOND_LINK: Step = Type(
    At::Gateway,
    "ip link add eth1 type veth peer name eth1-end && ip link set eth1 up && ip link set eth1-end up",
);
const NO_SECOND_LINK: Step = Type(At::Gateway, "ip link del eth1");
/// What the kernel has learned of paths it remembers for ten minutes.
const FORGET_PATHS: Step = Type(At::Gateway, "ip route flush cache && ip -6 route flush cache");
const BOTH_LINKS: &str = "--interface=eth0,eth1";

pub(crate) const FAULTS: &[Fault] = &[
    Fault {
        name: "the pods of two members are in one network",
        plant: &[Declare("shanghai", "podCIDRs", "10.0.0.0/15")],
        mend: AS_DECLARED,
        instead: &[],
        lines: &[
            Line(
                "failed",
                "cidr",
                "member shanghai",
                &[
                    "pod network 10.0.0.0/15 of member shanghai overlaps the pod network 10.0.0.0/16 of member hangzhou",
                ],
            ),
            // It is the newer one, and an agent would use nothing of it.
            Line("warning", "probe", "member shanghai", &["no ready TCP endpoint"]),
        ],
    },
    Fault {
        name: "pods in the gateway's own network",
        plant: &[Declare("shanghai", "podCIDRs", "10.1.0.0/16\", \"fd00:10:1::/48\", \"192.168.0.128/25")],
        mend: AS_DECLARED,
        instead: &[],
        lines: &[Line(
            "failed",
            "cidr",
            "member shanghai",
            &[
                "192.168.0.128/25 of member shanghai overlaps the vswitch network 192.168.0.0/24 of the gateway",
            ],
        )],
    },
    Fault {
        name: "VIPs in a member's pod network",
        plant: &[Type(
            At::Desk,
            "echo '{apiVersion: kanmon.dev/v1alpha1, kind: AddressPool, metadata: {name: clash}, \
             spec: {cidrs: [10.0.240.0/24], scope: Internal}}' | kubectl --context gateway apply -f -",
        )],
        mend: &[Type(At::Desk, "kubectl --context gateway delete addresspool clash")],
        instead: &[],
        lines: &[Line(
            "failed",
            "cidr",
            "member hangzhou",
            &[
                "pod network 10.0.0.0/16 of member hangzhou overlaps the vip network 10.0.240.0/24 of the gateway",
            ],
        )],
    },
    Fault {
        name: "two members have one service network",
        plant: &[Declare("shanghai", "serviceCIDRs", "172.16.0.0/16")],
        mend: AS_DECLARED,
        instead: &[],
        lines: &[Line(
            "failed",
            "cidr",
            "member shanghai",
            &[
                "service network 172.16.0.0/16 of member shanghai overlaps the service network 172.16.0.0/16 of member hangzhou",
            ],
        )],
    },
    Fault {
        name: "a VPC that another one overlaps, by an argument",
        plant: &[],
        mend: &[],
        instead: &["--cidr=hangzhou:vpc=20.0.0.0/7"],
        lines: &[Line(
            "failed",
            "cidr",
            "member shanghai",
            &[
                "node network 21.0.0.0/24 of member shanghai overlaps the vpc network 20.0.0.0/7 of member hangzhou",
            ],
        )],
    },
    Fault {
        name: "nodes outside of what their member declares",
        plant: &[Declare("shanghai", "nodeCIDRs", "21.0.240.0/24\", \"fd00:21::/64")],
        mend: AS_DECLARED,
        instead: &[],
        lines: &[Line(
            "failed",
            "cidr",
            "member shanghai",
            &["3 node addresses are in none of its node networks", "21.0.0.10 (shanghai-a)"],
        )],
    },
    Fault {
        name: "pods outside of what their member declares",
        plant: &[Declare("shanghai", "podCIDRs", "10.1.240.0/24\", \"fd00:10:1::/48")],
        mend: AS_DECLARED,
        instead: &[],
        lines: &[Line(
            "failed",
            "cidr",
            "member shanghai",
            &["Service demo/httpbin", "10.1.0.", "outside the podCIDRs"],
        )],
    },
    Fault {
        name: "no route to a member's pods",
        plant: &[Type(At::Gateway, "ip route add unreachable 10.1.0.0/16")],
        mend: &[Type(At::Gateway, "ip route del unreachable 10.1.0.0/16")],
        instead: &[],
        lines: &[
            Line("failed", "route", "member shanghai", &["the pod network 10.1.0.0/16: "]),
            Line(
                "failed",
                "probe",
                "member shanghai",
                &["IPv4: none of its 2 ready endpoints answers", "10.1."],
            ),
        ],
    },
    Fault {
        name: "no route to a member's nodes",
        plant: &[Type(At::Gateway, "ip route add unreachable 21.0.0.0/24")],
        mend: &[Type(At::Gateway, "ip route del unreachable 21.0.0.0/24")],
        instead: &[],
        lines: &[Line("failed", "route", "member shanghai", &["the node network 21.0.0.0/24: "])],
    },
    Fault {
        name: "a security group keeps the gateway from a member's pods",
        plant: &[Type(At::Node("hangzhou"), SECURITY_GROUP.0)],
        mend: &[Type(At::Node("hangzhou"), SECURITY_GROUP.1)],
        instead: &[],
        lines: &[
            Line(
                "failed",
                "probe",
                "member hangzhou",
                &["IPv4: none of its 2 ready endpoints answers", "no answer"],
            ),
            Line(
                "failed",
                "probe",
                "member hangzhou",
                &["IPv6: none of its 2 ready endpoints answers", "no answer"],
            ),
        ],
    },
    Fault {
        name: "no way back from the pods to the SNAT addresses",
        plant: &[Type(
            At::Node("hangzhou"),
            "ip route add blackhole 192.168.0.11 && ip -6 route add blackhole fd00:c0a8::10",
        )],
        mend: &[Type(
            At::Node("hangzhou"),
            "ip route del blackhole 192.168.0.11 && ip -6 route del blackhole fd00:c0a8::10",
        )],
        // The kernel itself sends from its newest IPv6 address, so that is not the one to be cut off.
        instead: &["--snat-addresses=192.168.0.11,fd00:c0a8::10"],
        lines: &[
            Line(
                "failed",
                "way-back",
                "member hangzhou",
                &["10.0.", "not its SNAT address 192.168.0.11: no answer"],
            ),
            Line("failed", "way-back", "member hangzhou", &["not its SNAT address fd00:c0a8::10: no answer"]),
        ],
    },
    Fault {
        name: "an address for SNAT that is not the gateway's",
        plant: &[],
        mend: &[],
        instead: &["--snat-addresses=192.168.0.99,fd00:c0a8::11"],
        lines: &[
            Line("warning", "way-back", "member hangzhou", &["192.168.0.99 is no address of this machine"]),
            Line("warning", "way-back", "member shanghai", &["192.168.0.99 is no address of this machine"]),
        ],
    },
    Fault {
        name: "the router has no route for the VIPs",
        plant: &[Type(At::Router, "ip route del 192.168.100.0/24 && ip -6 route del fd00:100::/64")],
        mend: &[Type(
            At::Router,
            "ip route add 192.168.100.0/24 via 192.168.0.10 && ip -6 route add fd00:100::/64 via fd00:c0a8::10",
        )],
        instead: &[],
        lines: &[
            Line("failed", "vip-route", "VIP 192.168.100.10", &["the network: ", "unreachable"]),
            Line("failed", "vip-route", "VIP fd00:100::10", &["the network: ", "unreachable"]),
        ],
    },
    Fault {
        name: "the router swallows what is for a VIP",
        plant: &[Type(At::Router, "ip route add blackhole 192.168.100.10")],
        mend: &[Type(At::Router, "ip route del blackhole 192.168.100.10")],
        instead: &[],
        lines: &[Line("warning", "vip-route", "VIP 192.168.100.10", &["did not come back here"])],
    },
    Fault {
        name: "a link of smaller MTU on the path",
        plant: &[Type(At::Router, "ip link set hangzhou mtu 1400")],
        mend: &[Type(At::Router, "ip link set hangzhou mtu 1500"), FORGET_PATHS],
        instead: &[],
        lines: &[Line(
            "warning",
            "mtu",
            "member hangzhou",
            &["packets of 1400 bytes reach ", "1500 leave here"],
        )],
    },
    Fault {
        name: "a path that carries less than IPv6 needs",
        plant: &[Type(At::Router, "ip route change 10.0.0.0/16 via 20.0.0.10 mtu 1200")],
        mend: &[Type(At::Router, "ip route change 10.0.0.0/16 via 20.0.0.10"), FORGET_PATHS],
        instead: &[],
        lines: &[Line("failed", "mtu", "member hangzhou", &["packets of 1200 bytes at most reach 10.0."])],
    },
    Fault {
        name: "strict reverse path filtering on a gateway with two links",
        plant: &[A_SECOND_LINK, Type(At::Gateway, "echo 1 > /proc/sys/net/ipv4/conf/eth0/rp_filter")],
        mend: &[NO_SECOND_LINK, Type(At::Gateway, "echo 0 > /proc/sys/net/ipv4/conf/eth0/rp_filter")],
        instead: &[BOTH_LINKS],
        lines: &[Line("failed", "rp-filter", "eth0", &["rp_filter is strict"])],
    },
    Fault {
        name: "the kernel sends from the ports for SNAT",
        plant: &[Type(At::Gateway, "echo 1024 60999 > /proc/sys/net/ipv4/ip_local_port_range")],
        mend: &[Type(At::Gateway, "echo 32768 60999 > /proc/sys/net/ipv4/ip_local_port_range")],
        instead: &["--snat-ports=12288-28671"],
        lines: &[Line(
            "failed",
            "snat-ports",
            "this machine",
            &["12288-28671 overlap net.ipv4.ip_local_port_range (1024-60999)"],
        )],
    },
    Fault {
        name: "the kernel sends from all ports",
        plant: &[Type(At::Gateway, "echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range")],
        mend: &[Type(At::Gateway, "echo 32768 60999 > /proc/sys/net/ipv4/ip_local_port_range")],
        instead: &[],
        lines: &[Line("failed", "snat-ports", "this machine", &["no 1024 ports in a row are free"])],
    },
    Fault {
        name: "ports for SNAT among the NodePorts",
        plant: &[],
        mend: &[],
        instead: &["--node-ports=20000-32767", "--snat-ports=12288-28671"],
        lines: &[Line(
            "failed",
            "node-ports",
            "this machine",
            &["12288-28671 overlap", "NodePorts", "20000-32767"],
        )],
    },
    Fault {
        name: "a Service whose NodePort is not in the range that was named",
        plant: &[Type(
            At::Desk,
            "kubectl --context hangzhou -n demo create service nodeport stray --tcp=80 --node-port=30080",
        )],
        mend: &[Type(At::Desk, "kubectl --context hangzhou -n demo delete service stray")],
        instead: &["--node-ports=31000-32767", "--snat-ports=14592-30911"],
        lines: &[Line("failed", "node-ports", "this machine", &["NodePorts among the SNAT ports", "30080"])],
    },
    Fault {
        name: "the account may not watch a member's endpoints",
        plant: &[
            Type(
                At::Desk,
                "kubectl --context shanghai patch clusterrole kanmon-member-kanmon-system --type=json \
                 -p '[{\"op\": \"replace\", \"path\": \"/rules/3/verbs\", \"value\": [\"create\", \"delete\", \"list\", \"update\"]}]'",
            ),
            Type(
                At::Desk,
                "for try in {1..300}; do kubectl --context shanghai auth can-i watch endpointslices.discovery.k8s.io \
                 --as=system:serviceaccount:kanmon-system:kanmon-member -q || break; sleep 0.1; done",
            ),
        ],
        mend: &[
            Type(
                At::Desk,
                "kubectl --context shanghai patch clusterrole kanmon-member-kanmon-system --type=json \
                 -p '[{\"op\": \"replace\", \"path\": \"/rules/3/verbs\", \"value\": [\"create\", \"delete\", \"list\", \"update\", \"watch\"]}]'",
            ),
            Type(
                At::Desk,
                "for try in {1..300}; do kubectl --context shanghai auth can-i watch endpointslices.discovery.k8s.io \
                 --as=system:serviceaccount:kanmon-system:kanmon-member -q && break; sleep 0.1; done",
            ),
        ],
        instead: &[],
        lines: &[Line(
            "failed",
            "api-rights",
            "member shanghai",
            &["may not watch endpointslices.discovery.k8s.io"],
        )],
    },
    Fault {
        name: "a member's API server is out of reach",
        plant: &[Type(
            At::Api("shanghai"),
            "nft 'table inet wall { chain input { type filter hook input priority 0; \
             ip saddr 192.168.0.0/24 tcp dport 6443 drop; }; }'",
        )],
        mend: &[Type(At::Api("shanghai"), "nft delete table inet wall")],
        instead: &[],
        lines: &[
            Line("failed", "api-server", "member shanghai", &["21.0.1.10:6443"]),
            Line("warning", "probe", "member shanghai", &["no ready TCP endpoint"]),
        ],
    },
    Fault {
        name: "the gateway's own API server refuses connections",
        plant: &[Type(
            At::Api("gateway"),
            "nft 'table inet wall { chain input { type filter hook input priority 0; \
             ip saddr 192.168.0.0/24 tcp dport 6443 reject with tcp reset; }; }'",
        )],
        mend: &[Type(At::Api("gateway"), "nft delete table inet wall")],
        instead: &[],
        lines: &[Line("failed", "api-server", "gateway cluster", &["192.168.2.10:6443", "refused"])],
    },
    Fault {
        name: "the token of a member is worth nothing",
        plant: &[Type(
            At::Desk,
            "kept=$(kubectl --context gateway -n kanmon-system get secret kanmon-remote-secret-shanghai \
             -o jsonpath='{.data.shanghai}' | base64 -d | sed 's/token: .*/token: worthless/' | base64 -w0); \
             kubectl --context gateway -n kanmon-system patch secret kanmon-remote-secret-shanghai \
             -p \"{\\\"data\\\": {\\\"shanghai\\\": \\\"$kept\\\"}}\"",
        )],
        mend: &[Do(|site| site.stage().register("shanghai"))],
        instead: &[],
        lines: &[
            Line("failed", "api-server", "member shanghai", &["Unauthorized"]),
            Line("warning", "probe", "member shanghai", &["no ready TCP endpoint"]),
        ],
    },
    Fault {
        name: "a definition is missing",
        plant: &[Type(
            At::Desk,
            "kubectl --context gateway delete crd loadbalancingpolicies.kanmon.dev; \
             for try in {1..300}; do kubectl --context gateway get --raw /apis/kanmon.dev/v1alpha1 | \
             grep -c loadbalancingpolicies > /dev/null || break; sleep 0.1; done",
        )],
        mend: &[
            Do(|site| site.stage().install("gateway")),
            Type(
                At::Desk,
                "for try in {1..300}; do kubectl --context gateway get --raw /apis/kanmon.dev/v1alpha1 | \
                 grep -c loadbalancingpolicies > /dev/null && break; sleep 0.1; done",
            ),
        ],
        instead: &[],
        lines: &[Line(
            "failed",
            "definitions",
            "gateway cluster",
            &["does not know loadbalancingpolicies.kanmon.dev"],
        )],
    },
    Fault {
        name: "a member's clock is ahead",
        plant: &[Do(|site| site.stage().kube("shanghai")?.set_clock(SignedDuration::from_secs(90)))],
        mend: &[Do(|site| {
            site.stage().kube("shanghai")?.answer_properly();
            Ok(())
        })],
        instead: &[],
        lines: &[Line("failed", "clock", "member shanghai", &["s ahead of this machine's"])],
    },
    Fault {
        name: "an interface that there is not",
        plant: &[],
        mend: &[],
        instead: &["--interface=eth0,eth7"],
        lines: &[Line("failed", "interface", "eth7", &["does not exist"])],
    },
    Fault {
        name: "an interface that is down",
        plant: &[A_SECOND_LINK, Type(At::Gateway, "ip link set eth1 down")],
        mend: &[NO_SECOND_LINK],
        instead: &[BOTH_LINKS],
        lines: &[Line("failed", "interface", "eth1", &["is down"])],
    },
    Fault {
        name: "an interface that has no native XDP",
        plant: &[Type(At::Gateway, "ip link add eth1 type bridge && ip link set eth1 up")],
        mend: &[NO_SECOND_LINK],
        instead: &[BOTH_LINKS, "--xdp-mode=native"],
        lines: &[Line("failed", "xdp", "eth1", &["a bridge device has no native XDP"])],
    },
    Fault {
        name: "somebody else's XDP program",
        plant: &[Do(|site| Link::find(site.stage().bed().gateway(), "eth0")?.attach_xdp_pass())],
        mend: &[Type(At::Gateway, "ip link set dev eth0 xdp off")],
        instead: &[],
        lines: &[Line("failed", "xdp", "eth0", &["eth0"])],
    },
    Fault {
        name: "pins in no BPF file system",
        plant: &[],
        mend: &[],
        instead: &["--pin-dir=/proc/kanmon"],
        lines: &[Line("failed", "pins", "/proc/kanmon", &["not in a BPF file system"])],
    },
];

/// A line that declares one network of a member, and only that one, in a field of its MemberCluster.
pub(crate) fn declaring(member: &str, field: &str, networks: &str) -> String {
    format!(
        "kubectl --context gateway patch membercluster {member} --type=merge \
         -p '{{\"spec\": {{\"{field}\": [\"{networks}\"]}}}}'"
    )
}

impl Fault {
    /// Plants it, looks, takes it back, and looks again; says what was not as it should be.
    pub(crate) fn try_on(&self, site: &Site) -> Result<(), String> {
        let broken = |error: anyhow::Error| format!("{}: {error:#}", self.name);
        let seen = take(self.plant, site).and_then(|()| site.preflight(self.instead));
        // Also where something went wrong: the next fault is alone.
        let mended = take(self.mend, site).and_then(|()| site.preflight(&[]));
        self.judge(&seen.map_err(broken)?)?;
        let mended = mended.map_err(broken)?;
        match mended.unsound().as_slice() {
            [] if mended.exit == 0 => Ok(()),
            left => Err(format!("{}: mended, and still {}", self.name, shown(left))),
        }
    }

    fn judge(&self, report: &Report) -> Result<(), String> {
        let found = report.unsound();
        let missing = self.lines.iter().any(|line| !found.iter().any(|finding| line.is(finding)));
        let other = found.iter().any(|finding| !self.lines.iter().any(|line| line.is(finding)));
        let fails = self.lines.iter().any(|line| line.0 == "failed");
        let helpless = found.iter().any(|finding| finding.fix.is_empty());
        if missing || other || helpless || fails != (report.exit != 0) {
            return Err(format!("{}: exit code {}, {}", self.name, report.exit, shown(&found)));
        }
        Ok(())
    }
}

impl Line {
    fn is(&self, found: &Finding) -> bool {
        let Line(status, check, subject, says) = self;
        found.status == *status
            && found.check == *check
            && found.subject == *subject
            && says.iter().all(|part| found.message.contains(part))
    }
}

fn take(steps: &[Step], site: &Site) -> Result<()> {
    steps.iter().try_for_each(|step| match step {
        Type(at, line) => site.type_at(*at, line),
        Declare(member, field, networks) => site.type_at(At::Desk, &declaring(member, field, networks)),
        Do(work) => work(site),
    })
}

fn shown(findings: &[Finding]) -> String {
    let mut text = String::from("what was found:");
    for Finding { check, subject, status, message, .. } in findings {
        write!(text, "\n    {status} {check} {subject}: {message}")
            .expect("a String takes what is written to it");
    }
    text
}
