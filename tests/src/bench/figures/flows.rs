//! The network that packets are made of: clients, a VIP, backends, and the frames of each case.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, anyhow, ensure};
use lb_common::{
    abi::{TCP, UDP},
    host::{ACK, Frame, SYN, Seen, TAG_8021Q},
};

use crate::kernel_run::{Runner, XDP_DROP, XDP_TX};

const VLAN: u16 = 100;

/// What all packets of a case have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Net {
    V4,
    V6,
    /// IPv4 with an 802.1Q tag, in and out.
    Vlan,
}

/// What a gateway serves: services with a VIP each, over backends that no other service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Serving {
    pub(super) services: u32,
    /// A service of each has the same VIP and backends.
    pub(super) protocols: &'static [u8],
    /// Of each of them.
    pub(super) backends: u32,
}

impl Serving {
    /// Backends enough for a million flows with 16,384 ports each, twice over.
    pub(super) const ONE: Serving = Serving { services: 1, protocols: &[TCP, UDP], backends: 128 };

    /// Backends of all services of a protocol.
    pub(super) const fn all_backends(self) -> u32 {
        self.services * self.backends
    }

    /// Whom the n-th client asks.
    pub(super) fn vip_for(self, net: Net, n: u32) -> SocketAddr {
        net.vip_of(n % self.services)
    }
}

/// An established flow, as the gateway has made it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    client: SocketAddr,
    vip: SocketAddr,
    backend: SocketAddr,
    snat: SocketAddr,
}

impl Net {
    /// The first service's.
    pub(super) fn vip(self) -> SocketAddr {
        self.vip_of(0)
    }

    /// The VIP of a service, below 2¹⁶, and its port.
    pub(super) fn vip_of(self, service: u32) -> SocketAddr {
        match self {
            Net::V4 | Net::Vlan => (Ipv4Addr::from_bits(0xcb00_710a + service), 80).into(),
            Net::V6 => (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, service as u16, 0x10), 80).into(),
        }
    }

    /// The gateway's own address, which backends see.
    pub(super) fn snat(self) -> IpAddr {
        match self {
            Net::V4 | Net::Vlan => Ipv4Addr::new(192, 168, 0, 2).into(),
            Net::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).into(),
        }
    }

    /// The backends of a service.
    pub(super) fn backends(self, serving: Serving, service: u32) -> Vec<SocketAddr> {
        let backend = |n: u32| match self {
            Net::V4 | Net::Vlan => SocketAddr::from((Ipv4Addr::from_bits(0x0a00_0000 + n), 8080)),
            Net::V6 => (Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, (n >> 16) as u16, n as u16), 8080).into(),
        };
        let first = service * serving.backends + 1;
        (first..first + serving.backends).map(backend).collect()
    }

    /// The tags of its frames.
    pub(super) fn vlans(self) -> Vec<u16> {
        if self == Net::Vlan { vec![VLAN] } else { Vec::new() }
    }

    /// Eight flows of each client; below 2²⁰.
    pub(super) fn client(self, n: u32) -> SocketAddr {
        let port = 32768 + (n % 8) as u16 * 37;
        match self {
            Net::V4 | Net::Vlan => (Ipv4Addr::from_bits(0xc612_0000 + n / 8), port).into(),
            Net::V6 => {
                let [high, low] = [(n >> 19) as u16, (n >> 3) as u16];
                (Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, high, low), port).into()
            }
        }
    }

    fn tagged(self, frame: Frame) -> Vec<u8> {
        let tags: Vec<(u16, u16)> = self.vlans().iter().map(|vlan| (TAG_8021Q, *vlan)).collect();
        frame.tags(&tags).build()
    }

    /// The first frame of a TCP flow to the first service.
    pub(super) fn syn(self, n: u32) -> Vec<u8> {
        self.syn_to(self.vip(), n)
    }

    /// The first frame of a TCP flow.
    pub(super) fn syn_to(self, vip: SocketAddr, n: u32) -> Vec<u8> {
        self.tagged(Frame::tcp(self.client(n), vip, SYN))
    }

    /// The first frame of a UDP flow.
    pub(super) fn datagram(self, n: u32) -> Vec<u8> {
        self.tagged(Frame::udp(self.client(n), self.vip()))
    }

    /// A SYN to a port of the VIP that no service has.
    pub(super) fn to_closed_port(self, n: u32) -> Vec<u8> {
        let closed = SocketAddr::new(self.vip().ip(), 81);
        self.tagged(Frame::tcp(self.client(n), closed, SYN))
    }

    /// What a router forwards: to many addresses that are not the gateway's.
    pub(super) fn foreign(self, n: u32) -> Vec<u8> {
        let there = Ipv4Addr::from_bits(0x2c00_0000 + n.wrapping_mul(0x9e37_79b1) % (1 << 24));
        self.tagged(Frame::tcp(self.client(n), (there, 443).into(), ACK).numbers(1001, 5001))
    }

    /// The n-th client's packets once its connection stands.
    pub(super) fn segment_to(self, vip: SocketAddr, n: u32) -> Vec<u8> {
        self.tagged(Frame::tcp(self.client(n), vip, ACK).numbers(1001, 5001))
    }

    /// A packet of an established flow.
    pub(super) fn request(self, flow: &Flow) -> Vec<u8> {
        self.tagged(Frame::tcp(flow.client, flow.vip, ACK).numbers(1001, 5001))
    }

    /// A reply of an established flow.
    pub(super) fn reply(self, flow: &Flow) -> Vec<u8> {
        self.tagged(Frame::tcp(flow.backend, flow.snat, ACK).numbers(5001, 1001))
    }

    /// Makes the n-th client's flow by a handshake through a program, each frame judged when it comes out; none where
    /// there is no room for this one, as happens to a few while a table fills up.
    pub(super) fn establish(
        self,
        vip: SocketAddr,
        runner: &mut Runner,
        n: u32,
        ingress: u32,
    ) -> Result<Option<Flow>> {
        let client = self.client(n);
        let syn = self.syn_to(vip, n);
        if runner.run(&syn, ingress, HEAD_ROOM)?.action == XDP_DROP {
            return Ok(None);
        }
        // The same SYN once more goes the same way.
        let syn = through(runner, &syn, ingress)?;
        let flow = Flow { client, vip, backend: syn.destination, snat: syn.source };
        ensure!(flow.snat.ip() == self.snat(), "{client}'s SYN left from {}", flow.snat);
        let answer = Frame::tcp(flow.backend, flow.snat, SYN | ACK).numbers(5000, 1001);
        let answer = through(runner, &self.tagged(answer), ingress)?;
        ensure!((answer.source, answer.destination) == (vip, client), "the answer went to another");
        let last = through(runner, &self.request(&flow), ingress)?;
        ensure!((last.source, last.destination) == (flow.snat, flow.backend), "a flow has two ways");
        Ok(Some(flow))
    }
}

