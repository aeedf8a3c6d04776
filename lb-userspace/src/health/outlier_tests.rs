//! Outlier detection in virtual time.

use super::*;
use crate::desired::fixtures::{backend, endpoint_in, service, service_id};

#[path = "outlier_random_tests.rs"]
mod random;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const NOBODY: [u8; 0] = [];

/// Story S1's policy.
fn s1() -> OutlierDetection {
    OutlierDetection {
        consecutive_errors: 1,
        interval: SECOND,
        base_ejection_time: MINUTE,
        ..OutlierDetection::default()
    }
}

fn endpoints(count: u8) -> Vec<crate::desired::Endpoint> {
    (1..=count).map(|last| endpoint_in(if last % 2 == 0 { "hangzhou" } else { "shanghai" }, last)).collect()
}

struct World {
    now: Instant,
    outliers: Outliers,
    services: Vec<(Service, Option<OutlierDetection>)>,
}

impl World {
    fn new(services: Vec<(Service, Option<OutlierDetection>)>) -> Self {
        let mut world = Self { now: Instant::now(), outliers: Outliers::default(), services: Vec::new() };
        world.set(services);
        world
    }

    /// One service with endpoints 1 to `count`, in two regions.
    fn with(count: u8, policy: OutlierDetection) -> Self {
        Self::new(vec![(service(1, endpoints(count)), Some(policy))])
    }

    fn set(&mut self, services: Vec<(Service, Option<OutlierDetection>)>) {
        self.services = services;
        let policy = |outlier_detection: &Option<OutlierDetection>| Policy {
            outlier_detection: outlier_detection.clone(),
            ..Policy::default()
        };
        let services: Vec<_> =
            self.services.iter().map(|(service, detection)| (service, policy(detection))).collect();
        self.outliers.set_services(self.now, services.iter().map(|(service, policy)| (*service, policy)));
    }

    fn set_endpoints(&mut self, endpoints: Vec<crate::desired::Endpoint>) {
        let policy = self.services[0].1.clone();
        self.set(vec![(service(1, endpoints), policy)]);
    }

    fn set_policy(&mut self, policy: Option<OutlierDetection>) {
        let service = self.services[0].0.clone();
        self.set(vec![(service, policy)]);
    }

    /// Lets time pass, from timeout to timeout.
    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(next) = self.outliers.poll_timeout().filter(|next| *next <= end) {
            assert!(next >= self.now, "a timeout that has passed is still waited for");
            self.now = next;
            self.outliers.handle_timeout(next);
        }
        self.now = end;
    }

    fn see(&mut self, last: u8, sign: Sign) {
        let observation = Observation { backend: backend(last), service: service_id(1), sign };
        self.outliers.handle_observation(self.now, &observation);
    }

    fn error(&mut self, last: u8) {
        self.see(last, Sign::ConnectError);
    }

    /// Last bytes of who is ejected from the first service.
    fn ejected(&self) -> Vec<u8> {
        self.ejected_from(1)
    }

    fn ejected_from(&self, vip: u8) -> Vec<u8> {
        (0..=255)
            .filter(|last| self.outliers.ejections().of(&service_id(vip), &backend(*last)).is_some())
            .collect()
    }

    /// How long the ejection still lasts.
    fn left(&self, last: u8) -> Duration {
        let ejection = self.outliers.ejections().of(&service_id(1), &backend(last)).expect("ejected");
        ejection.until - self.now
    }

    fn decisions(&mut self) -> Vec<Decision> {
        std::iter::from_fn(|| self.outliers.poll_decision()).collect()
    }
}

fn returned(last: u8, why: Ending) -> Decision {
    Decision::Returned { service: service_id(1), backend: backend(last), why }
}

fn reset(last: u8) -> Decision {
    Decision::Reset { backend: backend(last) }
}

fn refused(last: u8, limit: usize) -> Decision {
    Decision::Refused { service: service_id(1), backend: backend(last), limit }
}

