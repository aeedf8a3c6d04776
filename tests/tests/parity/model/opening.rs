//! A packet that begins a flow.

use lb_common::abi::{Counter, FlowState, UDP, member_flags};

use super::{
    End, Turn,
    agent::{has, is_tcp},
    choices::Given,
    flows::{Flow, Key, Path, Port},
    packet::Packet,
    selecting::{IN_FALLBACK, Rank, Wish},
};

impl Turn<'_> {
    pub(super) fn open(&mut self, packet: &Packet, key: &Key) -> Result<End, String> {
        let tcp = is_tcp(key.protocol);
        let Some(service) = self.agent.service(key.vip, key.protocol) else {
            return Ok(End::Drop(Counter::DropClosedPort));
        };
        if !self.agent.admits(service, packet.source) {
            return Ok(End::Drop(Counter::DropSource));
        }
        if tcp && !packet.flags().opens() {
            return Ok(End::Drop(Counter::DropNotSyn));
        }
        if packet.ttl <= 1 {
            return Ok(End::Drop(Counter::DropTtl));
        }
        if !self.learn(packet)? {
            return Ok(End::Drop(Counter::DropLastHopsFull));
        }
        if self.model.locked {
            return Ok(End::Drop(Counter::DropInsertContended));
        }
        if let Some(old) = self.model.flows.remove(key) {
            // It is over: closed, or its member is gone.
            self.count(Counter::FlowReclaimed);
            self.forget_path_of(key, &old);
            if old.state != FlowState::Closed {
                self.log(service, key);
            }
        }
        let stays = self.agent.clients(service).stay() > 0;
        let wish = Wish {
            service,
            place: self.agent.ring_hash(key, !stays),
            not: Vec::new(),
            elsewhere: 0,
            in_fallback: IN_FALLBACK,
        };
        let Some((rank, member)) = self.select_for(&wish) else {
            return Ok(End::Drop(Counter::DropNoBackend));
        };
        if self.host_counted(Counter::DropTableFull) > 0 {
            self.table_may_be_full(key)?;
            self.alarm();
            return Ok(End::Drop(Counter::DropTableFull));
        }
        let Some(given) = self.given(key, member)? else {
            self.alarm();
            return Ok(End::Drop(Counter::DropPortsExhausted));
        };
        self.record(packet, key, member, &given);
        self.count(Counter::FlowOpened);
        if rank == Rank::Tripped {
            self.count(Counter::FlowFailedOpen);
        }
        self.opened(packet, key, service);
        self.request(packet, key)
    }

    /// Where the flow's replies will go; false: there is no room to know it.
    fn learn(&mut self, packet: &Packet) -> Result<bool, String> {
        let is_known = self.model.hops.contains(&packet.link);
        if self.host_counted(Counter::DropLastHopsFull) > 0 {
            return if is_known { Err("the host forgot a last hop".into()) } else { Ok(false) };
        }
        if !is_known && self.model.last_hops_full {
            return Err("the host found room for a last hop in a full table".into());
        }
        self.model.hops.insert(packet.link.clone());
        Ok(true)
    }

    fn record(&mut self, packet: &Packet, key: &Key, member: u32, given: &Given) {
        let line = self.agent.member(member);
        self.model.made += 1;
        let number = self.model.made;
        let tcp = is_tcp(key.protocol);
        let tick = self.tick();
        let flow = Flow {
            number,
            state: if key.protocol == UDP { FlowState::UdpNew } else { FlowState::SynSent },
            member,
            generation: line.generation,
            snat: given.snat,
            port: given.port,
            attempt: None,
            before: 0,
            sent: self.now,
            isn: if tcp { packet.sequence() } else { 0 },
            server_isn: None,
            seen: tick,
            slot: given.slot,
        };
        let path = Path {
            key: *key,
            flow: number,
            member,
            generation: line.generation,
            back: packet.link.back(),
            replied: false,
            seen: tick,
        };
        self.model.flows.insert(*key, flow);
        self.model.paths.insert(Port { backend: line.backend, snat: given.snat, port: given.port }, path);
    }

    /// What is left to do for a new flow.
    fn opened(&mut self, packet: &Packet, key: &Key, service: u32) {
        let flow = self.model.flows[key].clone();
        self.remember(service, key, flow.member, flow.generation);
        if self.agent.notes(service, key) {
            if has(&self.agent.member(flow.member), member_flags::COUNTED) {
                self.begin_counting(flow.slot);
            }
            self.log(service, key);
        }
        if is_tcp(key.protocol) {
            self.admit(packet, key, service);
        }
    }

    /// Its traffic is counted in the element of its slot, unless another flow's is.
    fn begin_counting(&mut self, slot: (u32, u16)) {
        let element = slot.0 & self.agent.config.flow_stats_mask;
        let owner = self.model.counted.get(&element).copied();
        let lives =
            self.model.flows.values().any(|flow| Some(flow.slot) == owner && flow.state != FlowState::Closed);
        if lives {
            self.count(Counter::FlowUncounted);
        } else {
            self.model.counted.insert(element, slot);
        }
    }
}
