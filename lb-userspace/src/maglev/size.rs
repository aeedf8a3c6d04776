//! How large a ring should be.

use lb_common::abi::RING_SIZES;

/// Most backends in one ring: the largest ring still has 100 slots for each.
pub const MAX_ENTRIES: usize = (RING_SIZES[RING_SIZES.len() - 1] / 100) as usize;

/// The size class for a ring over so many backends; those of weight 0 count, so that a change of weights
/// never changes the size. `None` above [`MAX_ENTRIES`].
///
/// A change of the size moves nearly every key, so there are few steps, far apart, and they depend on nothing
/// but the number of backends. Within one size, removing one of the backends moves at most 1% more slots than
/// its own, and a change of weights at most 1% of all slots more than it must (measured, up to 655 backends:
/// 0.9% and 1.0%). Where weights change, that takes 400 slots a backend; 100 would cost 2%. Between 656 and
/// 10,485 backends removal is still within 1%, and a change of weights within 2%.
#[must_use]
pub fn ring_class(entries: usize) -> Option<u8> {
    let slots = match entries {
        // Every slot is the same backend's.
        0..=1 => 251,
        2..=32 => 16_381,
        33..=163 => 65_537,
        164..=655 => 262_139,
        656..=MAX_ENTRIES => 1_048_573,
        _ => return None,
    };
    class_of(slots)
}

/// The size class for a fallback ring: the smallest with two slots for each backend. It serves few flows for a
/// short time, so balance and disruption matter less than memory. `None` above [`MAX_ENTRIES`].
#[must_use]
pub fn fallback_class(entries: usize) -> Option<u8> {
    if entries > MAX_ENTRIES {
        return None;
    }
    class_of(entries as u32 * 2)
}

/// The smallest class of at least so many slots.
fn class_of(slots: u32) -> Option<u8> {
    RING_SIZES.iter().position(|size| *size >= slots).map(|class| class as u8)
}