#[test]
fn the_first_error_ejects_for_a_minute_as_story_s1_wants() {
    let mut world = World::with(4, s1());
    world.error(2);
    assert_eq!(world.ejected(), [2]);
    let ejection = Ejection { until: world.now + MINUTE, number: 1 };
    assert_eq!(
        world.decisions(),
        [Decision::Ejected { service: service_id(1), backend: backend(2), ejection }]
    );
    world.run(MINUTE - Duration::from_nanos(1));
    assert_eq!(world.ejected(), [2]);
    world.run(Duration::from_nanos(1));
    assert_eq!(world.ejected(), NOBODY);
    assert_eq!(world.decisions(), [returned(2, Ending::Time), reset(2)]);
    assert_eq!(world.outliers.poll_timeout(), None);
}

#[test]
fn the_second_ejection_lasts_twice_as_long() {
    let mut world = World::with(4, s1());
    for number in 1..=4 {
        world.error(2);
        assert_eq!(world.left(2), number * MINUTE);
        world.run(number * MINUTE);
        assert_eq!(world.ejected(), NOBODY);
    }
}

#[test]
fn each_healthy_interval_shortens_the_next_ejection_by_one() {
    let mut world = World::with(4, s1());
    for number in 1..=3 {
        world.error(2);
        world.run(number * MINUTE);
    }
    world.run(SECOND - Duration::from_nanos(1));
    let before = world.now;
    world.error(2);
    assert_eq!(world.left(2), 4 * MINUTE, "no whole interval has passed since {before:?}");
    world.run(4 * MINUTE + 3 * SECOND);
    world.error(2);
    assert_eq!(world.left(2), 2 * MINUTE);
    world.run(2 * MINUTE + 2 * SECOND);
    world.error(2);
    assert_eq!(world.left(2), MINUTE);
}

#[test]
fn healthy_time_begins_at_the_end_of_the_ejection_however_late_that_is_noticed() {
    let mut world = World::with(4, s1());
    world.error(2);
    world.now += MINUTE + SECOND;
    world.error(2);
    assert_eq!(world.left(2), MINUTE);
}

#[test]
fn no_ejection_is_longer_than_the_longest_and_none_is_counted_beyond() {
    let policy = OutlierDetection { max_ejection_time: 150 * SECOND, ..s1() };
    let mut world = World::with(4, policy);
    for expected in [60, 120, 150, 150, 150] {
        world.error(2);
        assert_eq!(world.left(2), expected * SECOND);
        world.run(expected * SECOND);
    }
    // The third was the longest: three healthy intervals forget it all.
    world.run(3 * SECOND);
    world.error(2);
    assert_eq!(world.left(2), MINUTE);
}

#[test]
fn a_success_between_errors_starts_the_count_again() {
    let mut world = World::with(4, OutlierDetection { consecutive_errors: 3, ..s1() });
    for _ in 0..5 {
        world.error(2);
        world.error(2);
        world.see(2, Sign::ConnectSuccess);
    }
    assert_eq!(world.ejected(), NOBODY);
    world.error(2);
    world.error(1);
    world.error(2);
    assert_eq!(world.ejected(), NOBODY, "errors of others do not add up");
    world.error(2);
    assert_eq!(world.ejected(), [2]);
}

#[test]
fn errors_while_ejected_change_nothing() {
    let mut world = World::with(4, s1());
    world.error(2);
    world.run(30 * SECOND);
    world.error(2);
    world.see(2, Sign::ConnectSuccess);
    assert_eq!(world.left(2), 30 * SECOND);
    world.run(30 * SECOND);
    assert_eq!(world.ejected(), NOBODY);
}

#[test]
fn as_many_are_ejected_as_the_policy_allows_over_all_regions() {
    // Endpoints, percent, and how many of them may be ejected.
    for (count, percent, limit) in [
        (1, 100, 0),
        (2, 100, 1),
        (2, 0, 1),
        (3, 66, 1),
        (3, 67, 2),
        (4, 50, 2),
        (10, 5, 1),
        (10, 25, 2),
        (10, 100, 9),
    ] {
        let mut world = World::with(count, OutlierDetection { max_ejection_percent: percent, ..s1() });
        for last in 1..=count {
            world.error(last);
        }
        assert_eq!(world.ejected().len(), limit, "{count} endpoints, {percent}%");
        let refusals = world.decisions();
        let first = u8::try_from(limit).expect("few") + 1;
        let expected: Vec<_> = (first..=count).map(|last| refused(last, limit)).collect();
        assert_eq!(refusals[limit..], expected, "{count} endpoints, {percent}%");
    }
}

