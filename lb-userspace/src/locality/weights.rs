//! From percentages of groups to weights of backends, exactly.

use std::collections::BTreeMap;

use super::groups::Candidate;
use crate::desired::BackendId;

/// What a group gets, and who of it.
pub(super) struct Part {
    /// Its percentage.
    pub percent: u32,
    /// Those who share it, by their sizes.
    pub sharing: Vec<Candidate>,
}

/// The most that a weight is where exact ones would not fit: a share of one in a million is still right within a
/// thousandth of it.
const LIMIT: u128 = 1 << 31;

/// Least common multiples beyond this are rounded: the error is below one in 2⁴⁰.
const PRECISION: u128 = 1 << 64;

/// The smallest integers that have the same ratios as the shares of backends. Equal shares have equal numbers,
/// and shares that do not change have the same numbers as before, however they came about.
pub(super) fn weights(parts: &[Part]) -> BTreeMap<BackendId, u32> {
    let size = |part: &Part| part.sharing.iter().map(|each| u128::from(each.size)).sum::<u128>();
    let parts = || parts.iter().filter(|part| part.percent > 0 && !part.sharing.is_empty());
    let common = parts().fold(1, |common, part| lcm(common, size(part)).min(PRECISION));
    let mut shares: Vec<(BackendId, u128)> = Vec::new();
    for part in parts() {
        let unit = u128::from(part.percent) * common / size(part);
        shares.extend(part.sharing.iter().map(|each| (each.backend, unit * u128::from(each.size))));
    }
    let divisor = shares.iter().fold(0, |divisor, (_, share)| gcd(*share, divisor)).max(1);
    let most = shares.iter().map(|(_, share)| share / divisor).max().unwrap_or(0);
    let fit = |share: u128| {
        let exact = share / divisor;
        let fitting =
            if most > u128::from(u32::MAX) { ((exact * LIMIT + most / 2) / most).max(1) } else { exact };
        u32::try_from(fitting).unwrap_or(u32::MAX)
    };
    shares.into_iter().map(|(backend, share)| (backend, fit(share))).collect()
}

fn lcm(a: u128, b: u128) -> u128 {
    a / gcd(a, b) * b
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}
