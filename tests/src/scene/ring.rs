//! Whom new flows of a service go to by its ring, as the pinned maps have it: what the packet program reads, whatever
//! the agent says of it.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, MapData};
use bytemuck::Pod;
use lb_common::abi::{Backend, Member, RingPair, RingWord, ServiceDescriptor, backend_flags};

use super::maps::{Socket, array, keys, of_member, socket4, socket6};

/// IP protocol number of TCP.
const TCP: u8 = 6;
/// Between two looks at a ring.
const LOOK: Duration = Duration::from_millis(10);
/// How often a ring is read again that was replaced meanwhile.
const TRIES: usize = 10;

/// The ring of a service at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// Slots of each backend that has any, in the order of the addresses.
    pub slots: BTreeMap<Socket, u32>,
    /// Those of them that the packet program may give new flows to: no probe fails, and they are not ejected. From a
    /// slot of another it walks on.
    pub usable: BTreeMap<Socket, bool>,
    /// Counts the rings that the service has had.
    pub version: u32,
}

impl Ring {
    /// The share, in percent, of those backends whose address `is` one of some.
    pub fn percent(&self, is: impl Fn(IpAddr) -> bool) -> f64 {
        let all: u32 = self.slots.values().sum();
        let some: u32 =
            self.slots.iter().filter(|((address, _), _)| is(*address)).map(|(_, slots)| slots).sum();
        if all == 0 { 0.0 } else { f64::from(some) * 100.0 / f64::from(all) }
    }

    /// Shares in percent by name: of a pod, of a cluster, as `name` tells for an address; what it does not know is
    /// called by its address.
    pub fn percents(&self, name: impl Fn(IpAddr) -> Option<String>) -> BTreeMap<String, f64> {
        let all: u32 = self.slots.values().sum();
        let mut named: BTreeMap<String, u32> = BTreeMap::new();
        for ((address, _), slots) in &self.slots {
            *named.entry(name(*address).unwrap_or_else(|| address.to_string())).or_default() += slots;
        }
        named.into_iter().map(|(name, slots)| (name, f64::from(slots) * 100.0 / f64::from(all))).collect()
    }
}

/// The open maps of an agent's rings, to be read again and again.
pub struct Rings {
    services: BTreeMap<SocketAddr, u32>,
    descriptors: Array<MapData, [u8; 64]>,
    pairs: Array<MapData, [u8; 8]>,
    members: Array<MapData, [u8; 64]>,
    backends: Array<MapData, [u8; 64]>,
}

impl fmt::Debug for Rings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rings").field("services", &self.services).finish_non_exhaustive()
    }
}

impl Rings {
    /// Opens the maps below a pin directory, and looks up the TCP services that there are.
    ///
    /// # Errors
    /// When one is not there.
    pub fn open(pins: &Path) -> Result<Rings> {
        let v4 = keys::<8>(pins, "SERVICES_V4")?.into_iter();
        let v6 = keys::<20>(pins, "SERVICES_V6")?.into_iter();
        let v4 = v4.filter(|(key, _)| key[6] == TCP).map(|(key, index)| (socket4(&key).into(), index));
        let v6 = v6.filter(|(key, _)| key[18] == TCP).map(|(key, index)| (socket6(&key).into(), index));
        Ok(Rings {
            services: v4.chain(v6).collect(),
            descriptors: array(pins, "DESCRIPTORS")?,
            pairs: array(pins, "RINGS")?,
            members: array(pins, "MEMBERS")?,
            backends: array(pins, "BACKENDS")?,
        })
    }

    /// The ring of a TCP service once it is as `wanted`, or as it is when it did not get so within `patience`.
    ///
    /// # Errors
    /// As [`Rings::of`].
    pub fn when(
        &self,
        service: SocketAddr,
        patience: Duration,
        wanted: impl Fn(&Ring) -> bool,
    ) -> Result<Ring> {
        let deadline = Instant::now() + patience;
        loop {
            let ring = self.of(service)?;
            if wanted(&ring) || Instant::now() >= deadline {
                return Ok(ring);
            }
            thread::sleep(LOOK);
        }
    }

    /// How many rings a TCP service has had: cheap to ask, and another number where the ring is another one.
    ///
    /// # Errors
    /// When there is no such service.
    pub fn version(&self, service: SocketAddr) -> Result<u32> {
        Ok(self.word(self.index(service)?)?.version())
    }

