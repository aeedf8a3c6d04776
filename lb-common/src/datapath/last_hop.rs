//! Last hops: learned when a flow is made, used by its replies ("auto last hop").

use super::{Cells, PacketMut, Tables, parse::Link};
use crate::{
    abi::{Config, Counter, LAST_HOP_WAYS, LAST_HOPS, LastHopWord},
    hash,
};

/// Where a frame leaves: the two link-layer addresses, the tags, the interface.
#[derive(Clone, Copy, Debug)]
pub(super) struct Egress {
    /// Destination MAC in the low six bytes of memory, raw outer tag in the last two.
    pub destination: u64,
    /// Source MAC and inner tag, likewise.
    pub source: u64,
    /// Interface.
    pub ifindex: u32,
    /// Number of tags, 0–2.
    pub vlan_count: u8,
    /// The outer of two tags is 802.1ad.
    pub service_tag: bool,
    /// Bytes of the longest IP packet; 0: unknown.
    pub mtu: u16,
}

impl Egress {
    /// Towards a member: its next hop.
    #[inline(always)]
    pub(super) fn of_member<C: Cells>(member: C) -> Self {
        let place = member.load(5);
        let shape = member.load(6);
        Self {
            destination: member.load(3),
            source: member.load(4),
            ifindex: place as u32,
            vlan_count: (shape >> 16) as u8,
            service_tag: (shape >> 24) as u8 != 0,
            mtu: (place >> 32) as u16,
        }
    }
}

/// Finds or learns the last hop of a frame.
///
/// # Errors
/// Why the packet is to be dropped: the table is full, or other CPUs learned their last hops in this very moment.
#[inline(always)]
pub(super) fn learn<P: PacketMut, T: Tables>(
    packet: &P,
    tables: &T,
    config: &Config,
    link: &Link,
    now: u16,
) -> Result<u16, Counter> {
    let Some([to_low, to_mid, to_high, from_low, from_mid, from_high]) = packet.read::<[u16; 6], 0>(0) else {
        return Err(Counter::DropMalformed);
    };
    // A reply goes to where the request came from.
    let destination = pack(from_low, from_mid, from_high, link.vlan[0]);
    let source = pack(to_low, to_mid, to_high, link.vlan[1]);
    let place = packet.ingress() as u64
        | (link.vlan_count as u64) << 32
        | (link.service_tag as u64) << 40
        | (packet.ingress_mtu() as u64) << 48;
    let salt = config.flow_key.words[15] as u64 | (config.flow_key.words[14] as u64) << 32;
    let content = hash::finish(hash::finish(hash::finish(destination ^ salt) ^ source) ^ place);

    let index = find_or_insert(tables, &Content { destination, source, place, hash: content }, now);
    match index {
        FULL => Err(Counter::DropLastHopsFull),
        CONTENDED => Err(Counter::DropInsertContended),
        index => Ok(index as u16),
    }
}

/// What a last hop says, and the keyed hash of it.
struct Content {
    destination: u64,
    source: u64,
    place: u64,
    hash: u64,
}

/// No index: the table is full.
const FULL: u32 = LAST_HOPS;
/// No index: another CPU took the free place for another content.
const CONTENDED: u32 = LAST_HOPS + 1;

/// Index of the last hop, or why there is none.
#[inline(never)]
fn find_or_insert<T: Tables>(tables: &T, content: &Content, now: u16) -> u32 {
    let home = content.hash >> 48;
    let mut free = FULL;
    let mut step = 0;
    while step < LAST_HOP_WAYS as u64 {
        let index = (home + step) as u32 & (LAST_HOPS - 1);
        step += 1;
        let Some(cells) = tables.last_hop(index) else { return FULL };
        let word = LastHopWord(cells.load(0));
        if word.is(content.hash) {
            // The tick is exchanged before the flow exists: the agent frees only what nobody was given lately.
            if word.tick() == now || cells.replace(0, word.0, LastHopWord::in_use(content.hash, now).0) {
                return index;
            }
            if LastHopWord(cells.load(0)).is(content.hash) {
                return index;
            }
        } else if word.is_free() && free == FULL {
            free = index;
        }
    }
    let Some(cells) = tables.last_hop(free) else { return FULL };
    let claimed = LastHopWord::claimed(content.hash, now);
    if !cells.replace(0, LastHopWord::FREE.0, claimed.0) {
        // The first packets that come by a router come to several CPUs at once. Replies need what the other one is
        // writing, and this flow has none yet.
        return if LastHopWord(cells.load(0)).will_be(content.hash) { free } else { CONTENDED };
    }
    cells.store(1, content.destination);
    cells.store(2, content.source);
    cells.store(3, content.place);
    cells.compare_exchange(0, claimed.0, LastHopWord::in_use(content.hash, now).0);
    free
}

/// Reads a last hop.
#[inline(always)]
pub(super) fn egress<T: Tables>(tables: &T, index: u16) -> Option<Egress> {
    let cells = tables.last_hop(index as u32)?;
    let place = cells.load(3);
    Some(Egress {
        destination: cells.load(1),
        source: cells.load(2),
        ifindex: place as u32,
        vlan_count: (place >> 32) as u8,
        service_tag: (place >> 40) as u8 != 0,
        mtu: (place >> 48) as u16,
    })
}

/// Four raw 16-bit words as they lie in memory.
#[inline(always)]
pub(super) fn pack(a: u16, b: u16, c: u16, d: u16) -> u64 {
    bytemuck::cast([a, b, c, d])
}
