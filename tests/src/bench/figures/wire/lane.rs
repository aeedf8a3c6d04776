//! A contender in its namespace, at the end of a link of its own.

use std::{
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use ipnet::{IpNet, Ipv4Net};
use lb_common::{abi::Counter, host::NextHop};

use crate::{
    bench::figures::{
        contender::{Contender, KANMON, Loaded},
        flows::{Net, Serving},
        report::{GENERATOR, NFTABLES, XDP_TX},
    },
    kernel_run::{self, LinkEnds, Sink, Tape, load_xdp},
    netns::{Link, Mac, Netns, RunDir, veth},
};

/// As the frames of [`Net`] have them.
const ENDS: LinkEnds = LinkEnds { near: [2, 0, 0, 0, 0, 2], far: [2, 0, 0, 0, 0, 1] };
/// Who is behind the link, for those that route.
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
const TABLE: &str = "kanmon_bench";
/// How many flows in a thousand may find no room while a table fills up.
const WITHOUT_ROOM: u32 = 1;

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Nobody: frames end where the others have their contender.
    Nobody,
    /// A program that sends everything back.
    XdpTx,
    /// The packet program.
    Kanmon,
    /// Rules of nftables.
    Nftables,
    /// The same, with a flow table.
    FlowTable,
    /// The kernel's routing and nothing else.
    Routing,
}

impl Way {
    pub(super) const ALL: [Way; 6] =
        [Way::Nobody, Way::XdpTx, Way::Kanmon, Way::Nftables, Way::FlowTable, Way::Routing];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Way::Nobody => GENERATOR,
            Way::XdpTx => XDP_TX,
            Way::Kanmon => KANMON,
            Way::Nftables => NFTABLES,
            Way::FlowTable => "nftables, flow table",
            Way::Routing => "routing",
        }
    }

    /// Whether frames leave it for a backend, from the gateway's own address.
    fn translates(self) -> bool {
        matches!(self, Way::Kanmon | Way::Nftables | Way::FlowTable)
    }

    fn uses_rules(self) -> bool {
        matches!(self, Way::Nftables | Way::FlowTable)
    }
}

/// A contender, and what leads to it.
pub(super) struct Lane {
    pub(super) way: Way,
    /// What clients ask it for.
    pub(super) serving: Serving,
    /// Where its frames arrive.
    pub(super) sink: Sink,
    near: Link,
    far: Link,
    kanmon: Option<Contender>,
    opened: u32,
    /// Why it can't be measured at all.
    lack: Option<String>,
}

impl Lane {
    /// Only Kanmon serves anything but [`Serving::ONE`].
    pub(super) fn build(
        run: &Arc<RunDir>,
        generator: &Netns,
        way: Way,
        serving: Serving,
        flows: u32,
    ) -> Result<Lane> {
        let n = Way::ALL.iter().position(|other| *other == way).unwrap_or_default();
        let n = format!("{n}-{}", serving.services);
        let ns = Netns::create(run, &format!("wire-{n}"))?;
        without_v6(&ns)?;
        let (near, far) =
            veth((generator, &format!("to-{n}"), Mac(ENDS.near)), (&ns, "eth0", Mac(ENDS.far)))?;
        near.up()?;
        far.up()?;
        let sink = Sink::new(ENDS)?;
        let mut lane = Lane { way, serving, sink, near, far, kanmon: None, opened: 0, lack: None };
        // A veth takes frames from programs where it has one itself.
        let end = if way == Way::Nobody { &lane.far } else { &lane.near };
        end.attach_xdp(lane.sink.program())?;
        match way {
            Way::Nobody => {}
            Way::XdpTx => lane.far.attach_xdp(sender()?.as_fd())?,
            Way::Kanmon => lane.attach_kanmon(flows)?,
            Way::Nftables | Way::FlowTable | Way::Routing => lane.forward(run)?,
        }
        Ok(lane)
    }

    /// The generator's end.
    pub(super) fn interface(&self) -> u32 {
        self.near.index()
    }

    /// Why it can't be measured with so many flows.
    pub(super) fn lack(&self, flows: u32) -> Option<String> {
        let rules = || {
            let most = number("/proc/sys/net/netfilter/nf_conntrack_max")?;
            (u64::from(flows) > most)
                .then(|| format!("net.netfilter.nf_conntrack_max is {most} on this machine"))
        };
        self.lack.clone().or_else(|| if self.way.uses_rules() { rules() } else { None })
    }

    /// Makes connections through it until there are so many. Must run in the generator's namespace.
    pub(super) fn open(&mut self, flows: u32) -> Result<()> {
        if self.way == Way::Nobody || self.lack(flows).is_some() || self.opened >= flows {
            return Ok(());
        }
        let syn = |n| Net::V4.syn_to(self.serving.vip_for(Net::V4, n), n);
        let frames: Vec<_> = (self.opened..flows).map(syn).collect();
        let all = frames.len() as u32;
        let tape = Tape::new(&frames, &(0..all).collect::<Vec<_>>())?;
        let before = self.sink.count();
        // In pieces, because somebody reads what Kanmon tells the agent.
        let generator = tape.generator(self.interface())?;
        let mut left = all;
        while left > 0 {
            let piece = left.min(1 << 14);
            generator.send(piece)?;
            left -= piece;
            if let Some(kanmon) = &mut self.kanmon {
                kanmon.drain();
            }
        }
        let least = u64::from(all - (all * WITHOUT_ROOM).div_ceil(1000).min(all - 1));
        let done = super::settled(self) - before;
        ensure!(done >= least, "{done} of {all} handshakes came to their end");
        self.check_last()?;
        self.opened = flows;
        if let Some(Contender { loaded: Loaded::Kanmon(kernel), .. }) = &self.kanmon {
            let opened = kernel.tables.counter(Counter::FlowOpened);
            ensure!(opened >= least, "Kanmon opened {opened} flows of {flows}");
        }
        Ok(())
    }

