//! The data plane's coarse clock: 16-bit ticks.

/// A tick is 2^28 nanoseconds, about 268 ms.
pub const TICK_SHIFT: u32 = 28;
/// Nanoseconds in a tick.
pub const TICK_NS: u64 = 1 << TICK_SHIFT;
/// The longest timeout, in ticks: about 4 hours. Ticks wrap after about 4.9 hours, so an idle flow has
/// expired well before its age reads as young again.
pub const MAX_TIMEOUT_TICKS: u16 = 53_644;

/// The tick of a time in nanoseconds.
#[must_use]
#[inline(always)]
pub const fn tick(nanoseconds: u64) -> u16 {
    (nanoseconds >> TICK_SHIFT) as u16
}

/// Ticks from `then` to `now`.
#[must_use]
#[inline(always)]
pub const fn age(now: u16, then: u16) -> u16 {
    now.wrapping_sub(then)
}

/// A duration in ticks, rounded up, at most [`MAX_TIMEOUT_TICKS`].
#[must_use]
pub const fn ticks_from_millis(milliseconds: u64) -> u16 {
    let ticks = milliseconds.saturating_mul(1_000_000).div_ceil(TICK_NS);
    if ticks > MAX_TIMEOUT_TICKS as u64 { MAX_TIMEOUT_TICKS } else { ticks as u16 }
}
