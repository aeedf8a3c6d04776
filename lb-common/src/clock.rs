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

/// Ticks by which a moment may lie ahead of "now", because one processor's clock, or one who read it earlier, lags
/// behind another: about a minute of 4.9 hours, and no timeout is as long as what is left of them.
const AHEAD: u16 = 0xff;
const _: () = assert!(MAX_TIMEOUT_TICKS < u16::MAX - AHEAD);

/// How long ago something was; what lies a little ahead is younger than everything else.
///
/// Counts from `AHEAD` ticks ahead of now. To make all that lies ahead equal would take a branch, and the verifier
/// would follow both ways of it for each flow that a search looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age(u16);

impl Age {
    /// Whether it is more than so many ticks.
    #[must_use]
    #[inline(always)]
    pub const fn exceeds(self, ticks: u16) -> bool {
        self.0 as u32 > ticks as u32 + AHEAD as u32
    }

    /// Smaller for what is older.
    #[must_use]
    #[inline(always)]
    pub const fn youth(self) -> u16 {
        u16::MAX - self.0
    }

    /// In ticks; 0 for what lies ahead.
    #[must_use]
    pub const fn ticks(self) -> u16 {
        self.0.saturating_sub(AHEAD)
    }
}

/// The time from tick `then` to tick `now`.
#[must_use]
#[inline(always)]
pub const fn age(now: u16, then: u16) -> Age {
    Age(now.wrapping_sub(then).wrapping_add(AHEAD))
}

/// A duration in ticks, rounded up, at most [`MAX_TIMEOUT_TICKS`].
#[must_use]
pub const fn ticks_from_millis(milliseconds: u64) -> u16 {
    let ticks = milliseconds.saturating_mul(1_000_000).div_ceil(TICK_NS);
    if ticks > MAX_TIMEOUT_TICKS as u64 { MAX_TIMEOUT_TICKS } else { ticks as u16 }
}
