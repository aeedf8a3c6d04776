//! Who owned a port when: from what was seen from outside, without trust in the tables.

use std::collections::HashMap;

use super::gateway::Family;

/// A client's request went out from a port, at some moment of an interval (nanoseconds).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
    pub(crate) family: Family,
    pub(crate) port: u16,
    pub(crate) client: u32,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// A reply to a port went to a client, at some moment of an interval.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    pub(crate) family: Family,
    pub(crate) port: u16,
    pub(crate) client: u32,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Checks that each reply went to a client that owned its port: the client's own request had gone out from
/// there, and nobody else's had surely done so between then and the reply.
///
/// # Errors
/// The first reply to a stranger.
pub(crate) fn check_deliveries(
    mut observations: Vec<Observation>,
    deliveries: &[Delivery],
) -> Result<(), String> {
    observations.sort_unstable_by_key(|seen| (seen.family, seen.port, seen.start));
    // All places of a client: it may have come twice, with a flow made anew in between.
    let mut places: HashMap<(Family, u16, u32), Vec<usize>> = HashMap::new();
    for (place, seen) in observations.iter().enumerate() {
        places.entry((seen.family, seen.port, seen.client)).or_default().push(place);
    }
    for delivery in deliveries {
        let before = |place: &&usize| observations[**place].start <= delivery.end;
        let owned = places
            .get(&(delivery.family, delivery.port, delivery.client))
            .and_then(|places| places.iter().rev().find(before))
            .ok_or_else(|| format!("{delivery:?}: that client never had the port"))?;
        let seen = observations[*owned];
        let since = observations[owned + 1..].iter().take_while(|other| {
            (other.family, other.port) == (seen.family, seen.port) && other.start < delivery.start
        });
        for other in since {
            if other.client != seen.client && other.start > seen.end && other.end < delivery.start {
                return Err(format!("{delivery:?}: the port was {seen:?}'s and had become {other:?}'s"));
            }
        }
    }
    Ok(())
}
