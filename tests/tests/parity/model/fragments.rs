//! Fragments: the first one goes the way of a whole packet, the later ones follow it (docs/adr/0019-fragments.md).

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use lb_common::{
    abi::{Counter, FRAGMENT_RECORDS, FRAGMENT_TICKS, FRAGMENT_WAYS, TCP, member_flags, vip_flags},
    clock::TICK_SHIFT,
    datapath::Verdict,
};

use super::{
    End, Key, Turn,
    agent::{has, is_same, place},
    packet::{Link, Packet, Part, Shape},
    requesting::next_hop,
    rewriting,
};

/// A packet in fragments that is younger, in ticks, has others on the way.
const RECENT: u64 = 4;
/// So many ticks later a first fragment may still be the same one again.
const DOUBLED: u64 = 1;
/// Units of eight bytes in TCP's shortest header, rounded up.
const TCP_HEADER: u16 = 3;

/// What makes fragments those of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub id: [u8; 4],
    /// 0 over IPv6, where it is no part of the name.
    pub protocol: u8,
}

/// Where a packet's later fragments go.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// To the member, from this SNAT address.
    ToBackend(u8),
    /// To the client, by the link that the flow came by.
    ToClient(IpAddr, Link),
}

/// What the first fragment of a packet has left.
#[derive(Clone, Debug)]
pub(super) struct Record {
    name: Name,
    /// The flow's number, its member, and which one that was.
    pub flow: u64,
    pub member: u32,
    pub generation: u8,
    pub way: Way,
    /// The identification that the packet has behind the gateway; `None`: none of it has come out yet.
    id: Option<[u8; 4]>,
    tick: u64,
}

/// Who has packets with identifications of their own: two addresses, and over IPv4 a protocol.
type Pair = (IpAddr, IpAddr, u8);

/// What is known of fragments.
#[derive(Default)]
pub(super) struct Fragments {
    /// Sets of four records.
    sets: HashMap<u32, [Option<Record>; FRAGMENT_WAYS as usize]>,
    /// Identifications that packets have left with: no two may have the same one.
    given: HashMap<Pair, HashSet<[u8; 4]>>,
}

impl Fragments {
    fn find(&self, set: u32, name: &Name) -> Option<&Record> {
        self.sets.get(&set)?.iter().flatten().find(|record| record.name == *name)
    }

    /// Notes that a packet leaves with this identification.
    fn give(&mut self, pair: Pair, id: [u8; 4]) -> Result<(), String> {
        let is_new = self.given.entry(pair).or_default().insert(id);
        if is_new {
            Ok(())
        } else {
            Err(format!("two packets of {pair:?} have the identification {id:02x?}"))
        }
    }
}

