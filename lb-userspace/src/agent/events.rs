//! What the packet program reports, read as it comes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use lb_common::abi::{Counter, Event, EventKind};
use tokio::sync::mpsc;

use super::flow_log::{Teller, Told};
use crate::bpf::Events;

/// The same complaint is logged at most once in this time.
const QUIET: Duration = Duration::from_secs(10);
/// The loop is told at most once in this time that a service's flows find no room.
const REPEATED: Duration = Duration::from_secs(1);

/// Kinds of events for the flow log.
const FLOW_LOG: [u8; 3] = [EventKind::Opened as u8, EventKind::Closed as u8, EventKind::Rescued as u8];

/// A backend got so many connect errors in a row that the packet program keeps new flows from it for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tripped {
    /// Index of the member whose flow failed last.
    pub(super) member: u32,
    /// Errors in a row.
    pub(super) errors: u32,
}

/// A new flow of a service was dropped for want of room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TurnedAway {
    /// Index of the service.
    pub(super) service: u32,
    /// The counter that says why.
    pub(super) reason: Counter,
}

impl TurnedAway {
    fn of(event: &Event) -> Option<Self> {
        let reason = if event.kind == EventKind::TableFull as u8 {
            Counter::DropTableFull
        } else if event.kind == EventKind::PortsExhausted as u8 {
            Counter::DropPortsExhausted
        } else {
            return None;
        };
        Some(Self { service: event.service, reason })
    }
}

/// Complaints of one kind.
#[derive(Debug, Default)]
struct Complaint {
    last: Option<Instant>,
    unsaid: u64,
}

impl Complaint {
    /// Counts one; how many have come since the last was logged, when it is time to log again.
    fn due(&mut self, now: Instant) -> Option<u64> {
        self.unsaid += 1;
        if self.last.is_some_and(|last| now - last < QUIET) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// Reads events for as long as the agent runs. What is lost is logged at once; trips and what finds no room are told to
/// the loop, and all else to the flow log.
pub(super) async fn run(
    mut events: Events,
    trips: mpsc::Sender<Tripped>,
    turned_away: mpsc::Sender<TurnedAway>,
    flow_log: Teller,
) {
    let (mut table_full, mut ports_exhausted) = (Complaint::default(), Complaint::default());
    let mut told: HashMap<(u32, Counter), Instant> = HashMap::new();
    loop {
        let event = match events.next().await {
            Ok(event) => event,
            Err(error) => {
                tracing::error!("events of the packet program are no longer read: {error}");
                return;
            }
        };
        tracing::trace!(?event, "event");
        let now = Instant::now();
        if event.kind == EventKind::Tripped as u8 {
            // Where the loop is that far behind, the trip ends by itself.
            let _ = trips.try_send(Tripped { member: event.member, errors: event.detail });
        }
        if let Some(one) = TurnedAway::of(&event) {
            // There may be thousands a second, which say the same.
            let last = told.entry((one.service, one.reason)).or_insert(now);
            if (*last == now || now - *last >= REPEATED) && turned_away.try_send(one).is_ok() {
                *last = now;
            }
        }
        if FLOW_LOG.contains(&event.kind) {
            flow_log.tell(Told::Event(event));
        }
        if event.kind == EventKind::TableFull as u8
            && let Some(count) = table_full.due(now)
        {
            tracing::warn!(
                "the flow table is full: {count} new flows were dropped; raise --flows and restart after \
                 `kanmon cleanup`"
            );
        }
        if event.kind == EventKind::PortsExhausted as u8
            && let Some(count) = ports_exhausted.due(now)
        {
            tracing::warn!(
                "no SNAT port is left towards a backend: {count} new flows were dropped; add an address with \
                 --snat-addresses, or more endpoints"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_summed_up_within_the_quiet_time() {
        let mut complaint = Complaint::default();
        let begin = Instant::now();
        assert_eq!(complaint.due(begin), Some(1));
        assert_eq!(complaint.due(begin + QUIET / 2), None);
        assert_eq!(complaint.due(begin + QUIET / 2), None);
        assert_eq!(complaint.due(begin + QUIET), Some(3));
    }
}
