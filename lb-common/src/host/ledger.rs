//! Whether the tables agree with each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec::Vec,
};

use super::maps::{Array, HostMaps};
use crate::{
    abi::{
        FLOW_WAYS, FlowBucket, FlowRef, FlowState, FlowWord, Member, PortBitmap, REVERSE_WAYS, ReverseWord,
        member_flags, unpack_client, unpack_forward, unpack_path,
    },
    datapath::Cells,
};

/// A live forward entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Its slot.
    pub flow: FlowRef,
    /// Its word.
    pub word: FlowWord,
    /// Tick of the client's last packet.
    pub last_seen: u16,
    /// The 48 keyed bits of its hash.
    pub tag: u64,
}

/// A live reverse entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backward {
    /// 4 or 6.
    pub family: u8,
    /// Its word.
    pub word: ReverseWord,
    /// The forward entry that it names.
    pub flow: FlowRef,
    /// Client's port, host order.
    pub client_port: u16,
    /// Member.
    pub member: u32,
    /// The member's generation.
    pub generation: u8,
}

/// All live forward entries.
#[must_use]
pub fn forwards(maps: &HostMaps) -> Vec<Forward> {
    let mut found = Vec::new();
    for bucket in 0..maps.flows.len() {
        let FlowBucket { entries } = maps.flows.read(bucket);
        for (way, entry) in (0..).zip(entries) {
            let word = FlowWord(entry.word);
            if word.state().is_live() {
                let flow = FlowRef { slot: bucket * FLOW_WAYS + way, version: word.version() };
                let masked = entry.tag.iter().rev().fold(0, |tag, part| tag << 16 | *part as u64);
                // Masking is its own inverse.
                found.push(Forward { flow, word, last_seen: entry.last_seen, tag: word.masked_tag(masked) });
            }
        }
    }
    found
}

/// All live reverse entries.
#[must_use]
pub fn backwards(maps: &HostMaps) -> Vec<Backward> {
    let mut found = Vec::new();
    for (family, table, width) in [(4, &maps.reverse_v4, 4), (6, &maps.reverse_v6, 8)] {
        backwards_of(family, table, width, &mut found);
    }
    found
}

fn backwards_of(family: u8, table: &Array, width: usize, found: &mut Vec<Backward>) {
    for cells in (0..table.len()).filter_map(|bucket| table.get(bucket)) {
        for first in (0..REVERSE_WAYS as usize).map(|way| way * width) {
            let word = ReverseWord(cells.load(first));
            if !word.is_live() {
                continue;
            }
            let (flow, _) = unpack_forward(cells.load(first + 1));
            let (_, client_port, _) = unpack_client(cells.load(first + 2));
            let (member, generation, _, _) = unpack_path(cells.load(first + 3));
            let client_port = u16::from_be(client_port);
            found.push(Backward { family, word, flow, client_port, member, generation });
        }
    }
}

/// Taken ports as (backend, SNAT address, port).
#[must_use]
pub fn taken_ports(maps: &HostMaps) -> Vec<(u32, u8, u16)> {
    let Some(config) = maps.config else { return Vec::new() };
    let mut taken = Vec::new();
    for index in 0..maps.ports.len() {
        let bitmap: PortBitmap = maps.ports.read(index);
        for (word, bits) in (0..).zip(bitmap.words) {
            for bit in (0..64).filter(|bit| bits & 1 << bit != 0) {
                let port = config.port_base.wrapping_add(word * 64 + bit);
                taken.push((index / config.snat_stride, (index % config.snat_stride) as u8, port));
            }
        }
    }
    taken
}

/// Checks, while no packet is on its way, that each live forward entry has exactly one reverse entry and each
/// reverse entry exactly one forward entry, that they name the same port, that exactly the ports of reverse
/// entries are taken, that no flow is in the table twice, and that no lock is held. A flow whose member was
/// recycled may have lost one half; the sweep mends that, so such flows are left out.
///
/// # Errors
/// What doesn't agree.
pub fn check(maps: &HostMaps) -> Result<(), String> {
    let is_current = |member: u32, generation: u8| {
        maps.members.get(member).is_some() && {
            let line: Member = maps.members.read(member);
            line.generation == generation && line.flags & member_flags::VALID != 0
        }
    };
    let forwards = forwards(maps);
    let backwards = backwards(maps);
    for table in (0..maps.flows.len()).map(|bucket| maps.flows.read::<FlowBucket>(bucket)) {
        if table.entries.iter().any(|entry| FlowWord(entry.word).state() == FlowState::Claimed) {
            return Err("a forward slot is claimed, and nobody is at work".into());
        }
    }
    let mut naming: BTreeMap<(u32, u16), Vec<&Backward>> = BTreeMap::new();
    for backward in &backwards {
        naming.entry((backward.flow.slot, backward.flow.version)).or_default().push(backward);
    }
    let mut tags = BTreeMap::new();
    let mut slots = BTreeSet::new();
    for forward in &forwards {
        if let Some(other) = tags.insert(forward.tag, forward.flow) {
            return Err(format!("one flow is in {other:?} and in {:?}", forward.flow));
        }
        let slot = (forward.flow.slot, forward.flow.version);
        slots.insert(slot);
        let named = naming.get(&slot).map_or(&[][..], Vec::as_slice);
        let agree = matches!(named[..], [one] if one.word.port() == forward.word.port()
            && one.word.snat() == forward.word.snat() && one.member == forward.word.member());
        if !agree && is_current(forward.word.member(), forward.word.generation()) {
            return Err(format!("{forward:?} is named by {named:?}"));
        }
    }
    let mut keys = BTreeMap::new();
    for backward in &backwards {
        let key = (backward.word.backend(), backward.word.snat(), backward.word.port());
        if let Some(other) = keys.insert((backward.family, key), backward.flow) {
            return Err(format!("port {key:?} belongs to {other:?} and to {:?}", backward.flow));
        }
        let has_flow = slots.contains(&(backward.flow.slot, backward.flow.version));
        if !has_flow && is_current(backward.member, backward.generation) {
            return Err(format!("{backward:?} has no flow"));
        }
    }
    let mut taken = taken_ports(maps);
    let mut owned: Vec<_> = keys.into_keys().map(|(_, key)| key).collect();
    taken.sort_unstable();
    owned.sort_unstable();
    if taken != owned {
        return Err(format!("ports taken: {taken:?}; ports of reverse entries: {owned:?}"));
    }
    for lock in 0..maps.locks.len() {
        if maps.locks.get(lock).is_some_and(|cells| cells.load(0) != 0) {
            return Err(format!("lock {lock} is held"));
        }
    }
    Ok(())
}
