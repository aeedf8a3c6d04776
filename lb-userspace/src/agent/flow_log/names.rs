//! Names of members, by index and generation: an index that was given to another member names no stranger.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::desired::{BackendId, Desired, ServiceId};
use crate::plan::MemberInfo;

/// Generations of an index that are remembered: flows of the one before may still end.
const GENERATIONS: usize = 2;

/// What is known of members, told before flows can refer to them.
#[derive(Clone, Debug, Default)]
pub(in crate::agent) struct Naming {
    pub(in crate::agent) desired: Arc<Desired>,
    pub(in crate::agent) members: Vec<MemberInfo>,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) id: ServiceId,
    pub(super) backend: BackendId,
    pub(super) sample_one_in: u32,
    /// Empty if unknown, like those below.
    pub(super) service: String,
    pub(super) cluster: String,
    pub(super) region: String,
    pub(super) zone: String,
    pub(super) pod: String,
}

impl Named {
    pub(super) fn upstream_host(&self) -> SocketAddr {
        SocketAddr::new(self.backend.address, self.backend.port)
    }

    fn new(member: &MemberInfo) -> Self {
        Self {
            id: member.service,
            backend: member.backend,
            sample_one_in: 1,
            service: String::new(),
            cluster: String::new(),
            region: String::new(),
            zone: String::new(),
            pod: String::new(),
        }
    }

    /// Takes in what is said of it now; what is said no longer stays.
    fn learn(&mut self, desired: &Desired) {
        let Some(service) = desired.services.get(&self.id) else { return };
        self.service = format!("{}/{}", service.namespace, service.name);
        self.sample_one_in = service.policy.flow_log.sample_one_in;
        let endpoint = service.endpoints.iter().find(|endpoint| endpoint.backend == self.backend);
        if let Some(endpoint) = endpoint {
            self.cluster.clone_from(&endpoint.cluster);
            self.region.clone_from(&endpoint.region);
            self.zone.clone_from(&endpoint.zone);
            self.pod.clone_from(&endpoint.pod);
        }
    }
}

/// All that is known, the last generations of each index, the newest last.
#[derive(Debug, Default)]
pub(super) struct Names {
    members: HashMap<u32, Vec<(u8, Named)>>,
    learnt: Arc<Desired>,
}

impl Names {
    pub(super) fn learn(&mut self, naming: &Naming) {
        let is_news = !Arc::ptr_eq(&self.learnt, &naming.desired);
        self.learnt = naming.desired.clone();
        for member in &naming.members {
            let known = self.members.entry(member.index).or_default();
            let is_new = known.last().is_none_or(|(generation, named)| {
                (*generation, named.id, named.backend) != (member.generation, member.service, member.backend)
            });
            if is_new {
                known.retain(|(generation, _)| *generation != member.generation);
                known.push((member.generation, Named::new(member)));
                let surplus = known.len().saturating_sub(GENERATIONS);
                known.drain(..surplus);
            }
            if (is_new || is_news)
                && let Some((_, named)) = known.last_mut()
            {
                named.learn(&naming.desired);
            }
        }
    }

    /// The member that had this index in this generation.
    pub(super) fn find(&self, index: u32, generation: u8) -> Option<&Named> {
        let known = self.members.get(&index)?;
        known.iter().find(|(other, _)| *other == generation).map(|(_, named)| named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::fixtures::{backend, endpoint_in, service};
    use crate::desired::{Endpoint, Protocol, Service};

    fn id() -> ServiceId {
        ServiceId { vip: [203, 0, 113, 10].into(), port: 80, protocol: Protocol::Tcp }
    }

    fn desired(pods: &[u8]) -> Arc<Desired> {
        let endpoint = |last: &u8| Endpoint {
            region: "cn-hangzhou".into(),
            zone: "b".into(),
            pod: format!("pod-{last}"),
            ..endpoint_in("hangzhou", *last)
        };
        let endpoints = pods.iter().map(endpoint).collect();
        let service = Service { id: id(), namespace: "demo".into(), ..service(1, endpoints) };
        Arc::new(Desired { services: [(id(), service)].into(), ..Desired::default() })
    }

    fn member(index: u32, generation: u8, last: u8) -> MemberInfo {
        MemberInfo {
            service: id(),
            backend: backend(last),
            index,
            backend_index: 1,
            generation,
            flags: 0,
            usable: true,
            drained_by: None,
        }
    }

    #[test]
    fn an_index_that_changed_hands_names_each_generation_its_own_member() {
        let mut names = Names::default();
        names.learn(&Naming { desired: desired(&[1]), members: vec![member(5, 1, 1)] });
        assert_eq!(names.find(5, 1).unwrap().pod, "pod-1");
        names.learn(&Naming { desired: desired(&[2]), members: vec![member(5, 2, 2)] });
        assert_eq!(names.find(5, 1).unwrap().pod, "pod-1");
        assert_eq!(names.find(5, 2).unwrap().pod, "pod-2");
        names.learn(&Naming { desired: desired(&[3]), members: vec![member(5, 3, 3)] });
        assert_eq!(names.find(5, 1), None, "nobody rather than a stranger");
        assert_eq!(names.find(6, 1), None);
    }

    #[test]
    fn a_pod_that_is_gone_keeps_its_name_for_the_flows_that_it_has() {
        let mut names = Names::default();
        names.learn(&Naming { desired: desired(&[1, 2]), members: vec![member(1, 1, 1), member(2, 1, 2)] });
        names.learn(&Naming { desired: desired(&[2]), members: vec![member(1, 1, 1), member(2, 1, 2)] });
        names.learn(&Naming { desired: desired(&[2]), members: vec![member(2, 1, 2)] });
        let named = names.find(1, 1).unwrap();
        assert_eq!((named.pod.as_str(), named.cluster.as_str()), ("pod-1", "hangzhou"));
        assert_eq!(named.upstream_host().to_string(), "10.0.0.1:8080");
    }
}
