//! What is short: new flows are turned away, or soon will be. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lb_common::abi::{Counter, FlowState};

use super::problems;
use super::sweep::Pass;
use crate::bpf::Counters;
use crate::desired::ServiceId;
use crate::status::view::Problem;

/// How long a shortage is shown after it was seen last: somebody has to have a chance to see it.
const SHOWN: Duration = Duration::from_secs(60);
/// Between two looks at the counters: a single flow is too little to judge by.
const WINDOW: Duration = Duration::from_secs(2);
/// A shortage begins where one of so many new flows is turned away. In a hash table and among ports a flow may be
/// unlucky long before all is taken; its client's next try is not.
const ONE_OF: u64 = 100;
/// A table with so many percent of its flows has little room left.
const NEARLY_FULL: u64 = 90;
/// It has room again with so many.
const ROOM_AGAIN: u64 = 80;

/// What can be short.
const SHORTAGES: [Shortage; 4] = [
    Shortage {
        object: "flow table",
        sign: Sign::TurnedAway(Counter::DropTableFull),
        message: "new flows are dropped, because the places for them are taken by live ones; raise --flows and \
                  restart after `kanmon cleanup`, or shorten the timeouts",
    },
    Shortage {
        object: "flow table",
        sign: Sign::NearlyFull,
        message: "it has 90% or more of the flows that it was made for; raise --flows and restart after `kanmon \
                  cleanup`, or shorten the timeouts",
    },
    Shortage {
        object: "SNAT ports",
        sign: Sign::TurnedAway(Counter::DropPortsExhausted),
        message: "new flows are dropped, because all ports towards a backend are taken by live ones; add an \
                  address with --snat-addresses, widen --snat-ports, or add endpoints",
    },
    Shortage {
        object: "last hops",
        sign: Sign::TurnedAway(Counter::DropLastHopsFull),
        message: "new flows are dropped, because clients' packets come from more than 1,024 neighbours; put a \
                  router before the gateway",
    },
];

/// One thing that can be short.
struct Shortage {
    object: &'static str,
    sign: Sign,
    /// What that means, and what to do. Without numbers: what changes with each pass would be logged with each.
    message: &'static str,
}

/// What a shortage is told by.
enum Sign {
    /// New flows were dropped, and this says why.
    TurnedAway(Counter),
    /// The flow table fills up. Nothing is dropped yet.
    NearlyFull,
}

/// Flows that don't give way to new ones. Closed ones do, at once.
fn proven(pass: &Pass) -> u64 {
    let stays = |state: FlowState| state.is_live() && !state.gives_way() && state != FlowState::Closed;
    let states = FlowState::ALL.into_iter().zip(pass.states);
    states.filter(|(state, _)| stays(*state)).map(|(_, count)| count).sum()
}

/// What has been short lately.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// The last look that counted.
    before: Option<(Instant, Counters)>,
    /// When each shortage was seen last.
    seen: [Option<Instant>; SHORTAGES.len()],
    /// When a new flow of a service was turned away last, by why.
    services: BTreeMap<(Counter, ServiceId), Instant>,
}

impl Pressure {
    /// Looks at what the packet program has counted, and at the sweep's last pass. `capacity`: the flows that the table
    /// was made for. What the counters said before the first look is not known.
    pub(super) fn look(&mut self, counters: Counters, pass: &Pass, capacity: u64, now: Instant) {
        let filled = proven(pass) * 100;
        let due = self.before.as_ref().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= WINDOW);
        for (shortage, last) in SHORTAGES.iter().zip(&mut self.seen) {
            let is_on = last.is_some_and(|last| is_recent(last, now));
            let is_seen = match (&shortage.sign, &self.before) {
                (Sign::TurnedAway(reason), Some((_, before))) if due => {
                    let since = |counter| counters.get(counter).saturating_sub(before.get(counter));
                    let dropped = since(*reason);
                    dropped > 0 && (is_on || dropped * ONE_OF >= since(Counter::FlowOpened))
                }
                (Sign::TurnedAway(_), _) => false,
                (Sign::NearlyFull, _) => {
                    filled >= capacity.saturating_mul(if is_on { ROOM_AGAIN } else { NEARLY_FULL })
                }
            };
            if is_seen {
                *last = Some(now);
            }
        }
        if due {
            self.before = Some((now, counters));
        }
        self.services.retain(|_, last| is_recent(*last, now));
    }

    /// The packet program says that a new flow of a service was turned away, and why.
    pub(super) fn turned_away(&mut self, reason: Counter, service: ServiceId, now: Instant) {
        self.services.insert((reason, service), now);
    }

    /// What is short, or was a moment ago, and which services suffer from it.
    pub(super) fn problems(&self, now: Instant) -> Vec<Problem> {
        let tables = self.short(now).map(|shortage| Problem {
            cluster: None,
            object: shortage.object.to_owned(),
            reason: "Degraded".to_owned(),
            message: shortage.message.to_owned(),
        });
        let services = self
            .short(now)
            .flat_map(|shortage| self.suffering(shortage, now).map(move |id| (id, shortage)))
            .map(|(id, shortage)| problems::degraded(id, text(shortage)));
        tables.chain(services).collect()
    }

    /// Which shortage a service suffers from; also one of which nobody has told whom it concerns.
    pub(super) fn of(&self, service: ServiceId, now: Instant) -> Option<String> {
        let concerns = |shortage: &&Shortage| match shortage.sign {
            Sign::NearlyFull => false,
            Sign::TurnedAway(_) => {
                let mut suffering = self.suffering(shortage, now).peekable();
                suffering.peek().is_none() || suffering.any(|id| id == service)
            }
        };
        self.short(now).find(concerns).map(text)
    }

    fn short(&self, now: Instant) -> impl Iterator<Item = &'static Shortage> {
        let is_short = move |last: &Option<Instant>| last.is_some_and(|last| is_recent(last, now));
        SHORTAGES.iter().zip(self.seen).filter(move |(_, last)| is_short(last)).map(|(shortage, _)| shortage)
    }

    fn suffering(&self, shortage: &Shortage, now: Instant) -> impl Iterator<Item = ServiceId> {
        let reason = match shortage.sign {
            Sign::TurnedAway(reason) => Some(reason),
            Sign::NearlyFull => None,
        };
        let of_reason = self.services.iter().filter(move |((why, _), _)| Some(*why) == reason);
        of_reason.filter(move |(_, last)| is_recent(**last, now)).map(|((_, id), _)| *id)
    }
}

fn is_recent(last: Instant, now: Instant) -> bool {
    now.saturating_duration_since(last) < SHOWN
}

fn text(shortage: &Shortage) -> String {
    format!("{}: {}", shortage.object, shortage.message)
}

#[cfg(test)]
#[path = "pressure_tests.rs"]
mod tests;
