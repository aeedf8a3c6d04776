//! Outlier detection through random histories.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What may happen.
#[derive(Clone, Debug)]
enum Event {
    Error(u8),
    Success(u8),
    Trip(u8, u32),
    Pass(u64),
    /// Endpoints by bits: there, and ready.
    Endpoints(u8, u8),
    Policy(u32, u32, u64, u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (1..=8u8).prop_map(Event::Error),
        1 => (1..=8u8).prop_map(Event::Success),
        2 => (1..=8u8, 0..6u32).prop_map(|(last, errors)| Event::Trip(last, errors)),
        4 => (0..40_000u64).prop_map(Event::Pass),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(there, ready)| Event::Endpoints(there, ready)),
        1 => (1..4u32, 0..=100u32, 1..40u64, 1..100u64)
            .prop_map(|(errors, percent, base, max)| Event::Policy(errors, percent, base, max)),
    ]
}

impl World {
    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Error(last) => self.error(last),
            Event::Success(last) => self.see(last, Sign::ConnectSuccess),
            Event::Trip(last, errors) => self.see(last, Sign::Tripped { errors }),
            Event::Pass(milliseconds) => self.run(Duration::from_millis(milliseconds)),
            Event::Endpoints(there, ready) => {
                let mut all = endpoints(8);
                all.retain(|endpoint| there >> (last(&endpoint.backend) - 1) & 1 == 1);
                for endpoint in &mut all {
                    endpoint.ready = ready >> (last(&endpoint.backend) - 1) & 1 == 1;
                }
                self.set_endpoints(all);
            }
            Event::Policy(consecutive_errors, max_ejection_percent, base, max) => {
                self.set_policy(Some(OutlierDetection {
                    consecutive_errors,
                    interval: SECOND,
                    base_ejection_time: Duration::from_secs(base),
                    max_ejection_time: Duration::from_secs(max),
                    max_ejection_percent,
                }));
            }
        }
    }

    /// What holds after every event.
    fn check(&self) {
        let (service, policy) = &self.services[0];
        let policy = policy.as_ref().expect("watched");
        let serving: Vec<_> =
            service.endpoints.iter().filter(|endpoint| endpoint.takes_new_flows()).collect();
        let ejections = self.outliers.ejections();
        let ejected =
            serving.iter().filter(|endpoint| ejections.of(&service.id, &endpoint.backend).is_some());
        let most = (serving.len() * policy.max_ejection_percent as usize / 100).max(1);
        assert!(ejected.count() <= most.min(serving.len().saturating_sub(1)));
        for (_, backend, ejection) in ejections.iter() {
            assert!(ejection.until > self.now, "{backend} should have returned");
            assert!(ejection.until <= self.now + policy.max_ejection_time, "{backend} is ejected too long");
            assert!(service.endpoints.iter().any(|endpoint| endpoint.backend == backend));
        }
    }
}

fn last(backend: &BackendId) -> u8 {
    match backend.address {
        std::net::IpAddr::V4(address) => address.octets()[3],
        std::net::IpAddr::V6(_) => unreachable!("the tests use IPv4"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_limits_hold_and_everybody_returns(events in vec(event(), 1..120)) {
        let mut world = World::with(8, s1());
        // Who is ejected, by what was told.
        let mut told = BTreeSet::new();
        // Those of them that have gone since: their ejections end in silence, or are told when they come back.
        let mut away = BTreeSet::new();
        for event in &events {
            world.happen(event);
            world.check();
            for decision in world.decisions() {
                match decision {
                    Decision::Ejected { backend, .. } => prop_assert!(told.insert(backend), "ejected twice"),
                    Decision::Returned { backend, .. } => {
                        prop_assert!(told.remove(&backend) || away.remove(&backend), "never ejected");
                    }
                    Decision::Reset { backend } => {
                        prop_assert!(world.outliers.ejections().of(&service_id(1), &backend).is_none());
                    }
                    Decision::Refused { limit, .. } => prop_assert!(limit < 8),
                }
            }
            let ejected: BTreeSet<_> = world.outliers.ejections().iter().map(|(_, backend, _)| backend).collect();
            let endpoints = &world.services[0].0.endpoints;
            let is_away =
                |backend: &BackendId| endpoints.iter().all(|endpoint| endpoint.backend != *backend);
            away.extend(told.extract_if(.., is_away));
            told.extend(ejected.iter().copied());
            prop_assert_eq!(&told, &ejected);
        }
        // Longer than any ejection.
        world.run(Duration::from_secs(301));
        prop_assert_eq!(world.ejected(), NOBODY);
        prop_assert_eq!(world.outliers.poll_timeout(), None);
    }
}
