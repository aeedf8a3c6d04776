//! nftables: destination and source are translated by rules, pods are chosen at random, and nobody looks whether
//! they live.

use std::{fmt::Write, net::SocketAddr};

use anyhow::{Result, ensure};

use super::Serving;
use crate::topology::{Bed, POD_PORT, Pod};

const TABLE: &str = "kanmon_bench";

/// The rules in the gateway's namespace, which forwards while they are there.
struct Rules<'a> {
    bed: &'a Bed,
}

pub(super) fn start(bed: &Bed) -> Result<impl Serving + '_> {
    set_forwarding(bed, true)?;
    nft(bed, &ruleset(bed.vip_http(), &bed.ready_pods()))?;
    Ok(Rules { bed })
}

impl Serving for Rules<'_> {
    fn stop(self: Box<Self>) -> Result<()> {
        nft(self.bed, &format!("delete table ip {TABLE}\n"))?;
        set_forwarding(self.bed, false)
    }
}

fn set_forwarding(bed: &Bed, on: bool) -> Result<()> {
    bed.gateway().sysctl("net.ipv4.ip_forward", if on { "1" } else { "0" })
}

fn nft(bed: &Bed, commands: &str) -> Result<()> {
    let mut command = bed.gateway().command("nft");
    command.args(["-f", "-"]);
    let output = bed.run().output(command, commands)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nft refuses:\n{}\nof\n{commands}", said.trim());
    Ok(())
}

/// Replies come back because pods see the gateway's address.
fn ruleset(vip: SocketAddr, pods: &[Pod]) -> String {
    let mut chosen = String::new();
    for (n, pod) in pods.iter().enumerate() {
        let separator = if n == 0 { "" } else { ", " };
        write!(chosen, "{separator}{n} : {}", pod.address.v4).expect("a String takes what is written to it");
    }
    format!(
        "table ip {TABLE} {{
    chain to_pods {{
        type nat hook prerouting priority dstnat; policy accept;
        ip daddr {} tcp dport {} dnat to numgen random mod {} map {{ {chosen} }}:{POD_PORT}
    }}
    chain from_gateway {{
        type nat hook postrouting priority srcnat; policy accept;
        ct status dnat masquerade
    }}
}}
",
        vip.ip(),
        vip.port(),
        pods.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Dual;

    #[test]
    fn a_random_pod_gets_each_connection_and_sees_the_gateway() {
        let pod = |n: u8| Pod {
            name: format!("hangzhou-{n}"),
            cluster: "hangzhou".into(),
            zone: String::new(),
            address: Dual { v4: [10, 0, n, 10].into(), v6: [0u16; 8].into() },
        };
        let text = ruleset("192.168.100.10:80".parse().unwrap(), &[pod(1), pod(2), pod(3)]);
        let rule = "ip daddr 192.168.100.10 tcp dport 80 dnat to numgen random mod 3 \
                    map { 0 : 10.0.1.10, 1 : 10.0.2.10, 2 : 10.0.3.10 }:8080";
        assert_eq!(text.matches(rule).count(), 1, "{text}");
        assert_eq!(text.matches("ct status dnat masquerade").count(), 1, "{text}");
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }
}
