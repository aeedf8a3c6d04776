//! What is short, as counters, the sweep and the packet program's events tell it over time.

use super::*;
use crate::desired::Protocol;

const CAPACITY: u64 = 1000;

/// A gateway under pressure, and the time there.
struct Gateway {
    pressure: Pressure,
    now: Instant,
    opened: u64,
    table_full: u64,
    no_port: u64,
}

impl Gateway {
    fn new() -> Self {
        let now = Instant::now();
        let mut gateway =
            Self { pressure: Pressure::default(), now, opened: 1000, table_full: 5, no_port: 7 };
        gateway.pass(&Pass::default(), Duration::ZERO);
        gateway
    }

    fn pass(&mut self, pass: &Pass, time: Duration) {
        self.now += time;
        let counters = Counters::of(&[
            (Counter::FlowOpened, self.opened),
            (Counter::DropTableFull, self.table_full),
            (Counter::DropPortsExhausted, self.no_port),
        ]);
        self.pressure.look(counters, pass, CAPACITY, self.now);
    }

    /// So many new flows within two seconds, and so many that found no port.
    fn load(&mut self, opened: u64, no_port: u64) {
        self.opened += opened;
        self.no_port += no_port;
        self.pass(&Pass::default(), WINDOW);
    }

    fn shown(&self) -> Vec<String> {
        self.pressure.problems(self.now).into_iter().map(|problem| problem.object).collect()
    }
}

fn service(last: u8) -> ServiceId {
    ServiceId { vip: [192, 0, 2, last].into(), port: 80, protocol: Protocol::Tcp }
}

fn pass(state: FlowState, flows: u64) -> Pass {
    let mut pass = Pass::default();
    pass.states[state as usize] = flows;
    pass
}

#[test]
fn flows_that_are_turned_away_are_shown_until_a_minute_has_gone_without_one() {
    let mut gateway = Gateway::new();
    assert!(gateway.shown().is_empty(), "what an agent before has seen");
    gateway.table_full += 1;
    gateway.load(0, 3);
    assert_eq!(gateway.shown(), ["flow table", "SNAT ports"]);
    gateway.pass(&Pass::default(), SHOWN / 2);
    assert_eq!(gateway.shown().len(), 2);
    gateway.pass(&Pass::default(), SHOWN / 2);
    assert!(gateway.shown().is_empty());
}

#[test]
fn one_unlucky_flow_among_many_is_no_shortage_but_none_ends_one_either() {
    let mut gateway = Gateway::new();
    gateway.load(1000, 9);
    assert!(gateway.shown().is_empty());
    gateway.load(1000, 10);
    assert_eq!(gateway.shown(), ["SNAT ports"]);
    for _ in 0..60 {
        gateway.load(100_000, 1);
        assert_eq!(gateway.shown(), ["SNAT ports"]);
    }
}

#[test]
fn looks_at_every_moment_count_as_one() {
    let mut gateway = Gateway::new();
    gateway.load(0, 0);
    gateway.no_port += 1;
    gateway.pass(&Pass::default(), WINDOW / 4);
    assert!(gateway.shown().is_empty(), "a thousand may open within the same two seconds");
    gateway.opened += 1000;
    gateway.pass(&Pass::default(), WINDOW);
    assert!(gateway.shown().is_empty());
}

#[test]
fn who_found_no_room_is_named_and_nobody_else() {
    let mut gateway = Gateway::new();
    let now = gateway.now;
    gateway.pressure.turned_away(Counter::DropPortsExhausted, service(1), now);
    assert!(gateway.shown().is_empty(), "one flow of many");
    gateway.load(10, 10);
    assert_eq!(gateway.shown(), ["SNAT ports", "service 192.0.2.1:80/TCP"]);
    let of = |gateway: &Gateway, last| gateway.pressure.of(service(last), gateway.now);
    assert!(of(&gateway, 1).is_some_and(|why| why.starts_with("SNAT ports: new flows are dropped")));
    assert_eq!(of(&gateway, 2), None);
    gateway.pass(&Pass::default(), SHOWN);
    assert_eq!((of(&gateway, 1), gateway.shown()), (None, vec![]));
}

#[test]
fn where_nobody_says_who_found_no_room_it_may_be_anyone() {
    let mut gateway = Gateway::new();
    gateway.load(10, 10);
    for last in [1, 2] {
        assert!(gateway.pressure.of(service(last), gateway.now).is_some());
    }
}

#[test]
fn a_table_that_fills_up_is_told_before_it_is_full_and_a_flood_does_not_fill_it() {
    for (state, flows, is_short) in [
        (FlowState::Established, 899, false),
        (FlowState::SynAcked, 1000, false),
        (FlowState::UdpReplied, 1000, false),
        (FlowState::Closed, 1000, false),
        (FlowState::Established, 900, true),
    ] {
        let mut gateway = Gateway::new();
        gateway.pass(&pass(state, flows), WINDOW);
        assert_eq!(gateway.shown().len(), usize::from(is_short), "{flows} {state:?}");
        assert_eq!(gateway.pressure.of(service(1), gateway.now), None, "nothing is dropped yet");
    }
}

#[test]
fn a_table_that_was_nearly_full_has_room_again_with_a_fifth_free() {
    let mut gateway = Gateway::new();
    gateway.pass(&pass(FlowState::Established, 900), WINDOW);
    gateway.pass(&pass(FlowState::Established, 801), SHOWN / 2);
    gateway.pass(&pass(FlowState::Established, 801), SHOWN / 2);
    assert_eq!(gateway.shown(), ["flow table"]);
    gateway.pass(&pass(FlowState::Established, 799), SHOWN / 2);
    gateway.pass(&pass(FlowState::Established, 899), SHOWN / 2);
    assert!(gateway.shown().is_empty());
}