/// A frame through a program that must send it.
fn through(runner: &mut Runner, frame: &[u8], ingress: u32) -> Result<Seen> {
    let outcome = runner.run(frame, ingress, HEAD_ROOM)?;
    ensure!(outcome.action == XDP_TX, "a frame of a handshake was not sent ({})", outcome.action);
    Seen::parse(outcome.frame).map_err(|error| anyhow!("a frame of a handshake came out wrong: {error}"))
}

/// As the tape's frames have it.
const HEAD_ROOM: usize = crate::kernel_run::MAX_HEAD_ROOM;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_million_clients_are_a_million() {
        for net in [Net::V4, Net::V6] {
            let all: HashSet<SocketAddr> = (0..1 << 20).map(|n| net.client(n)).collect();
            assert_eq!(all.len(), 1 << 20);
        }
    }

    #[test]
    fn no_two_services_have_a_vip_or_a_backend_in_common() {
        let serving = Serving { services: 10_000, protocols: &[TCP], backends: 10 };
        for net in [Net::V4, Net::V6] {
            let vips: HashSet<SocketAddr> = (0..10_000).map(|n| serving.vip_for(net, n)).collect();
            let backends: HashSet<SocketAddr> =
                (0..10_000).flat_map(|service| net.backends(serving, service)).collect();
            assert_eq!((vips.len(), backends.len()), (10_000, 100_000));
            assert_eq!(serving.vip_for(net, 10_003), net.vip_of(3));
        }
    }

    #[test]
    fn what_is_tagged_is_so_everywhere() {
        assert_eq!(Net::Vlan.syn(3).len(), Net::V4.syn(3).len() + 4);
        assert_eq!(&Net::Vlan.foreign(3)[12..16], [0x81, 0, 0, 100]);
    }
}
