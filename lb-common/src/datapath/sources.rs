//! Who may begin flows of a service: clients in one of its source ranges, where it has any.
//!
//! Flows that exist are not asked: a change of ranges ends none.

use super::{Cells, Family, Maps, setup::Identity};
use crate::abi::ClientWord;

/// What a service asks of its clients.
#[inline(always)]
pub(super) fn asked<M: Maps>(maps: &M, service: u32) -> ClientWord {
    ClientWord(maps.descriptor(service).map_or(0, |cells| cells.load(7)))
}

/// Whether a client may begin a flow of the service.
#[inline(always)]
pub(super) fn admits<F: Family, M: Maps>(maps: &M, service: u32, flow: &Identity<F>) -> bool {
    !asked(maps, service).has_ranges() || is_in_range(maps, service, flow)
}

/// A call: the key would stay in the caller's stack frame.
#[inline(never)]
fn is_in_range<F: Family, M: Maps>(maps: &M, service: u32, flow: &Identity<F>) -> bool {
    F::is_source(maps, service, flow.source)
}
