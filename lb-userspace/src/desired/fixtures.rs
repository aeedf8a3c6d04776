//! Services for tests, of all that works on desired state.

use std::net::IpAddr;
use std::sync::Arc;

use super::{BackendId, Endpoint, HealthCheck, Protocol, Service, ServiceId};

/// 10.0.0.`last`:8080.
pub(crate) fn backend(last: u8) -> BackendId {
    BackendId { protocol: Protocol::Tcp, address: IpAddr::from([10, 0, 0, last]), port: 8080 }
}

/// A ready endpoint in `cluster`, probed at its own port.
pub(crate) fn endpoint_in(cluster: &str, last: u8) -> Endpoint {
    Endpoint {
        backend: backend(last),
        cluster: cluster.to_owned(),
        region: format!("region of {cluster}"),
        zone: String::new(),
        pod: String::new(),
        ready: true,
        serving: true,
        terminating: false,
        probe_port: Some(8080),
    }
}

/// The service at 192.0.2.`vip`.
pub(crate) fn service_id(vip: u8) -> ServiceId {
    ServiceId { vip: IpAddr::from([192, 0, 2, vip]), port: 80, protocol: Protocol::Tcp }
}

/// A service that is probed by default.
pub(crate) fn service(vip: u8, endpoints: Vec<Endpoint>) -> Service {
    Service {
        id: service_id(vip),
        namespace: "shop".into(),
        name: "httpbin".into(),
        front: String::new(),
        not_fronts: Vec::new(),
        port_name: String::new(),
        endpoints,
        health_check: HealthCheck::default(),
        policy: Arc::default(),
        sources: None,
        affinity: None,
    }
}
