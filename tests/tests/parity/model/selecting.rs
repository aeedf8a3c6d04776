//! Which member a new flow gets, and with whom a client stays (docs/adr/0008-rings.md, 0017-clients.md).

use lb_common::{
    abi::{Counter, RingWord, backend_flags, member_flags},
    clock::TICK_SHIFT,
    hash,
};

use super::{Key, Turn, agent::has};

/// Candidates in the ring, and in the fallback ring.
const IN_RING: u32 = 8;
pub(super) const IN_FALLBACK: u32 = 16;
pub(super) const FOR_RESCUE: u32 = 48;

/// How good a member is for a key, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Good,
    SameCluster,
    Tripped,
}

/// What is looked for.
pub(super) struct Wish {
    pub service: u32,
    pub place: u64,
    /// Members that it must not be.
    pub not: Vec<u32>,
    /// The cluster that it is better not in; 0: none.
    pub elsewhere: u32,
    pub in_fallback: u32,
}

/// A client that is remembered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    name: u64,
    member: u32,
    generation: u8,
    /// Tick of its last new flow, and how long it stays then.
    since: u64,
    stay: u64,
}

impl Client {
    /// Ticks that are left of its stay, the last one included.
    fn left(&self, now: u64) -> u64 {
        (self.stay + 1).saturating_sub(now.saturating_sub(self.since))
    }
}

impl Turn<'_> {
    /// The rank of a member; `None`: it takes no new flow.
    fn rank(&self, index: u32, wish: &Wish) -> Option<Rank> {
        if index >= self.agent.maps.members.len() || wish.not.contains(&index) {
            return None;
        }
        let member = self.agent.member(index);
        let usual = has(&member, member_flags::VALID)
            && has(&member, member_flags::NEXT_HOP)
            && !has(&member, member_flags::DRAINING)
            && !has(&member, member_flags::REMOVED);
        if !usual || member.service != wish.service {
            return None;
        }
        let backend = self.agent.backend(member.backend);
        if backend.flags & backend_flags::USABLE == 0 {
            None
        } else if self.is_tripped(member.backend) {
            Some(Rank::Tripped)
        } else if wish.elsewhere != 0 && backend.cluster == wish.elsewhere {
            Some(Rank::SameCluster)
        } else {
            Some(Rank::Good)
        }
    }

    /// The first of the best among so many candidates of a ring, up to the first good one.
    fn walk(&self, ring: RingWord, candidates: u32, wish: &Wish) -> Option<(Rank, u32)> {
        if !ring.is_some() {
            return None;
        }
        let mut ranked = Vec::new();
        for attempt in 0..candidates {
            let index = self.agent.at(ring, ring.slot(hash::candidate(wish.place, attempt)));
            ranked.extend(self.rank(index, wish).map(|rank| (rank, index)));
        }
        // The first of equals.
        ranked.into_iter().min_by_key(|(rank, _)| *rank)
    }

    pub(super) fn select(&self, wish: &Wish) -> Option<(Rank, u32)> {
        let [ring, fallback] = self.agent.rings(wish.service);
        let first = self.walk(ring, IN_RING, wish);
        if matches!(first, Some((Rank::Good, _))) {
            return first;
        }
        let second = self.walk(fallback, wish.in_fallback, wish);
        [first, second].into_iter().flatten().min_by_key(|(rank, _)| *rank)
    }

    /// The member for a new flow: the one that the client is with, or one of the ring's.
    pub(super) fn select_for(&mut self, wish: &Wish) -> Option<(Rank, u32)> {
        if let Some(member) = self.remembered(wish) {
            self.count(Counter::FlowAffine);
            return Some((Rank::Good, member));
        }
        self.select(wish)
    }

    fn client_place(&self, place: u64) -> (u64, u32) {
        let name = hash::affinity(&self.agent.config.flow_key, place);
        (name >> 28, hash::affinity_bucket(name, self.agent.config.flow_bucket_mask))
    }

    fn remembered(&self, wish: &Wish) -> Option<u32> {
        let stay = self.agent.clients(wish.service).stay();
        let (name, bucket) = self.client_place(wish.place);
        let client = self.model.clients.get(&bucket)?.iter().flatten().find(|client| client.name == name)?;
        let age = (self.now >> TICK_SHIFT).saturating_sub(client.since);
        let stays = stay > 0 && age <= stay;
        let same = self.agent.member(client.member).generation == client.generation;
        let good = self.rank(client.member, wish) == Some(Rank::Good);
        (stays && same && good).then_some(client.member)
    }

    /// Remembers where the client's newest flow went.
    pub(super) fn remember(&mut self, service: u32, key: &Key, member: u32, generation: u8) {
        let stay = self.agent.clients(service).stay();
        if stay == 0 || self.is_tripped(self.agent.member(member).backend) {
            return;
        }
        let (name, bucket) = self.client_place(self.agent.ring_hash(key, false));
        let since = self.now >> TICK_SHIFT;
        let ways = self.model.clients.entry(bucket).or_default();
        let left = |way: &Option<Client>| way.as_ref().map_or(0, |client| client.left(since));
        let own = ways.iter().position(|way| way.is_some_and(|client| client.name == name));
        let way = own.unwrap_or_else(|| (0..4).min_by_key(|way| left(&ways[*way])).expect("four ways"));
        let displaced = own.is_none() && left(&ways[way]) > 0;
        ways[way] = Some(Client { name, member, generation, since, stay });
        if displaced {
            self.count(Counter::AffinityDisplaced);
        }
    }
}
