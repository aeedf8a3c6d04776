//! Load by priority, as Envoy computes it.

/// The health of a level, 0 to 100: `overprovisioning` (percent) times the share of its endpoints that are
/// healthy, whole percent rounded down. `size` is the sum of the healthy ones' sizes, 100 for each that takes part
/// as a whole.
pub(super) fn health(overprovisioning: u32, size: u32, endpoints: u32) -> u32 {
    if endpoints == 0 {
        return 0;
    }
    let health = u64::from(overprovisioning) * u64::from(size) / (u64::from(endpoints) * 100);
    health.min(100) as u32
}

/// The load of each level in percent, from their health in order of preference; `None` if it is 0 everywhere.
///
/// Each level takes as much as its health of what those before it leave. Where all together have less than 100,
/// health is scaled up to that; what rounding leaves goes to the first level that has any health.
pub(super) fn loads(health: &[u32]) -> Option<Vec<u32>> {
    let first = health.iter().position(|health| *health > 0)?;
    let available = health.iter().sum::<u32>().min(100);
    let mut left = 100;
    let mut loads: Vec<u32> = health
        .iter()
        .map(|health| {
            let load = (health * 100 / available).min(left);
            left -= load;
            load
        })
        .collect();
    loads[first] += left;
    Some(loads)
}
