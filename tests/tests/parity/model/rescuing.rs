//! Connections that fail: trips, and SYNs that go to another backend (docs/adr/0012-failed-connections.md).

use lb_common::abi::{Counter, FlowState};

use super::{
    End, Turn,
    agent::is_same,
    flows::{Flow, Key, Path, Port, word_at},
    packet::{Packet, Shape, fold, sum},
    selecting::{FOR_RESCUE, IN_FALLBACK, Wish},
};

/// Backends that a SYN is taken to after the first one.
const MOST: u8 = 2;
/// A SYN that comes again later than this, in units of 2^24 ns, was not answered; time counts modulo 2^12 of them.
const UNANSWERED: u64 = 54;
const MODULUS: u64 = 1 << 12;
/// The part of the client's number that is kept.
const ISN_BITS: u32 = (1 << 21) - 1;
/// Fewest hops that a SYN must have left to be evidence.
const FEWEST_HOPS: u8 = 16;

/// What a backend did to connections.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trip {
    pub errors: u64,
    until: u64,
}

/// A copy of a SYN: its packet, and when it was made in units of 2^20 ns.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    key: Key,
    packet: Packet,
    time: u64,
}

impl Turn<'_> {
    pub(super) fn is_tripped(&self, backend: u32) -> bool {
        self.model.trips.get(&backend).is_some_and(|trip| trip.until > self.now)
    }

    /// A connection of a service to a backend failed.
    fn failed(&mut self, service: u32, backend: u32) {
        let reaction = self.agent.reaction(service);
        let now = self.now;
        let trip = self.model.trips.entry(backend).or_default();
        if reaction.errors() == 0 || trip.until > now {
            return;
        }
        trip.errors += 1;
        if trip.errors >= reaction.errors() {
            *trip = Trip { errors: 0, until: now + reaction.trip_nanoseconds() };
            self.count(Counter::BackendTripped);
            self.alarm();
        }
    }

    /// Whether a flow's next SYN may go to another backend.
    pub(super) fn is_due(&self, flow: &Flow) -> bool {
        let waited = ((self.now >> 24).wrapping_sub(flow.sent >> 24)) % MODULUS;
        match flow.state {
            FlowState::Refused => true,
            FlowState::SynSent => flow.attempt.is_some() && waited > UNANSWERED,
            _ => false,
        }
    }

    /// Decides about a new flow's SYN: whether it may go elsewhere, and whether a copy is kept.
    pub(super) fn admit(&mut self, packet: &Packet, key: &Key, service: u32) {
        if !is_evidence(packet) {
            return;
        }
        let is_plain = packet.acknowledged() == 0 && packet.segment()[18..20] == [0, 0];
        if self.agent.reaction(service).retries_on_reset() && is_plain {
            let time = self.now >> 20;
            let age = |copy: Option<&Copy>| copy.map_or(1024, |copy| time.wrapping_sub(copy.time) % 1024);
            let first = self.copy_place(key);
            let copies = &self.model.copies;
            let is_neighbour = age(copies.get(&(first ^ 1))) > age(copies.get(&first));
            let place = if is_neighbour { first ^ 1 } else { first };
            self.model.copies.insert(place, Copy { key: *key, packet: packet.clone(), time });
        }
        self.flow(key).attempt = Some(0);
    }

    fn copy_place(&self, key: &Key) -> u32 {
        self.agent.hash(key).syn_copy(self.agent.config.flow_bucket_mask)
    }

    /// The copy of a flow's SYN whose number this is the next after.
    fn copy_of(&self, key: &Key, next: u32) -> Option<Packet> {
        let first = self.copy_place(key);
        let copies = [first, first ^ 1].map(|place| self.model.copies.get(&place));
        let is_it = |copy: &&Copy| copy.key == *key && copy.packet.sequence().wrapping_add(1) == next;
        copies.into_iter().flatten().find(is_it).map(|copy| copy.packet.clone())
    }

    /// The next backend of a flow, and where it may not be.
    fn next(&self, flow: &Flow, place: u64, for_rescue: bool) -> Wish {
        let member = self.agent.member(flow.member);
        let again = flow.attempt != Some(0);
        Wish {
            service: member.service,
            place,
            not: if again { vec![flow.member, flow.before] } else { vec![flow.member] },
            elsewhere: if again && for_rescue { self.agent.backend(member.backend).cluster } else { 0 },
            in_fallback: if for_rescue { FOR_RESCUE } else { IN_FALLBACK },
        }
    }

    /// A backend's RST to a SYN.
    pub(super) fn refused(&mut self, packet: &Packet, port: &Port, path: &Path) -> Result<End, String> {
        let key = path.key;
        let flow = self.model.flows[&key].clone();
        let next_number = packet.acknowledged();
        let answers = (flow.isn.wrapping_add(1) ^ next_number) & ISN_BITS == 0 && flow.server_isn.is_none();
        if !packet.flags().ack() || !answers {
            return self.give_back(packet, path, false);
        }
        let member = self.agent.member(path.member);
        if self.agent.vip_of(&member).is_none() {
            return Ok(End::Drop(Counter::DropNotReady));
        }
        let wish = self.next(&flow, self.agent.ring_hash(&key, true), false);
        let has_heir = self.agent.reaction(member.service).retries_on_reset()
            && flow.attempt.is_some_and(|attempt| attempt < MOST)
            && self.select(&wish).is_some();
        self.flow(&key).state = if has_heir { FlowState::Refused } else { FlowState::Closed };
        self.count(Counter::ConnectRefused);
        self.failed(member.service, port.backend);
        if !has_heir {
            self.log(member.service, &key);
            return self.give_back(packet, path, false);
        }
        let Some(syn) = self.copy_of(&key, next_number) else { return Ok(End::Drop(Counter::DropRefused)) };
        // Without tags, addresses or padding; its head grows where it is longer than the RST.
        let link = super::Link { to: [0; 6], from: [0; 6], tags: Vec::new(), ..packet.link.clone() };
        let mut bytes = syn.bytes;
        bytes.truncate(syn.total);
        let frame = [link.bytes(packet.is_v4()), bytes].concat();
        let before = self.frame.len() + self.room;
        let Some(room) = before.checked_sub(frame.len()) else { return Ok(End::Drop(Counter::DropRefused)) };
        (self.frame, self.room) = (frame, room);
        let syn = Packet::read(&self.frame, self.ingress, self.mtu).expect("a copy of a packet");
        // Its client is not where this frame came from.
        self.narrow(&syn, &[path.back.mtu]);
        let syn = Packet::read(&self.frame, self.ingress, self.mtu).expect("the same");
        self.retry(&syn, &key)
    }

    /// A SYN whose flow has failed.
    pub(super) fn retry(&mut self, packet: &Packet, key: &Key) -> Result<End, String> {
        if self.model.locked {
            return Ok(End::Drop(Counter::DropInsertContended));
        }
        let flow = self.model.flows[key].clone();
        let member = self.agent.member(flow.member);
        if !is_same(&member, flow.generation) {
            return Ok(End::Drop(Counter::DropStaleMember));
        }
        self.flow(key).seen = self.tick();
        let was_silent = flow.state == FlowState::SynSent;
        let moved = !packet.has_data() && self.move_flow(key, &flow)?;
        self.flow(key).state = FlowState::SynSent;
        if !moved {
            self.flow(key).attempt = None;
        }
        if was_silent {
            self.count(Counter::ConnectUnanswered);
            self.failed(member.service, member.backend);
        }
        if moved {
            self.count(Counter::FlowRescued);
            self.log(member.service, key);
        }
        self.request(packet, key)
    }

    /// Takes a flow to another backend; false: there is none, or no port there.
    fn move_flow(&mut self, key: &Key, flow: &Flow) -> Result<bool, String> {
        let Some(attempt) = flow.attempt.filter(|attempt| *attempt < MOST) else { return Ok(false) };
        // Only the path knows where the client is.
        let Some((old_port, path)) = self.path_of(flow, key) else { return Ok(false) };
        let wish = self.next(flow, self.agent.ring_hash(key, true), true);
        let Some((_, index)) = self.select(&wish) else { return Ok(false) };
        let reclaimed = self.evict_from_ports(Some(key))?;
        let word = word_at(self.agent.maps, flow.slot.0);
        if self.host_counted(Counter::FlowRescued) == 0 {
            // No port; that is no reason to drop the SYN.
            return Ok(false);
        }
        if word.member() != index || word.version() != flow.slot.1 {
            return Err(format!("{key:?} went to member {}, not {index}", word.member()));
        }
        if reclaimed {
            self.count(Counter::PortReclaimed);
        }
        self.is_free(index, word.snat(), word.port())?;
        let line = self.agent.member(index);
        let tick = self.tick();
        let port = Port { backend: line.backend, snat: word.snat(), port: word.port() };
        self.model.paths.remove(&old_port);
        let generation = line.generation;
        let path = Path { member: index, generation, replied: false, seen: tick, ..path };
        self.model.paths.insert(port, path);
        let (now, before) = (self.now, flow.member);
        let flow = self.flow(key);
        (flow.member, flow.generation, flow.snat, flow.port) = (index, generation, port.snat, port.port);
        (flow.attempt, flow.before, flow.sent) = (Some(attempt + 1), before, now);
        Ok(true)
    }
}

/// Whether a backend that is well would answer a SYN.
fn is_evidence(packet: &Packet) -> bool {
    let header = if packet.is_v4() { 20 } else { 40 };
    packet.shape == Shape::Whole
        && packet.transport == header
        && packet.ttl >= FEWEST_HOPS
        && !packet.has_data()
        && (!packet.is_v4() || fold(sum(&packet.bytes[..20])) == 0xffff)
        && fold(packet.covered()) == 0xffff
}