    /// The ring of a TCP service.
    ///
    /// # Errors
    /// When there is no such service, or its ring changes faster than it can be read.
    pub fn of(&self, service: SocketAddr) -> Result<Ring> {
        let index = self.index(service)?;
        for _ in 0..TRIES {
            let before = self.word(index)?;
            let ring = self.at(before, index);
            // One that was replaced meanwhile may lie where something else is written by now.
            if self.word(index)? == before {
                return ring;
            }
        }
        anyhow::bail!("the ring of {service} changed {TRIES} times while it was read")
    }

    fn index(&self, service: SocketAddr) -> Result<u32> {
        self.services.get(&service).copied().with_context(|| format!("{service} is no service"))
    }

    fn word(&self, service: u32) -> Result<RingWord> {
        let descriptor: ServiceDescriptor = element(&self.descriptors, service)?;
        Ok(RingWord(descriptor.ring))
    }

    fn at(&self, word: RingWord, service: u32) -> Result<Ring> {
        let counts = count(word, |pair| element(&self.pairs, pair))?;
        let mut ring = Ring { version: word.version(), ..Ring::default() };
        for (member, slots) in counts {
            let found: Member = element(&self.members, member)?;
            ensure!(found.service == service, "the ring names member {member} of another service");
            let backend: Backend = element(&self.backends, found.backend)?;
            let socket = of_member(&found);
            ring.slots.insert(socket, slots);
            ring.usable.insert(socket, backend.flags & backend_flags::USABLE != 0);
        }
        Ok(ring)
    }
}

/// How many slots of the ring at `word` each member has.
fn count(word: RingWord, pair: impl Fn(u32) -> Result<RingPair>) -> Result<BTreeMap<u32, u32>> {
    let mut counts = BTreeMap::new();
    if !word.is_some() {
        return Ok(counts);
    }
    for n in 0..word.slots().div_ceil(2) {
        let slots = pair(word.offset() + n)?.slots;
        // The number of slots is odd: the last pair has one.
        let there = if 2 * n + 1 < word.slots() { 2 } else { 1 };
        for member in &slots[..there] {
            *counts.entry(*member).or_default() += 1;
        }
    }
    Ok(counts)
}

fn element<T: Pod, const N: usize>(array: &Array<MapData, [u8; N]>, index: u32) -> Result<T> {
    let bytes = array.get(&index, 0).with_context(|| format!("cannot read element {index}"))?;
    Ok(bytemuck::pod_read_unaligned(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring of the smallest size, 251 slots, behind 10 pairs of somebody else's.
    fn counted(member_of: impl Fn(u32) -> u32) -> BTreeMap<u32, u32> {
        let word = RingWord::new(10, 0, 7);
        let pair = |n: u32| {
            ensure!((10..136).contains(&n), "pair {n} is not of the ring");
            let first = (n - 10) * 2;
            Ok(RingPair { slots: [member_of(first), member_of(first + 1)] })
        };
        count(word, pair).unwrap()
    }

    #[test]
    fn every_slot_of_the_ring_counts_once_and_nothing_beside_it() {
        assert_eq!(counted(|slot| slot % 2), [(0, 126), (1, 125)].into());
        assert_eq!(counted(|slot| if slot < 251 { 3 } else { 9 }), [(3, 251)].into());
        assert_eq!(count(RingWord::NONE, |_| unreachable!()).unwrap(), BTreeMap::new());
    }

    #[test]
    fn shares_are_percents_by_name() {
        let socket = |last: u8| (IpAddr::from([10, 0, 0, last]), 8080);
        let ring =
            Ring { slots: [(socket(1), 600), (socket(2), 300), (socket(3), 100)].into(), ..Ring::default() };
        assert!((ring.percent(|ip| ip != socket(2).0) - 70.0).abs() < 1e-9);
        let cluster = |ip: IpAddr| (ip != socket(3).0).then(|| "a".to_owned());
        assert_eq!(ring.percents(cluster), [("a".to_owned(), 90.0), ("10.0.0.3".to_owned(), 10.0)].into());
        assert_eq!(Ring::default().percent(|_| true), 0.0);
        assert_eq!(Ring::default().percents(|_| None), BTreeMap::new());
    }
}
