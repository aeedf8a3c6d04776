//! Services without a selector and EndpointSlices, written by hand.

use std::{fmt::Write, net::IpAddr};

use crate::topology::{Dual, HTTP_PORT};

/// An endpoint of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Whether it takes new flows.
    pub ready: bool,
    /// Whether it answers, although it may be on its way out.
    pub serving: bool,
    /// Whether it is on its way out.
    pub terminating: bool,
}

impl Endpoint {
    /// One that takes flows.
    pub fn ready(address: IpAddr) -> Endpoint {
        Endpoint { address, ready: true, serving: true, terminating: false }
    }

    /// One whose readiness probe fails.
    pub fn not_ready(address: IpAddr) -> Endpoint {
        Endpoint { ready: false, serving: false, ..Endpoint::ready(address) }
    }
}

/// A load balancer of ours in the namespace `demo`, with the port `http` and no selector: nobody writes its
/// slices but whoever made it.
pub fn service(name: &str, vip: Dual) -> String {
    let Dual { v4, v6 } = vip;
    format!(
        "apiVersion: v1
kind: Service
metadata:
  namespace: demo
  name: {name}
  annotations:
    kanmon.dev/addresses: \"{v4},{v6}\"
    kanmon.dev/health-check: tcp
    kanmon.dev/health-check-interval: 500ms
    kanmon.dev/health-check-timeout: 300ms
spec:
  type: LoadBalancer
  loadBalancerClass: kanmon.dev/xdp
  allocateLoadBalancerNodePorts: false
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  ports: [{{name: http, protocol: TCP, port: {HTTP_PORT}}}]
"
    )
}

/// A slice of that Service, whose port `http` is `port`. Its endpoints are of one family.
pub fn slice(name: &str, service: &str, port: u16, endpoints: &[Endpoint]) -> String {
    let family = if endpoints.iter().any(|endpoint| endpoint.address.is_ipv6()) { "IPv6" } else { "IPv4" };
    let mut yaml = format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  namespace: demo
  name: {name}
  labels: {{kubernetes.io/service-name: {service}}}
addressType: {family}
ports: [{{name: http, protocol: TCP, port: {port}}}]
endpoints:"
    );
    for Endpoint { address, ready, serving, terminating } in endpoints {
        let entry = format!(
            "\n- addresses: [\"{address}\"]
  conditions: {{ready: {ready}, serving: {serving}, terminating: {terminating}}}"
        );
        yaml.write_str(&entry).expect("a String takes what is written to it");
    }
    yaml + if endpoints.is_empty() { " []\n" } else { "\n" }
}
