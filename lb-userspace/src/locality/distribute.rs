//! Percentages that a policy gives to areas.

use crate::maglev::quotas;

/// An area of a distribution, or what is in none.
#[derive(Clone, Copy)]
pub(super) struct Part {
    /// What the policy gives it; 0 for what is in no listed area.
    pub wanted: u32,
    /// Whether it can serve, and how much of its full size: 0 to 100.
    pub capacity: u32,
    /// Its healthy endpoints.
    pub healthy: u32,
}

/// The percentage of each part; `None` if none can serve.
///
/// A part that can't serve leaves its share to the others that the policy names, in proportion to theirs. Where
/// none of those can serve, any other does, all endpoints alike.
pub(super) fn percents(parts: &[Part]) -> Option<Vec<u32>> {
    let apportion = |weight: fn(&Part) -> u32| {
        let weights: Vec<u32> = parts.iter().map(weight).collect();
        weights.iter().any(|weight| *weight > 0).then(|| quotas(100, &weights))
    };
    apportion(|part| part.wanted * part.capacity).or_else(|| apportion(|part| part.healthy * part.capacity))
}
