//! Shares over virtual time: leaving at once, coming back late.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::AreaState::{self, Active, Failed, FailingBack, Impaired, Standby};
use super::super::{Localities, Transition};
use super::{World, distribute, failover, percents, states};
use crate::desired::{Locality, Protocol, ServiceId};

const DELAY: Duration = Duration::from_secs(60);

/// One service over time.
struct Story {
    world: World,
    localities: Localities,
    start: Instant,
    now: Instant,
    /// Everything that changed, with the second at which it did.
    log: Vec<(u64, Transition)>,
}

impl Story {
    fn begin(world: World) -> Self {
        let now = Instant::now();
        let mut story = Self { world, localities: Localities::default(), start: now, now, log: Vec::new() };
        story.look();
        story
    }

    fn id() -> ServiceId {
        ServiceId { vip: Ipv4Addr::new(192, 0, 2, 1).into(), port: 80, protocol: Protocol::Tcp }
    }

    /// Takes the world as it is now.
    fn look(&mut self) -> Vec<u32> {
        let healthy = self.world.healthy();
        let changes = self.localities.update(self.now, [(Self::id(), self.world.input(&healthy))]);
        let second = (self.now - self.start).as_secs();
        self.log.extend(changes.into_iter().map(|(_, change)| (second, change)));
        percents(self.localities.of(&Self::id()).expect("the service is known"))
    }

    /// The percentage of the ring that a region has.
    fn weighs(&self, region: &str) -> u32 {
        let shares = self.localities.of(&Self::id()).expect("the service is known");
        self.world.weighed(shares)[region].round() as u32
    }

    fn states(&self) -> Vec<AreaState> {
        states(self.localities.of(&Self::id()).expect("the service is known"))
    }

    /// Of a region so many endpoints fail, from now on.
    fn fail(&mut self, region: &str, count: usize) -> Vec<u32> {
        self.world.fail(region, count);
        self.look()
    }

    /// Lets time pass, looking whenever a timeout says so.
    fn pass(&mut self, time: Duration) -> Vec<u32> {
        let until = self.now + time;
        while let Some(due) = self.localities.poll_timeout().filter(|due| *due <= until) {
            assert!(due > self.now, "a timeout that is over would be asked for again and again");
            self.now = due;
            self.look();
        }
        self.now = until;
        self.look()
    }

    /// Where a region's percentage moved, and when.
    fn moves(&self, region: &str) -> Vec<(u64, u32, u32)> {
        let of = |change: &&(u64, Transition)| change.1.place.region == region && change.1.is_move();
        self.log
            .iter()
            .filter(of)
            .map(|(second, change)| (*second, change.percent_before, change.percent_after))
            .collect()
    }
}