#[test]
fn a_refusal_is_told_once_within_an_interval() {
    let mut world = World::with(2, s1());
    world.error(1);
    world.decisions();
    let mut told = Vec::new();
    for _ in 0..25 {
        world.error(2);
        told.extend(world.decisions());
        world.run(SECOND / 10);
    }
    assert_eq!(told, [refused(2, 1); 3]);
}

#[test]
fn after_a_refusal_it_takes_as_many_errors_again() {
    let mut world = World::with(2, OutlierDetection { consecutive_errors: 2, ..s1() });
    for last in [1, 1, 2, 2] {
        world.error(last);
    }
    assert_eq!(world.ejected(), [1]);
    world.run(MINUTE);
    world.error(2);
    assert_eq!(world.ejected(), NOBODY);
    world.error(2);
    assert_eq!(world.ejected(), [2]);
}

#[test]
fn endpoints_that_take_no_new_flows_are_not_counted() {
    let mut two_of_three = endpoints(3);
    two_of_three[2].ready = false;
    let mut world = World::with(0, s1());
    world.set_endpoints(two_of_three);
    world.error(1);
    world.error(2);
    assert_eq!(world.ejected(), [1]);
    let mut one_of_three = endpoints(3);
    one_of_three[1].terminating = true;
    one_of_three[2].ready = false;
    world.decisions();
    world.set_endpoints(one_of_three);
    assert_eq!(world.ejected(), NOBODY, "the only endpoint is never ejected");
    assert_eq!(world.decisions(), [returned(1, Ending::Limit), reset(1)]);
}

#[test]
fn a_lower_percentage_ends_the_ejections_that_would_end_first() {
    let mut world = World::with(4, s1());
    for last in [3, 1, 2] {
        world.error(last);
        world.run(SECOND);
    }
    world.decisions();
    world.set_policy(Some(OutlierDetection { max_ejection_percent: 25, ..s1() }));
    assert_eq!(world.ejected(), [2]);
    let limit = Ending::Limit;
    assert_eq!(world.decisions(), [returned(3, limit), reset(3), returned(1, limit), reset(1)]);
}

#[test]
fn a_changed_policy_changes_the_ejections_that_are() {
    let mut world = World::with(4, s1());
    world.error(1);
    world.run(20 * SECOND);
    world.error(2);
    world.decisions();
    world.set_policy(Some(OutlierDetection { base_ejection_time: 30 * SECOND, ..s1() }));
    assert_eq!([world.left(1), world.left(2)], [10 * SECOND, 30 * SECOND]);
    world.set_policy(Some(OutlierDetection { max_ejection_time: 20 * SECOND, ..s1() }));
    assert_eq!(world.ejected(), [2]);
    assert_eq!(world.decisions(), [returned(1, Ending::Time), reset(1)]);
}

#[test]
fn a_policy_that_goes_ends_its_ejections_and_forgets_them() {
    let mut world = World::with(4, s1());
    world.error(1);
    world.decisions();
    world.set_policy(None);
    assert_eq!(world.ejected(), NOBODY);
    assert_eq!(world.decisions(), [returned(1, Ending::Policy), reset(1)]);
    world.error(1);
    assert_eq!(world.decisions(), []);
    world.set_policy(Some(s1()));
    world.error(1);
    assert_eq!(world.left(1), MINUTE);
}

#[test]
fn a_backend_that_comes_back_soon_is_still_ejected() {
    let mut world = World::with(4, s1());
    world.error(4);
    world.set_endpoints(endpoints(3));
    assert_eq!(world.ejected(), NOBODY);
    world.run(REMEMBERED - SECOND);
    world.set_endpoints(endpoints(4));
    assert_eq!(world.ejected(), [4]);
    assert_eq!(world.left(4), MINUTE - REMEMBERED + SECOND);
}

#[test]
fn a_backend_that_comes_back_late_is_another() {
    let mut world = World::with(4, s1());
    world.error(4);
    world.run(MINUTE);
    world.error(4);
    world.set_endpoints(endpoints(3));
    world.run(REMEMBERED);
    world.set_endpoints(endpoints(4));
    assert_eq!(world.ejected(), NOBODY);
    world.error(4);
    assert_eq!(world.left(4), MINUTE);
}

