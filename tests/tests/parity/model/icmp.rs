//! ICMP to the gateway (docs/adr/0015-icmp.md).

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{Counter, TCP, UDP, member_flags, vip_flags};

use super::{
    End, Key, Turn,
    agent::{has, is_same, place},
    flows::Port,
    packet::{Link, Packet, Quoted},
    refusing::is_host,
    requesting::next_hop,
    rewriting,
};

/// Highest offset in a frame at which a quoted packet may begin.
const LAST_QUOTE: usize = 128;

/// Who an error is for.
struct Receiver {
    source: IpAddr,
    destination: IpAddr,
    /// The quoted packet's ends as the receiver knows them.
    quoted: (SocketAddr, SocketAddr),
    link: Option<Link>,
}

impl Turn<'_> {
    pub(super) fn icmp(&mut self, packet: &Packet) -> End {
        let vip = self.agent.vip(packet.destination);
        let is_snat = self.agent.snat(packet.destination).is_some();
        let flags = vip.unwrap_or(0);
        let is_node = flags & vip_flags::NODE_ADDRESS != 0;
        let other = if is_node {
            End::Pass(Counter::PassNodeAddress)
        } else if is_snat {
            End::Pass(Counter::PassNoFlow)
        } else {
            End::Drop(Counter::DropIcmp)
        };
        let Some(&[kind, _]) = packet.bytes.get(packet.transport..packet.transport + 2) else { return other };
        let (request, errors): (u8, &[u8]) =
            if packet.is_v4() { (8, &[3, 11, 12]) } else { (128, &[1, 2, 3, 4]) };
        let answers = flags & vip_flags::ECHO != 0 && !is_node && !is_snat;
        if kind == request && answers {
            return self.echo(packet).unwrap_or(other);
        }
        if errors.contains(&kind) { self.error(packet, kind).unwrap_or(other) } else { other }
    }

    fn echo(&mut self, packet: &Packet) -> Option<End> {
        // A header that is cut short asks for nothing.
        let whole = packet.bytes.len() >= packet.transport + 4;
        if !is_host(packet.source) || packet.source == packet.destination || !whole {
            return None;
        }
        self.frame = [packet.link.back().bytes(packet.is_v4()), rewriting::echo(packet)].concat();
        self.count(Counter::EchoAnswered);
        Some(End::Send(self.ingress))
    }

    fn error(&mut self, packet: &Packet, kind: u8) -> Option<End> {
        if 14 + 4 * packet.link.tags.len() + packet.transport + 8 > LAST_QUOTE {
            return None;
        }
        let quoted = Quoted::read(packet)?;
        if quoted.source.ip() != packet.destination || ![TCP, UDP].contains(&quoted.protocol) {
            return None;
        }
        let receiver =
            self.client_of(packet, kind, &quoted).or_else(|| self.backend_of(packet.is_v4(), &quoted))?;
        if packet.ttl <= 1 {
            return Some(End::Drop(Counter::DropTtl));
        }
        let Some(link) = receiver.link else { return Some(End::Drop(Counter::DropNoNextHop)) };
        let ends = (receiver.source, receiver.destination);
        let bytes = rewriting::error(packet, &quoted, ends, receiver.quoted);
        if !self.put(packet, &link, bytes) {
            return Some(End::Drop(Counter::DropNoRoom));
        }
        self.count(Counter::IcmpForwarded);
        Some(End::Send(link.ifindex))
    }

    /// The client whose packet to a backend is quoted.
    fn client_of(&self, packet: &Packet, kind: u8, quoted: &Quoted) -> Option<Receiver> {
        if !self.agent.is_snat_port(quoted.source.port()) {
            return None;
        }
        let snat = self.agent.snat(quoted.source.ip())?;
        let backend = self.agent.backend_at(quoted.destination, quoted.protocol)?;
        let path = self.model.paths.get(&Port { backend, snat, port: quoted.source.port() })?;
        let member = self.agent.member(path.member);
        if !is_same(&member, path.generation) {
            return None;
        }
        let vip = self.agent.vip_of(&member)?;
        // A router on the way keeps its name where it only says that it is one.
        let time_exceeded = if packet.is_v4() { 11 } else { 3 };
        let is_router = kind == time_exceeded && packet.source != quoted.destination.ip();
        Some(Receiver {
            source: if is_router { packet.source } else { vip.ip() },
            destination: path.key.client.ip(),
            quoted: (path.key.client, vip),
            link: Some(path.back.clone()),
        })
    }

    /// The backend whose packet to a client is quoted.
    fn backend_of(&self, v4: bool, quoted: &Quoted) -> Option<Receiver> {
        let key = Key { client: quoted.destination, vip: quoted.source, protocol: quoted.protocol };
        let flow = self.model.flows.get(&key)?;
        let member = self.agent.member(flow.member);
        if !is_same(&member, flow.generation) {
            return None;
        }
        let snat = self.agent.snat_addresses(v4)[usize::from(flow.snat)];
        let backend = place(&member);
        Some(Receiver {
            source: snat,
            destination: backend.ip(),
            quoted: (backend, SocketAddr::new(snat, flow.port)),
            link: has(&member, member_flags::NEXT_HOP).then(|| next_hop(&member)),
        })
    }
}
