//! The traffic of single flows, for the flow log, where a service asks for it.
//!
//! A packet that is in the program while its flow is removed may still be counted for the flow that comes next, as it
//! may still be forwarded.

use super::{Cells, Maps, flow_table};
use crate::abi::{Config, FlowOwner, FlowRef, FlowState};

/// Cells of an element.
const OWNER: usize = 0;
const OPENED: usize = 1;
/// Packets, and in the next cell bytes, towards the backend.
pub(super) const IN: usize = 2;
/// The same towards the client.
pub(super) const OUT: usize = 4;

/// Begins to count a flow that no packet finds yet. False: another flow has its place.
#[inline(always)]
pub(super) fn begin<M: Maps>(maps: &M, config: &Config, flow: FlowRef, now: u64) -> bool {
    let Some(cells) = maps.flow_stats(flow.slot & config.flow_stats_mask) else { return false };
    let owner = FlowOwner(cells.load(OWNER));
    if is_alive(maps, owner) || !cells.replace(OWNER, owner.0, FlowOwner::of(flow).0) {
        return false;
    }
    cells.store(OPENED, now);
    cells.store(IN, 0);
    cells.store(IN + 1, 0);
    cells.store(OUT, 0);
    cells.store(OUT + 1, 0);
    true
}

/// Whether the flow that an element belongs to goes on.
#[inline(always)]
fn is_alive<M: Maps>(maps: &M, owner: FlowOwner) -> bool {
    let Some(flow) = owner.flow() else { return false };
    let Some(slot) = flow_table::by_reference(maps, flow) else { return false };
    slot.word.state().is_live() && slot.word.state() as u8 != FlowState::Closed as u8
}

/// Counts a packet of a flow, in the direction that begins at this cell.
#[inline(always)]
pub(super) fn count<M: Maps>(maps: &M, config: &Config, flow: FlowRef, direction: usize, bytes: u64) {
    if let Some(cells) = maps.flow_stats(flow.slot & config.flow_stats_mask)
        && cells.load(OWNER) == FlowOwner::of(flow).0
    {
        cells.fetch_add(direction, 1);
        cells.fetch_add(direction + 1, bytes);
    }
}