#[test]
fn a_service_that_comes_back_soon_keeps_its_ejections() {
    let mut world = World::with(4, s1());
    world.error(4);
    let services = world.services.clone();
    world.set(Vec::new());
    assert_eq!(world.ejected(), NOBODY);
    world.run(SECOND);
    world.set(services);
    assert_eq!(world.ejected(), [4]);
}

#[test]
fn the_ejection_of_a_backend_that_is_away_ends_in_silence() {
    let mut world = World::with(4, OutlierDetection { base_ejection_time: 5 * SECOND, ..s1() });
    world.error(4);
    world.decisions();
    world.set_endpoints(endpoints(3));
    world.run(6 * SECOND);
    assert_eq!(world.decisions(), []);
    world.set_endpoints(endpoints(4));
    assert_eq!(world.ejected(), NOBODY);
}

#[test]
fn the_kernels_count_is_new_only_as_far_as_it_has_grown() {
    let mut world = World::with(4, OutlierDetection { consecutive_errors: 5, ..s1() });
    for _ in 0..10 {
        world.see(2, Sign::ErrorsInARow(4));
    }
    assert_eq!(world.ejected(), NOBODY);
    // A success in between, and three errors after it.
    world.see(2, Sign::ErrorsInARow(3));
    world.see(2, Sign::ErrorsInARow(4));
    assert_eq!(world.ejected(), NOBODY);
    world.see(2, Sign::ErrorsInARow(5));
    assert_eq!(world.ejected(), [2]);
    world.run(MINUTE);
    world.see(2, Sign::ErrorsInARow(5));
    assert_eq!(world.ejected(), NOBODY, "those have been paid for");
    world.see(2, Sign::ErrorsInARow(0));
    world.see(2, Sign::ErrorsInARow(4));
    assert_eq!(world.ejected(), NOBODY);
    world.see(2, Sign::ErrorsInARow(9));
    assert_eq!(world.ejected(), [2]);
}

#[test]
fn a_trip_ejects_where_the_policy_agrees_and_is_reset_at_the_end() {
    let mut world = World::with(2, OutlierDetection { consecutive_errors: 5, ..s1() });
    world.see(1, Sign::Tripped { errors: 5 });
    assert_eq!(world.ejected(), [1]);
    assert_eq!(world.decisions().len(), 1, "an ejected backend's trip stays");
    world.see(1, Sign::Tripped { errors: 6 });
    assert_eq!(world.decisions(), []);
    world.run(MINUTE);
    assert_eq!(world.decisions(), [returned(1, Ending::Time), reset(1)]);
    // The packet program has counted from zero since then, to the same number.
    world.see(1, Sign::Tripped { errors: 5 });
    assert_eq!(world.ejected(), [1]);
}

#[test]
fn a_trip_that_ejects_nobody_is_reset() {
    let mut world = World::with(2, OutlierDetection { consecutive_errors: 5, ..s1() });
    world.see(1, Sign::Tripped { errors: 4 });
    assert_eq!(world.decisions(), [reset(1)], "its threshold was another's, or the policy has changed");
    world.see(1, Sign::Tripped { errors: 5 });
    world.decisions();
    world.see(2, Sign::Tripped { errors: 5 });
    assert_eq!(world.decisions(), [refused(2, 1), reset(2)]);
    world.see(77, Sign::Tripped { errors: 5 });
    assert_eq!(world.decisions(), [reset(77)], "nobody watches it any more");
}

#[test]
fn each_service_judges_a_shared_backend_by_its_own_policy() {
    let eager = s1();
    let patient = OutlierDetection { consecutive_errors: 3, base_ejection_time: 90 * SECOND, ..s1() };
    let mut world = World::new(vec![
        (service(1, endpoints(3)), Some(eager)),
        (service(2, endpoints(3)), Some(patient)),
        (service(3, endpoints(3)), None),
    ]);
    // All seen through the first service.
    world.error(1);
    assert_eq!((world.ejected_from(1), world.ejected_from(2)), (vec![1], vec![]));
    world.error(1);
    world.error(1);
    assert_eq!((world.ejected_from(1), world.ejected_from(2)), (vec![1], vec![1]));
    assert_eq!(world.ejected_from(3), NOBODY);
    world.decisions();
    world.run(MINUTE);
    assert_eq!(world.decisions(), [returned(1, Ending::Time)], "the other one still has it ejected");
    world.run(30 * SECOND);
    assert_eq!(world.decisions().last(), Some(&reset(1)));
}
