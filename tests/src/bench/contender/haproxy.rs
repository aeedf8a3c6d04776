//! HAProxy in TCP mode, with checks as often as Kanmon's probes, and told to try another server where one fails.

use std::{
    fmt::Write,
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use ipnet::{IpNet, Ipv4Net};

use super::{Checks, Serving, THRESHOLD, in_millis};
use crate::{
    netns::{Link, Process},
    topology::{Bed, POD_PORT, Pod, VIP},
};

/// More than the client ever has open: it starts 450 a second, and waits 5 s for each. Much more would take more open
/// files than some machines allow.
const MOST_CONNECTIONS: u32 = 4000;
/// How long it may take to listen: generous, for a busy machine.
const START: Duration = Duration::from_secs(10);

/// A running HAProxy, and the VIP on the gateway's loopback that it listens at.
struct HaProxy {
    process: Process,
    loopback: Link,
}

pub(super) fn start(bed: &Bed, checks: Checks) -> Result<impl Serving> {
    let path = bed.run().path().join("haproxy.cfg");
    let text = configuration(bed.vip_http(), &bed.ready_pods(), checks);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    let loopback = Link::find(bed.gateway(), "lo")?;
    loopback.add_address(vip())?;
    let mut command = bed.gateway().command("haproxy");
    // In the foreground: a daemon would not be ours to end.
    command.arg("-db").arg("-f").arg(&path);
    let mut haproxy = HaProxy { process: bed.run().spawn("haproxy", command)?, loopback };
    haproxy.wait_until_it_listens(bed)?;
    Ok(haproxy)
}

impl HaProxy {
    fn wait_until_it_listens(&mut self, bed: &Bed) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let listens = bed.gateway().wait_for_tcp(bed.vip_http(), Duration::ZERO);
            if let Some(status) = self.process.try_wait()? {
                bail!("haproxy ended with {status}:\n{}", self.process.log_tail(20));
            }
            match listens {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() >= deadline => {
                    return Err(error).context(self.process.log_tail(20));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl Serving for HaProxy {
    fn stop(mut self: Box<Self>) -> Result<()> {
        self.process.kill()?;
        self.loopback.remove_address(vip())
    }
}

fn vip() -> IpNet {
    IpNet::V4(Ipv4Net::from(VIP.v4))
}

/// What it is told. `timeout connect` is the probes' timeout: HAProxy's TCP checks take the smaller of it and the
/// interval as theirs, and a client's connection is tried elsewhere as soon. With `balance roundrobin` it goes to another
/// server at each retry; without, `option redispatch` would mean the last one only.
fn configuration(vip: SocketAddr, pods: &[Pod], checks: Checks) -> String {
    let timeout = in_millis(checks.timeout);
    let interval = in_millis(checks.interval);
    let mut text = format!(
        "global
    log stdout format raw local0 notice
    maxconn {MOST_CONNECTIONS}

defaults
    log global
    mode tcp
    retries 3
    option redispatch
    timeout connect {timeout}
    timeout check {timeout}
    timeout client 10s
    timeout server 10s

frontend vip
    bind {vip}
    default_backend pods

backend pods
    balance roundrobin
    default-server check inter {interval} fall {THRESHOLD} rise {THRESHOLD}
"
    );
    for pod in pods {
        writeln!(text, "    server {} {}:{POD_PORT}", pod.name, pod.address.v4)
            .expect("a String takes what is written to it");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Dual;

    #[test]
    fn every_pod_is_a_checked_server_and_failed_connections_go_elsewhere() {
        let pod = |n: u8| Pod {
            name: format!("hangzhou-{n}"),
            cluster: "hangzhou".into(),
            zone: String::new(),
            address: Dual { v4: [10, 0, n, 10].into(), v6: [0u16; 8].into() },
        };
        let checks = Checks { interval: Duration::from_millis(250), timeout: Duration::from_millis(200) };
        let text = configuration("192.168.100.10:80".parse().unwrap(), &[pod(1), pod(2)], checks);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for line in [
            "mode tcp",
            "retries 3",
            "option redispatch",
            "maxconn 4000",
            "timeout connect 200ms",
            "bind 192.168.100.10:80",
            "default-server check inter 250ms fall 2 rise 2",
            "server hangzhou-1 10.0.1.10:8080",
            "server hangzhou-2 10.0.2.10:8080",
        ] {
            assert_eq!(lines.iter().filter(|other| **other == line).count(), 1, "{line} in\n{text}");
        }
    }
}
