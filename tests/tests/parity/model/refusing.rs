//! The senders of dropped packets hear of it (docs/adr/0016-active-refusal.md).

use std::net::IpAddr;

use lb_common::abi::{Counter, TCP, UDP};

use super::{
    Turn,
    packet::{ICMP, ICMP_V6, Packet, Shape, fold, sum, word},
    rewriting,
};

/// What a sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Port,
    Prohibited,
    Protocol,
    TimeExceeded,
}

impl Refusal {
    pub(super) const fn after(reason: Counter) -> Option<Self> {
        match reason {
            Counter::DropClosedPort | Counter::DropNoBackend | Counter::DropNotSyn => Some(Self::Port),
            Counter::DropSource => Some(Self::Prohibited),
            Counter::DropProtocol => Some(Self::Protocol),
            Counter::DropTtl => Some(Self::TimeExceeded),
            _ => None,
        }
    }

    /// ICMP's type and code.
    const fn said(self, v4: bool) -> [u8; 2] {
        match (self, v4) {
            (Self::Port, true) => [3, 3],
            (Self::Port, false) => [1, 4],
            (Self::Prohibited, true) => [3, 13],
            (Self::Prohibited, false) => [1, 1],
            (Self::Protocol, true) => [3, 2],
            (Self::Protocol, false) => [4, 1],
            (Self::TimeExceeded, true) => [11, 0],
            (Self::TimeExceeded, false) => [3, 0],
        }
    }
}

/// Longest segment whose checksum is looked at.
const LONGEST_CHECKED: usize = 4096;
/// Traffic class of errors (RFC 1812, §4.3.2.5).
const PRECEDENCE: u8 = 0xc0;

/// Whether an address can be one host's.
pub(super) fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.octets()[0] != 0 && ip.octets()[0] != 127 && ip.octets()[0] < 224,
        // In ::/64 are loopback, the unspecified address, and IPv4's in other forms.
        IpAddr::V6(ip) => !ip.is_multicast() && ip.segments()[..4] != [0; 4],
    }
}

impl Turn<'_> {
    /// Makes the frame the answer; false: there is none.
    pub(super) fn refuse(&mut self, packet: &Packet, refusal: Refusal) -> bool {
        if !self.may_hear(packet, refusal) {
            return false;
        }
        let tick = self.tick();
        if *self.model.refusals.spent(tick) >= self.agent.config.refusals_per_tick {
            self.count(Counter::RefusalLimited);
            return false;
        }
        if !is_intact(packet) {
            return false;
        }
        *self.model.refusals.spent(tick) += 1;
        let answer = if packet.protocol == TCP && refusal == Refusal::Port {
            reset(packet)
        } else {
            let growth = if packet.is_v4() { 28 } else { 48 };
            if growth > self.room {
                self.count(Counter::RefusalNoRoom);
                return false;
            }
            self.complaint(packet, refusal)
        };
        self.frame = [packet.link.back().bytes(packet.is_v4()), answer].concat();
        self.count(Counter::RefusalSent);
        true
    }

    fn may_hear(&self, packet: &Packet, refusal: Refusal) -> bool {
        let to_many = packet.link.to[0] & 1 != 0 || !is_host(packet.destination);
        let from_nobody = !is_host(packet.source)
            || packet.source == packet.destination
            || self.agent.vip(packet.source).is_some();
        let kind = packet.bytes.get(packet.transport..packet.transport + 2).map(|bytes| bytes[0]);
        let asks = match packet.shape {
            Shape::Whole => !packet.flags().rst(),
            Shape::Other if packet.is_icmp() => kind == Some(if packet.is_v4() { 8 } else { 128 }),
            // "No next header": nothing that a protocol would be missed for.
            Shape::Other => refusal != Refusal::Protocol || packet.protocol != 59,
            Shape::Fragment | Shape::Malformed => false,
        };
        asks && !to_many && !from_nobody
    }

    /// An ICMP error about a packet.
    fn complaint(&self, packet: &Packet, refusal: Refusal) -> Vec<u8> {
        let v4 = packet.is_v4();
        let field = if refusal == Refusal::Protocol && !v4 { protocol_field(packet) } else { 0 };
        let own = self.agent.snat_addresses(v4);
        // A hop on the way to a VIP is the gateway, under its own name.
        let is_hop = refusal == Refusal::TimeExceeded && self.agent.vip(packet.destination).is_some();
        let source = if is_hop && !own.is_empty() { own[0] } else { packet.destination };
        let most = if v4 { 576 - 28 } else { 1280 - 48 };
        let mut message = refusal.said(v4).to_vec();
        message.extend([0, 0]);
        message.extend(field.to_be_bytes());
        message.extend(&packet.bytes[..packet.total.min(most)]);
        let protocol = if v4 { ICMP } else { ICMP_V6 };
        rewriting::own(source, packet.source, protocol, PRECEDENCE, message, 2)
    }
}

/// The RST that a segment's sender accepts (RFC 9293, §3.10.7.1).
fn reset(packet: &Packet) -> Vec<u8> {
    let flags = packet.flags();
    let counted =
        packet.segment().len() - packet.tcp_header() + usize::from(flags.syn()) + usize::from(flags.fin());
    let (sequence, acknowledged, says) = if flags.ack() {
        (packet.acknowledged(), 0, 0x04)
    } else {
        (0, packet.sequence().wrapping_add(counted as u32), 0x14)
    };
    let mut segment = [packet.to().port().to_be_bytes(), packet.from().port().to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledged.to_be_bytes());
    segment.extend([0x50, says, 0, 0, 0, 0, 0, 0]);
    rewriting::own(packet.destination, packet.source, TCP, 0, segment, 16)
}

/// Whether all checksums of a packet are right.
fn is_intact(packet: &Packet) -> bool {
    if packet.is_v4() && fold(sum(&packet.bytes[..packet.transport])) != 0xffff {
        return false;
    }
    let checked = packet.protocol == TCP || packet.protocol == UDP || packet.is_icmp();
    if !checked {
        return true;
    }
    if packet.protocol == UDP && word(packet.segment(), 6) == Some(0) {
        return packet.is_v4();
    }
    packet.segment().len() <= LONGEST_CHECKED && fold(packet.covered()) == 0xffff
}

/// Where in an IPv6 packet the number of its transport protocol stands.
fn protocol_field(packet: &Packet) -> u32 {
    let (mut field, mut header) = (6, 40);
    while header < packet.transport {
        field = header as u32;
        header += (usize::from(packet.bytes[header + 1]) + 1) * 8;
    }
    field
}
