//! What is short: new flows are turned away, or soon will be. Pure.

use std::time::{Duration, Instant};

use lb_common::abi::{Counter, FlowState};

use super::sweep::Pass;
use crate::bpf::Counters;
use crate::status::view::Problem;

/// How long a shortage is shown after it was seen last: somebody has to have a chance to see it.
const SHOWN: Duration = Duration::from_secs(60);
/// A table with so many percent of its flows has little room left.
const NEARLY_FULL: u64 = 90;

/// What can be short.
const SHORTAGES: [Shortage; 4] = [
    Shortage {
        object: "flow table",
        is_seen: |seen| seen.turned_away(Counter::DropTableFull),
        message: "new flows are dropped, because the places for them are taken by live ones; raise --flows and \
                  restart after `kanmon cleanup`, or shorten the timeouts",
    },
    Shortage {
        object: "flow table",
        is_seen: |seen| seen.proven() * 100 >= seen.capacity.saturating_mul(NEARLY_FULL),
        message: "it has 90% or more of the flows that it was made for; raise --flows and restart after `kanmon \
                  cleanup`, or shorten the timeouts",
    },
    Shortage {
        object: "SNAT ports",
        is_seen: |seen| seen.turned_away(Counter::DropPortsExhausted),
        message: "new flows are dropped, because all ports towards a backend are taken by live ones; add an \
                  address with --snat-addresses, widen --snat-ports, or add endpoints",
    },
    Shortage {
        object: "last hops",
        is_seen: |seen| seen.turned_away(Counter::DropLastHopsFull),
        message: "new flows are dropped, because clients' packets come from more than 1,024 neighbours; put a \
                  router before the gateway",
    },
];

/// One thing that can be short.
struct Shortage {
    object: &'static str,
    is_seen: fn(&Seen<'_>) -> bool,
    /// What that means, and what to do. Without numbers: what changes with each pass would be logged with each.
    message: &'static str,
}

/// What a shortage is told by.
struct Seen<'a> {
    before: Option<&'a Counters>,
    counters: &'a Counters,
    pass: &'a Pass,
    capacity: u64,
}

impl Seen<'_> {
    /// Whether new flows were dropped for that reason since the last look. What was before the first is not known.
    fn turned_away(&self, reason: Counter) -> bool {
        self.before.is_some_and(|before| self.counters.get(reason) > before.get(reason))
    }

    /// Flows that don't give way to new ones. Closed ones do, at once.
    fn proven(&self) -> u64 {
        let stays = |state: FlowState| state.is_live() && !state.gives_way() && state != FlowState::Closed;
        let states = FlowState::ALL.into_iter().zip(self.pass.states);
        states.filter(|(state, _)| stays(*state)).map(|(_, count)| count).sum()
    }
}

/// What has been short lately.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    before: Option<Counters>,
    seen: [Option<Instant>; SHORTAGES.len()],
}

impl Pressure {
    /// Looks at what the packet program has counted, and at the sweep's last pass. `capacity`: the flows that the table
    /// was made for.
    pub(super) fn look(&mut self, counters: Counters, pass: &Pass, capacity: u64, now: Instant) {
        let seen = Seen { before: self.before.as_ref(), counters: &counters, pass, capacity };
        for (shortage, last) in SHORTAGES.iter().zip(&mut self.seen) {
            if (shortage.is_seen)(&seen) {
                *last = Some(now);
            }
        }
        self.before = Some(counters);
    }

    /// What is short, or was a moment ago.
    pub(super) fn problems(&self, now: Instant) -> impl Iterator<Item = Problem> + use<> {
        let lately = move |last: &Instant| now.saturating_duration_since(*last) < SHOWN;
        let short =
            SHORTAGES.iter().zip(self.seen).filter(move |(_, last)| last.as_ref().is_some_and(lately));
        short.map(|(shortage, _)| Problem {
            cluster: None,
            object: shortage.object.to_owned(),
            reason: "Degraded".to_owned(),
            message: shortage.message.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: u64 = 1000;

    fn shown(pressure: &Pressure, now: Instant) -> Vec<String> {
        pressure.problems(now).map(|problem| format!("{} {}", problem.object, problem.reason)).collect()
    }

    fn pass(state: FlowState, flows: u64) -> Pass {
        let mut pass = Pass::default();
        pass.states[state as usize] = flows;
        pass
    }

    #[test]
    fn flows_that_were_turned_away_are_shown_for_a_minute() {
        let (mut pressure, begin) = (Pressure::default(), Instant::now());
        let dropped = Counters::of(&[(Counter::DropTableFull, 5), (Counter::DropPortsExhausted, 7)]);
        pressure.look(dropped, &Pass::default(), CAPACITY, begin);
        assert!(shown(&pressure, begin).is_empty(), "what an agent before has seen");
        let more = Counters::of(&[(Counter::DropTableFull, 6), (Counter::DropPortsExhausted, 8)]);
        pressure.look(more, &Pass::default(), CAPACITY, begin);
        assert_eq!(shown(&pressure, begin), ["flow table Degraded", "SNAT ports Degraded"]);
        pressure.look(more, &Pass::default(), CAPACITY, begin + SHOWN / 2);
        assert_eq!(shown(&pressure, begin + SHOWN / 2).len(), 2);
        assert!(shown(&pressure, begin + SHOWN).is_empty());
    }

    #[test]
    fn a_table_that_fills_up_is_told_before_it_is_full_and_a_flood_does_not_fill_it() {
        let (mut pressure, now) = (Pressure::default(), Instant::now());
        for (state, flows, is_short) in [
            (FlowState::Established, 899, false),
            (FlowState::SynAcked, 1000, false),
            (FlowState::UdpReplied, 1000, false),
            (FlowState::Closed, 1000, false),
            (FlowState::Established, 900, true),
        ] {
            pressure.look(Counters::of(&[]), &pass(state, flows), CAPACITY, now);
            assert_eq!(shown(&pressure, now).len(), usize::from(is_short), "{flows} {state:?}");
        }
    }
}
