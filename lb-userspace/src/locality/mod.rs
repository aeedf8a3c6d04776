//! How much of a service's traffic each region gets.
//!
//! Pure: endpoints in, percentages and weights out. Every region that has endpoints which take new flows gets
//! a share in proportion to their number, so each endpoint of a service is as likely as any other.

use std::collections::BTreeMap;

use crate::desired::{BackendId, Endpoint, Service};

/// A region, or a zone of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Region; empty: unknown.
    pub region: String,
    /// Zone; empty: unknown.
    pub zone: String,
}

impl Place {
    /// Where an endpoint runs.
    #[must_use]
    pub fn of(endpoint: &Endpoint) -> Self {
        Self { region: endpoint.region.clone(), zone: endpoint.zone.clone() }
    }
}

/// The traffic of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// Each place that has endpoints which take new flows.
    pub places: BTreeMap<Place, Share>,
    /// Relative weight of each backend in the service's ring, ≥ 1 where new flows may go there and 0 where
    /// not. Equal numbers mean equal shares.
    pub weights: BTreeMap<BackendId, u32>,
}

/// The share of one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Whole percent; those of a service sum to 100.
    pub percent: u32,
    /// Endpoints there that take new flows.
    pub endpoints: u32,
}

/// The shares of a service's places and the weights of its backends.
#[must_use]
pub fn shares(service: &Service) -> Shares {
    let mut shares = Shares::default();
    for endpoint in &service.endpoints {
        let weight = u32::from(endpoint.takes_new_flows());
        shares.weights.insert(endpoint.backend, weight);
        if weight > 0 {
            shares.places.entry(Place::of(endpoint)).or_default().endpoints += 1;
        }
    }
    let total: u64 = shares.places.values().map(|share| u64::from(share.endpoints)).sum();
    // Rounding the running sum, not each part, makes the parts sum to 100.
    let mut seen = 0;
    let mut given = 0;
    for share in shares.places.values_mut() {
        seen += u64::from(share.endpoints);
        let until = u32::try_from((seen * 200 + total) / (total * 2)).unwrap_or(100);
        share.percent = until - given;
        given = until;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::{Place, Share, shares};
    use crate::desired::{BackendId, Endpoint, HealthCheck, Protocol, Service, ServiceId};

    fn endpoint(last: u8, region: &str, zone: &str) -> Endpoint {
        Endpoint {
            backend: BackendId { protocol: Protocol::Tcp, address: [10, 0, 0, last].into(), port: 80 },
            cluster: region.to_owned(),
            region: region.to_owned(),
            zone: zone.to_owned(),
            pod: String::new(),
            ready: true,
            serving: true,
            terminating: false,
            probe_port: Some(80),
        }
    }

    fn service(endpoints: Vec<Endpoint>) -> Service {
        Service {
            id: ServiceId { vip: [192, 0, 2, 1].into(), port: 80, protocol: Protocol::Tcp },
            namespace: "demo".to_owned(),
            name: "httpbin".to_owned(),
            front: String::new(),
            not_fronts: Vec::new(),
            port_name: String::new(),
            endpoints,
            health_check: HealthCheck::default(),
        }
    }

    fn place(region: &str, zone: &str) -> Place {
        Place { region: region.to_owned(), zone: zone.to_owned() }
    }

    #[test]
    fn every_endpoint_weighs_the_same_and_places_sum_to_a_hundred() {
        let shares = shares(&service(vec![
            endpoint(1, "hangzhou", "a"),
            endpoint(2, "hangzhou", "b"),
            endpoint(3, "shanghai", "a"),
        ]));
        assert!(shares.weights.values().all(|&weight| weight == 1));
        let percents: Vec<u32> = shares.places.values().map(|share| share.percent).collect();
        assert_eq!(percents, [33, 34, 33]);
        assert_eq!(shares.places[&place("hangzhou", "b")], Share { percent: 34, endpoints: 1 });
    }

    #[test]
    fn endpoints_that_take_no_new_flows_have_no_share() {
        let mut unready = endpoint(2, "shanghai", "");
        unready.ready = false;
        let mut terminating = endpoint(3, "shanghai", "");
        terminating.terminating = true;
        let (unready_id, terminating_id) = (unready.backend, terminating.backend);
        let shares = shares(&service(vec![endpoint(1, "hangzhou", ""), unready, terminating]));
        assert_eq!((shares.weights[&unready_id], shares.weights[&terminating_id]), (0, 0));
        assert_eq!(shares.places.len(), 1);
        assert_eq!(shares.places[&place("hangzhou", "")], Share { percent: 100, endpoints: 1 });
    }

    #[test]
    fn a_service_without_endpoints_has_no_places() {
        assert_eq!(shares(&service(vec![])), super::Shares::default());
    }
}
