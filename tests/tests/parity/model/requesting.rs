//! A client's packet of a flow that exists.

use std::net::SocketAddr;

use lb_common::abi::{Counter, FlowState, Member, member_flags};

use super::{
    End, Turn,
    agent::{has, is_same, is_tcp, place},
    flows::{ClientMove, Key, client_move},
    packet::{Link, Packet},
    rewriting,
};

/// Where a member's packets go.
pub(super) fn next_hop(member: &Member) -> Link {
    let tags = [member.vlan_outer, member.vlan_inner][..usize::from(member.vlan_count)].to_vec();
    Link {
        to: member.destination_mac,
        from: member.source_mac,
        ifindex: member.ifindex,
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
            if flags.opens() && self.is_due(&flow) {
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
        }
        self.flow(key).seen = self.tick();
        if !has(&member, member_flags::NEXT_HOP) {
            return Ok(End::Drop(Counter::DropNoNextHop));
        }
        let snat = self.agent.snat_addresses(packet.is_v4())[usize::from(flow.snat)];
        let bytes = rewriting::forwarded(packet, SocketAddr::new(snat, flow.port), place(&member));
        let link = next_hop(&member);
        let fits = self.put(packet, &link, bytes);
        Ok(if fits { End::Send(link.ifindex) } else { End::Drop(Counter::DropNoRoom) })
    }

    pub(super) fn flow(&mut self, key: &Key) -> &mut super::Flow {
        self.model.flows.get_mut(key).expect("a flow that is known")
    }
}