    /// Whether the last frame came from and went to where it should.
    pub(super) fn check_last(&self) -> Result<()> {
        let (source, destination) = self.sink.last();
        let backends = Ipv4Net::new_assert([10, 0, 0, 0].into(), 8);
        let (own, vip) = (Net::V4.snat(), Net::V4.vip().ip());
        let right = if self.way.translates() {
            own == source && backends.contains(&destination)
        } else {
            vip == destination
        };
        ensure!(right, "{} sent a frame from {source} to {destination}", self.way.name());
        Ok(())
    }

    fn attach_kanmon(&mut self, flows: u32) -> Result<()> {
        let hop = NextHop {
            destination_mac: ENDS.near,
            source_mac: ENDS.far,
            ifindex: self.far.index(),
            ..NextHop::default()
        };
        let kanmon = Contender::kanmon_serving(Net::V4, self.serving, flows, &hop)?;
        if let Loaded::Kanmon(kernel) = &kanmon.loaded {
            self.far.attach_xdp(kernel.entry())?;
        }
        self.kanmon = Some(kanmon);
        Ok(())
    }

    /// Lets the kernel forward, by rules where the way has some.
    fn forward(&mut self, run: &RunDir) -> Result<()> {
        self.far.attach_xdp_pass()?;
        let ns = self.far.ns();
        let own = Ipv4Net::new(Ipv4Addr::new(192, 168, 0, 2), 24)?;
        self.far.add_address(own.into())?;
        self.far.set_neighbour(ROUTER.into(), Mac(ENDS.near))?;
        self.far.set_route(IpNet::from(Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 0)?), Some(ROUTER.into()))?;
        ns.sysctl("net.ipv4.ip_forward", "1")?;
        if !self.way.uses_rules() {
            return Ok(());
        }
        let mut command = ns.command("nft");
        command.args(["-f", "-"]);
        let output = run.output(command, &rules(self.way == Way::FlowTable))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or_default().trim().to_owned();
            ensure!(self.way == Way::FlowTable, "nft refuses: {said}");
            self.lack = Some("this kernel has no flow tables".into());
        }
        Ok(())
    }
}

/// IPv6 would have frames of its own on the links.
pub(super) fn without_v6(ns: &Netns) -> Result<()> {
    ["all", "default"]
        .iter()
        .try_for_each(|scope| ns.sysctl(&format!("net.ipv6.conf.{scope}.disable_ipv6"), "1"))
}

fn sender() -> Result<OwnedFd> {
    // `r0 = XDP_TX; exit`, as `struct bpf_insn`.
    load_xdp(&[0xb7 | u64::from(kernel_run::XDP_TX) << 32, 0x95])
        .context("cannot load the program that sends")
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Destination and source are translated; a backend is chosen at random for each connection.
fn rules(flow_table: bool) -> String {
    let vip = Net::V4.vip();
    let backends = Net::V4.backends(Serving::ONE, 0);
    let mut chosen = String::new();
    for (n, backend) in backends.iter().enumerate() {
        let _ = write!(chosen, "{}{n} : {}", if n == 0 { "" } else { ", " }, backend.ip());
    }
    let port = backends.first().map_or(0, |backend| backend.port());
    let fast = "
    flowtable fast {
        hook ingress priority 0; devices = { eth0 };
    }
    chain forward {
        type filter hook forward priority filter; policy accept;
        ct state established flow add @fast
    }";
    format!(
        "table ip {TABLE} {{{}
    chain to_backends {{
        type nat hook prerouting priority dstnat; policy accept;
        ip daddr {} tcp dport {} dnat to numgen random mod {} map {{ {chosen} }}:{port}
    }}
    chain from_gateway {{
        type nat hook postrouting priority srcnat; policy accept;
        ct status dnat masquerade
    }}
}}
",
        if flow_table { fast } else { "" },
        vip.ip(),
        vip.port(),
        backends.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_translate_both_addresses_and_only_one_has_a_flow_table() {
        let (plain, fast) = (rules(false), rules(true));
        for text in [&plain, &fast] {
            assert!(
                text.contains("ip daddr 203.0.113.10 tcp dport 80 dnat to numgen random mod 128"),
                "{text}"
            );
            assert!(text.contains("127 : 10.0.0.128 }:8080") && text.contains("masquerade"), "{text}");
            assert_eq!(text.matches('{').count(), text.matches('}').count());
        }
        assert!(!plain.contains("flow add") && fast.contains("flow add @fast"));
    }
}