impl Turn<'_> {
    /// A fragment to a VIP or a SNAT address.
    pub(super) fn fragment(&mut self, packet: &Packet) -> Result<End, String> {
        let packet = &packet.looked_into();
        match (packet.shape, packet.part) {
            (Shape::First, Some(_)) => self.first(packet),
            (Shape::Fragment, Some(part)) => self.later(packet, part),
            (Shape::Other, _) => Ok(self.not_ours(packet, Counter::DropFragment)),
            _ => Ok(self.not_ours(packet, Counter::DropFragmentHeader)),
        }
    }

    /// One that is part of no flow.
    fn not_ours(&self, packet: &Packet, reason: Counter) -> End {
        let vip = self.agent.vip(packet.destination);
        if vip.is_some_and(|flags| flags & vip_flags::NODE_ADDRESS != 0) {
            End::Pass(Counter::PassNodeAddress)
        } else if self.agent.snat(packet.destination).is_some() {
            End::Pass(Counter::PassNoFlow)
        } else {
            End::Drop(reason)
        }
    }

    fn first(&mut self, packet: &Packet) -> Result<End, String> {
        let key = Key { client: packet.from(), vip: packet.to(), protocol: packet.protocol };
        if self.model.flows.contains_key(&key) {
            return self.request(packet, &key);
        }
        if self.agent.service(key.vip, key.protocol).is_some() {
            return match self.kept_out(packet) {
                Some(counter) => Ok(End::Drop(counter)),
                None => self.open(packet, &key),
            };
        }
        let reply = self.reply(packet)?;
        Ok(reply.unwrap_or_else(|| self.not_ours(packet, Counter::DropClosedPort)))
    }

    fn name(&self, packet: &Packet, part: Part) -> (Name, u32) {
        let protocol = if packet.is_v4() { packet.protocol } else { 0 };
        let name = Name { source: packet.source, destination: packet.destination, id: part.id, protocol };
        let set = self.agent.packet_hash(&name).first_bucket(self.agent.config.flow_bucket_mask);
        (name, set & (FRAGMENT_RECORDS / FRAGMENT_WAYS - 1))
    }

    /// The identification of the packet that the host has sent, if it has.
    fn chosen(&self) -> Option<[u8; 4]> {
        if !matches!(self.said.verdict, Verdict::Transmit | Verdict::Redirect(_)) {
            return None;
        }
        let sent = Packet::read(self.said.frame, self.ingress, 0)?.looked_into();
        sent.part.map(|part| part.id)
    }

    /// Keeps where the packet's later fragments go, from and to where it goes itself, and gives it its new
    /// identification.
    ///
    /// # Errors
    /// Another packet between these two has it.
    pub(super) fn begin(
        &mut self,
        packet: &Packet,
        ends: (IpAddr, IpAddr),
        flow: u64,
        (member, generation): (u32, u8),
        way: Way,
    ) -> Result<Option<[u8; 4]>, String> {
        let Some(part) = packet.part.filter(|part| packet.shape == Shape::First && part.more) else {
            return Ok(None);
        };
        let (name, set) = self.name(packet, part);
        let (now, chosen) = (self.now >> TICK_SHIFT, self.chosen());
        let fragments = &mut self.model.fragments;
        let twice = |record: &&Record| record.flow == flow && now - record.tick <= DOUBLED;
        let mut id = fragments.find(set, &name).filter(twice).and_then(|record| record.id);
        if id.is_none()
            && let Some(new) = chosen
        {
            fragments.give((ends.0, ends.1, name.protocol), new)?;
            id = Some(new);
        }
        let ways = fragments.sets.entry(set).or_default();
        let own = ways.iter().position(|way| way.as_ref().is_some_and(|record| record.name == name));
        // An empty one, or the oldest.
        let age = |way: &usize| ways[*way].as_ref().map_or(0, |record| record.tick + 1);
        let index = own.unwrap_or_else(|| (0..ways.len()).min_by_key(age).expect("four ways"));
        let displaced = ways[index]
            .replace(Record { name, flow, member, generation, way, id, tick: now })
            .is_some_and(|old| own.is_none() && now - old.tick < RECENT);
        if displaced {
            self.count(Counter::FragmentDisplaced);
        }
        self.count(Counter::FragmentTracked);
        Ok(id)
    }

    fn later(&mut self, packet: &Packet, part: Part) -> Result<End, String> {
        let (name, set) = self.name(packet, part);
        let now = self.now >> TICK_SHIFT;
        let record =
            self.model.fragments.find(set, &name).filter(|record| now - record.tick <= FRAGMENT_TICKS);
        let Some(record) = record.cloned() else {
            return Ok(self.not_ours(packet, Counter::DropFragment));
        };
        // It would be written over TCP's header.
        if packet.protocol == TCP && part.place < TCP_HEADER {
            return Ok(End::Drop(Counter::DropFragmentHeader));
        }
        let member = self.agent.member(record.member);
        if !is_same(&member, record.generation) {
            return Ok(End::Drop(Counter::DropStaleMember));
        }
        if packet.ttl <= 1 {
            return Ok(End::Drop(Counter::DropTtl));
        }
        let (source, destination, link) = match &record.way {
            Way::ToBackend(_) if !has(&member, member_flags::NEXT_HOP) => {
                return Ok(End::Drop(Counter::DropNoNextHop));
            }
            Way::ToBackend(snat) => {
                let snat = self.agent.snat_addresses(packet.is_v4())[usize::from(*snat)];
                (snat, place(&member).ip(), next_hop(&member))
            }
            Way::ToClient(client, back) => match self.agent.vip_of(&member) {
                Some(vip) => (vip.ip(), *client, back.clone()),
                None => return Ok(End::Drop(Counter::DropNotReady)),
            },
        };
        if !self.fits(packet, link.mtu) {
            return Ok(End::Drop(Counter::DropTooBig));
        }
        let id = self.id_of(&record, set, (source, destination))?;
        let bytes = rewriting::follower(packet, source, destination);
        let bytes = rewriting::identified(packet, bytes, id);
        if !self.put(packet, &link, bytes) {
            return Ok(End::Drop(Counter::DropNoRoom));
        }
        self.count(Counter::FragmentForwarded);
        Ok(End::Send(link.ifindex))
    }

    /// The identification of a packet, which nobody has seen yet where its first fragment did not come out.
    fn id_of(
        &mut self,
        record: &Record,
        set: u32,
        (source, destination): (IpAddr, IpAddr),
    ) -> Result<Option<[u8; 4]>, String> {
        let chosen = self.chosen();
        let (None, Some(id)) = (record.id, chosen) else { return Ok(record.id) };
        let fragments = &mut self.model.fragments;
        fragments.give((source, destination, record.name.protocol), id)?;
        let ways = fragments.sets.get_mut(&set).expect("the record's set");
        ways.iter_mut().flatten().filter(|other| other.name == record.name).for_each(|own| own.id = Some(id));
        Ok(Some(id))
    }
}
