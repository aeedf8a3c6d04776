//! Who may begin a flow at all, and how often (docs/adr/0018-mtu.md, 0020-floods.md).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::abi::{ClientWord, Counter, UDP, vip_flags};

use super::{
    Turn,
    packet::{Packet, word},
    refusing::is_host,
};

/// A network may begin the flows of so many nanoseconds at once.
const BURST: u64 = 1_000_000_000;

/// The network that a client stands for, of a prefix as long as the service asks for: by default an address, or an IPv6 /64.
fn network(client: IpAddr, asked: ClientWord) -> IpAddr {
    let beyond = u32::from(match client {
        IpAddr::V4(_) => asked.beyond() ^ ClientWord::BEYOND_V4,
        IpAddr::V6(_) => asked.beyond() ^ ClientWord::BEYOND_V6,
    });
    match client {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() >> (beyond % 32) << (beyond % 32)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> (beyond % 128) << (beyond % 128)).into(),
    }
}

impl Turn<'_> {
    /// Why a whole packet of no flow does not begin one.
    pub(super) fn kept_out(&self, packet: &Packet) -> Option<Counter> {
        let source = packet.source;
        // A VIP that is the node's own address is the node, which may be a client.
        let is_vip = self.agent.vip(source).is_some_and(|flags| flags & vip_flags::NODE_ADDRESS == 0);
        if !is_host(source) || source == packet.destination || is_vip {
            Some(Counter::DropMartian)
        } else if packet.lacks_checksum() {
            Some(Counter::DropNoChecksum)
        } else {
            None
        }
    }

    /// Whether a client's network may begin one more flow of a service, which is noted.
    pub(super) fn is_within_limit(&mut self, service: u32, client: IpAddr) -> bool {
        let asked = self.agent.clients(service);
        let interval = asked.interval();
        if interval == 0 {
            return true;
        }
        let full = self.model.limits.entry((service, network(client, asked))).or_default();
        let after = self.now.max(*full) + interval;
        if after - self.now > BURST {
            return false;
        }
        *full = after;
        true
    }
}

impl Packet {
    /// A datagram without a checksum, which it must have over IPv6 (RFC 8200, §8.1).
    pub(super) fn lacks_checksum(&self) -> bool {
        !self.is_v4() && self.protocol == UDP && word(self.segment(), 6) == Some(0)
    }
}
