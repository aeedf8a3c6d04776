//! A client's packet of a flow that exists.

use std::net::SocketAddr;

use lb_common::abi::{Counter, FlowState, Member, member_flags};

use super::{
    End, Turn,
    agent::{has, is_same, is_tcp, place},
    flows::{ClientMove, Key, client_move},
    fragments::Way,
    packet::{Link, Packet, Shape},
    rewriting,
};

/// Where a member's packets go.
pub(super) fn next_hop(member: &Member) -> Link {
    let tags = [member.vlan_outer, member.vlan_inner][..usize::from(member.vlan_count)].to_vec();
    Link {
        to: member.destination_mac,
        from: member.source_mac,
        ifindex: member.ifindex,
        mtu: member.mtu,
        tags,
        service_tag: member.vlan_service_tag != 0,
    }
}

impl Turn<'_> {
    pub(super) fn request(&mut self, packet: &Packet, key: &Key) -> Result<End, String> {
        let flow = self.model.flows[key].clone();
        let member = self.agent.member(flow.member);
        let (tcp, flags) = (is_tcp(key.protocol), packet.flags());
        if !is_same(&member, flow.generation) {
            // Who can begin anew does.
            let begins = !tcp || flags.opens();
            return if begins { self.open(packet, key) } else { Ok(End::Drop(Counter::DropStaleMember)) };
        }
        if !tcp && has(&member, member_flags::REMOVED) {
            return self.open(packet, key);
        }
        if packet.ttl <= 1 {
            return Ok(End::Drop(Counter::DropTtl));
        }
        if tcp {
            let is_whole = packet.shape == Shape::Whole;
            if is_whole && flags.opens() && self.is_due(&flow) {
                return self.retry(packet, key);
            }
            match client_move(flow.state, flags) {
                ClientMove::Anew => return self.open(packet, key),
                ClientMove::Stay => {}
                ClientMove::To(state) => {
                    self.flow(key).state = state;
                    if state == FlowState::Closed {
                        self.log(member.service, key);
                    }
                }
                ClientMove::Prove(state) => {
                    if flow.server_isn.is_some_and(|isn| isn.wrapping_add(1) == packet.acknowledged()) {
                        self.flow(key).state = state;
                        self.count(Counter::FlowEstablished);
                    }
                }
            }
        } else if flow.state == FlowState::UdpReplied {
            // The client has heard the answer, perhaps.
            self.flow(key).state = FlowState::UdpAssured;
        }
        self.flow(key).seen = self.tick();
        if !has(&member, member_flags::NEXT_HOP) {
            return Ok(End::Drop(Counter::DropNoNextHop));
        }
        let link = next_hop(&member);
        if !self.fits(packet, link.mtu) {
            return Ok(End::Drop(Counter::DropTooBig));
        }
        let snat = self.agent.snat_addresses(packet.is_v4())[usize::from(flow.snat)];
        let backend = place(&member);
        let way = Way::ToBackend(flow.snat);
        let (ends, incarnation) = ((snat, backend.ip()), (flow.member, flow.generation));
        let id = self.begin(packet, ends, flow.number, incarnation, way)?;
        if packet.lacks_checksum() {
            return Ok(End::Drop(Counter::DropNoChecksum));
        }
        let bytes = rewriting::forwarded(packet, SocketAddr::new(snat, flow.port), backend);
        if !self.put(packet, &link, rewriting::identified(packet, bytes, id)) {
            return Ok(End::Drop(Counter::DropNoRoom));
        }
        if flags.syn() && packet.shape == Shape::Whole {
            self.clamp(packet, [link.mtu; 2]);
        }
        Ok(End::Send(link.ifindex))
    }

    pub(super) fn flow(&mut self, key: &Key) -> &mut super::Flow {
        self.model.flows.get_mut(key).expect("a flow that is known")
    }
}