fn pair() -> World {
    World::new(failover(&["hangzhou", "shanghai"])).with("hangzhou", 4).with("shanghai", 4)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_region_fails_over_at_once_and_back_after_the_delay() {
    let mut story = Story::begin(pair());
    assert_eq!(story.look(), [100, 0]);
    story.pass(seconds(10));
    assert_eq!(story.fail("hangzhou", 4), [0, 100]);
    assert_eq!(story.states(), [Failed, Active]);
    story.pass(seconds(30));
    assert_eq!(story.fail("hangzhou", 0), [0, 100]);
    assert_eq!(story.states(), [FailingBack, Active]);
    assert_eq!(story.pass(seconds(59)), [0, 100]);
    assert_eq!(story.pass(seconds(1)), [100, 0]);
    assert_eq!(story.states(), [Active, Standby]);
    assert_eq!(story.moves("hangzhou"), [(10, 100, 0), (100, 0, 100)]);
    assert_eq!(story.moves("shanghai"), [(10, 0, 100), (100, 100, 0)]);
    let told: Vec<String> = story.log.iter().map(|(_, change)| change.to_string()).collect();
    assert_eq!(
        told,
        [
            "hangzhou was Active and is Failed, with 0% of new flows instead of 100%",
            "shanghai was Standby and is Active, with 100% of new flows instead of 0%",
            "hangzhou was Failed and is FailingBack, with 0% of new flows as before",
            "hangzhou was FailingBack and is Active, with 100% of new flows instead of 0%",
            "shanghai was Active and is Standby, with 0% of new flows instead of 100%",
        ]
    );
    assert_eq!(story.localities.poll_timeout(), None);
}

#[test]
fn a_region_that_flaps_makes_one_move_away_and_one_back() {
    let mut story = Story::begin(pair());
    for _ in 0..10 {
        story.fail("hangzhou", 4);
        story.pass(seconds(5));
        story.fail("hangzhou", 0);
        story.pass(seconds(5));
    }
    story.pass(seconds(1000));
    // It was up again for good at second 95.
    assert_eq!(story.moves("hangzhou"), [(0, 100, 0), (155, 0, 100)]);
    assert_eq!(story.moves("shanghai"), [(0, 0, 100), (155, 100, 0)]);
}

#[test]
fn a_zone_that_flaps_in_a_distribution_makes_one_move_away_and_one_back() {
    let world =
        World::new(distribute(&[("hangzhou", 80), ("shanghai", 20)])).with("hangzhou", 4).with("shanghai", 4);
    let mut story = Story::begin(world);
    for _ in 0..10 {
        story.fail("hangzhou", 4);
        story.pass(seconds(5));
        story.fail("hangzhou", 0);
        story.pass(seconds(5));
    }
    story.pass(seconds(1000));
    assert_eq!(story.moves("hangzhou"), [(0, 80, 0), (155, 0, 80)]);
}

#[test]
fn without_a_delay_a_region_fails_back_at_once() {
    let mut world = pair();
    world.policy.failback_delay = Duration::ZERO;
    let mut story = Story::begin(world);
    assert_eq!(story.fail("hangzhou", 4), [0, 100]);
    assert_eq!(story.fail("hangzhou", 0), [100, 0]);
    assert_eq!(story.localities.poll_timeout(), None);
}

#[test]
fn the_first_look_takes_health_as_it_is() {
    let mut world = pair();
    world.fail("hangzhou", 2);
    let story = Story::begin(world);
    assert_eq!(story.states(), [Impaired, Active]);
    assert_eq!(story.log, []);
}

#[test]
fn endpoints_that_recover_one_after_another_bring_flows_back_in_one_move() {
    let mut story = Story::begin(pair());
    story.fail("hangzhou", 4);
    for failing in [3, 2, 1, 0] {
        story.pass(seconds(10));
        story.fail("hangzhou", failing);
    }
    story.pass(seconds(1000));
    // Three of four were full health at second 30.
    assert_eq!(story.moves("hangzhou"), [(0, 100, 0), (90, 0, 100)]);
}

#[test]
fn a_recovery_that_goes_on_and_on_brings_back_what_has_lasted() {
    let world = World::new(failover(&["hangzhou", "shanghai"])).with("hangzhou", 10).with("shanghai", 4);
    let mut story = Story::begin(world);
    story.fail("hangzhou", 10);
    for (time, failing) in [(30, 5), (50, 4), (50, 3)] {
        story.pass(seconds(time));
        story.fail("hangzhou", failing);
    }
    story.pass(seconds(1000));
    // Health was 70% from second 30, 84% from 80 and 98% from 130. Two delays after the first it does not wait any
    // longer for more.
    let percents: Vec<_> = story
        .log
        .iter()
        .filter(|(_, change)| change.level == 0)
        .map(|(at, c)| (*at, c.percent_after))
        .collect();
    assert_eq!(percents, [(0, 0), (30, 0), (150, 84), (190, 98)]);
}

#[test]
fn a_dip_during_the_wait_begins_the_wait_anew() {
    let mut story = Story::begin(pair());
    story.fail("hangzhou", 4);
    story.fail("hangzhou", 0);
    story.pass(seconds(59));
    story.fail("hangzhou", 4);
    story.fail("hangzhou", 0);
    assert_eq!(story.pass(seconds(59)), [0, 100]);
    assert_eq!(story.pass(seconds(1)), [100, 0]);
}

#[test]
fn more_health_is_held_back_and_less_is_not() {
    let mut story = Story::begin(pair());
    assert_eq!(story.fail("hangzhou", 2), [70, 30]);
    assert_eq!(story.fail("hangzhou", 0), [70, 30]);
    assert_eq!(story.states(), [FailingBack, Active]);
    assert_eq!(story.fail("hangzhou", 3), [35, 65]);
    assert_eq!(story.fail("hangzhou", 2), [35, 65]);
    assert_eq!(story.pass(seconds(60)), [70, 30]);
}

#[test]
fn a_region_is_not_held_back_when_the_other_one_fails() {
    let mut story = Story::begin(pair());
    story.fail("hangzhou", 4);
    story.pass(seconds(5));
    assert_eq!(story.fail("hangzhou", 0), [0, 100]);
    story.pass(seconds(5));
    assert_eq!(story.fail("shanghai", 4), [100, 0]);
    assert_eq!(story.states(), [Active, Failed]);
    // It counts as back: that the other recovers takes nothing from it.
    assert_eq!(story.fail("shanghai", 0), [100, 0]);
    assert_eq!(story.pass(seconds(1000)), [100, 0]);
    assert_eq!(story.moves("hangzhou"), [(0, 100, 0), (10, 0, 100)]);
}

#[test]
fn a_region_is_not_held_back_when_the_other_one_can_not_carry_the_load() {
    let mut story = Story::begin(pair());
    story.fail("hangzhou", 4);
    story.fail("hangzhou", 0);
    assert_eq!(story.fail("shanghai", 2), [0, 100]);
    assert_eq!(story.fail("shanghai", 3), [100, 0]);
}

#[test]
fn a_sick_endpoint_in_the_other_region_lets_no_flapping_one_in() {
    let mut story = Story::begin(pair());
    story.fail("shanghai", 2);
    for _ in 0..10 {
        story.fail("hangzhou", 4);
        story.pass(seconds(5));
        story.fail("hangzhou", 0);
        story.pass(seconds(5));
    }
    story.pass(seconds(1000));
    assert_eq!(story.moves("hangzhou"), [(0, 100, 0), (155, 0, 100)]);
}

#[test]
fn after_everything_had_failed_the_first_that_recovers_serves_at_once() {
    let mut story = Story::begin(pair());
    story.fail("hangzhou", 4);
    assert_eq!(story.fail("shanghai", 4), [50, 50]);
    story.pass(seconds(20));
    assert_eq!(story.fail("shanghai", 0), [0, 100]);
    story.pass(seconds(20));
    assert_eq!(story.fail("hangzhou", 0), [0, 100]);
    assert_eq!(story.pass(seconds(60)), [100, 0]);
}

#[test]
fn what_is_not_listed_goes_on_while_a_listed_area_waits() {
    let world = World::new(distribute(&[("hangzhou", 100)])).with("hangzhou", 2).with("tokyo", 2);
    let mut story = Story::begin(world);
    assert_eq!(story.fail("hangzhou", 2), [0, 100]);
    assert_eq!(story.fail("hangzhou", 0), [0, 100]);
    assert_eq!(story.states(), [FailingBack, Active]);
    assert_eq!(story.pass(seconds(60)), [100, 0]);
}

#[test]
fn a_standby_region_that_has_just_recovered_is_standby() {
    let mut story = Story::begin(pair());
    story.fail("shanghai", 4);
    assert_eq!(story.fail("shanghai", 0), [100, 0]);
    assert_eq!(story.states(), [Active, Standby]);
}

#[test]
fn without_a_policy_nothing_is_held_back() {
    let mut story = Story::begin(World::new(Locality::Even).with("hangzhou", 4).with("shanghai", 4));
    story.fail("hangzhou", 4);
    assert_eq!(story.fail("hangzhou", 0), [50, 50]);
    assert_eq!(story.localities.poll_timeout(), None);
}

#[test]
fn a_share_that_follows_the_number_of_endpoints_is_no_move() {
    let mut story = Story::begin(World::new(Locality::Even).with("hangzhou", 2).with("shanghai", 2));
    story.world.endpoints.pop();
    assert_eq!(story.look(), [67, 33]);
    assert_eq!(story.log.len(), 2);
    assert_eq!(story.moves("hangzhou"), []);
}

#[test]
fn a_policy_with_other_areas_starts_anew() {
    let mut story = Story::begin(pair());
    story.fail("hangzhou", 4);
    assert_eq!(story.fail("hangzhou", 0), [0, 100]);
    story.world.policy.locality = failover(&["shanghai", "hangzhou"]);
    assert_eq!(story.look(), [100, 0], "shanghai first, as it is");
    story.world.policy.locality = failover(&["hangzhou", "shanghai"]);
    assert_eq!(story.look(), [0, 100], "the same areas in another order keep what is known about them");
    story.world.policy.locality = failover(&["hangzhou", "beijing"]);
    assert_eq!(story.look(), [0, 0, 100], "an area that stays is still held back");
}

#[test]
fn a_service_that_goes_is_forgotten() {
    let mut story = Story::begin(pair());
    story.fail("hangzhou", 4);
    story.fail("hangzhou", 0);
    assert!(story.localities.poll_timeout().is_some());
    assert_eq!(story.localities.update(story.now, []), []);
    assert_eq!((story.localities.poll_timeout(), story.localities.all().len()), (None, 0));
    assert_eq!(story.look(), [100, 0]);
}

proptest! {
    /// Against the definition: never better than the worst within the delay while the others can carry
    /// everything, never worse than the worst within two delays, and at once when health falls.
    #[test]
    fn held_health_is_the_lowest_of_the_last_delay(
        changes in prop::collection::vec((0usize..=10, 1u64..50), 1..40),
    ) {
        let world = World::new(failover(&["hangzhou", "shanghai"])).with("hangzhou", 10).with("shanghai", 3);
        let mut story = Story::begin(world);
        let health = |failing: usize| (140 * (10 - failing as u32) / 10).min(100);
        let mut past = vec![(0, health(0))];
        for (failing, time) in changes {
            story.fail("hangzhou", failing);
            let hangzhou = story.weighs("hangzhou");
            let now = (story.now - story.start).as_secs();
            past.push((now, health(failing)));
            let lowest = |delays: u64| {
                let since = now.saturating_sub(delays * DELAY.as_secs());
                let ends = past.iter().skip(1).map(|(begin, _)| *begin).chain([u64::MAX]);
                past.iter().zip(ends).filter(|(_, end)| *end > since).map(|((_, health), _)| *health).min()
            };
            prop_assert!(Some(hangzhou) <= lowest(1), "{hangzhou} at {now}: {past:?}");
            prop_assert!(Some(hangzhou) >= lowest(2), "{hangzhou} at {now}: {past:?}");
            story.pass(seconds(time));
        }
        story.pass(2 * DELAY);
        prop_assert_eq!(story.weighs("hangzhou"), past.last().expect("it has begun").1);
        prop_assert_eq!(story.localities.poll_timeout(), None);
    }
}
