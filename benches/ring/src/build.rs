//! Rings by their number of backends.

use std::net::IpAddr;
use std::time::Instant;

use lb_common::abi::RING_SIZES;
use lb_userspace::desired::{BackendId, Protocol};
use lb_userspace::maglev::{Entry, build, ring_class};

use crate::{Timing, millis};

/// Of 65,537 slots.
const CLASS: u8 = 8;
/// Bytes of a slot.
const SLOT: u64 = 4;
/// Rings of one size that are timed.
const ROUNDS: u32 = 9;

/// Builds rings of 65,537 slots, over backends of one weight and of several.
pub(crate) fn measure(rounds: u32) -> Vec<Timing> {
    let mut timings = Vec::new();
    for backends in [10, 100, 1000] {
        for (what, weights) in [("build", &[1][..]), ("build weighted", &[1, 2, 3, 5, 10])] {
            let entries = entries(backends, weights);
            let ms = (0..rounds).map(|_| millis(time(CLASS, &entries))).collect();
            let slots = RING_SIZES[usize::from(CLASS)];
            let disruption = Some(disruption(&entries));
            timings.push(Timing { what, slots, services: 1, backends, ms, disruption, bytes: None });
        }
    }
    timings
}

/// Builds rings as the agent does, of the size that so many backends get.
pub(crate) fn grow(backends: &[u32]) -> Vec<Timing> {
    let of = |backends: &u32| {
        let entries = entries(*backends, &[1]);
        let class = ring_class(entries.len()).expect("a ring has a size");
        let slots = RING_SIZES[usize::from(class)];
        Timing {
            what: "ring",
            slots,
            services: 1,
            backends: *backends,
            ms: (0..ROUNDS).map(|_| millis(time(class, &entries))).collect(),
            disruption: None,
            bytes: Some(u64::from(slots) * SLOT),
        }
    };
    backends.iter().map(of).collect()
}

fn time(class: u8, entries: &[Entry]) -> std::time::Duration {
    let begun = Instant::now();
    let ring = build(class, entries);
    let taken = begun.elapsed();
    assert!(ring.is_some(), "there are backends");
    taken
}

fn entries(count: u32, weights: &[u32]) -> Vec<Entry> {
    let entry = |(n, weight): (u32, &u32)| Entry { backend: backend(n), weight: *weight };
    (0..count).zip(weights.iter().cycle()).map(entry).collect()
}

/// The n-th of all, in the order of their addresses.
pub(crate) fn backend(n: u32) -> BackendId {
    let address = IpAddr::from((0x0a00_0001 + n).to_be_bytes());
    BackendId { protocol: Protocol::Tcp, address, port: 8080 }
}

/// The share of slots that move without need when the backend in the middle goes.
fn disruption(entries: &[Entry]) -> f64 {
    let gone = entries.len() / 2;
    let mut others = entries.to_vec();
    others.remove(gone);
    let name = |entries: &[Entry], position: &u32| entries[*position as usize].backend;
    let (before, after) = (build(CLASS, entries), build(CLASS, &others));
    let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
    let pairs = before.iter().zip(&after);
    let moved = pairs.filter(|(old, new)| **old as usize != gone && name(entries, old) != name(&others, new));
    moved.count() as f64 / before.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_slots_move_without_need() {
        let moved = disruption(&entries(10, &[1, 3]));
        assert!(moved > 0.0 && moved < 0.02, "{moved}");
    }
}
