//! What is kept of an object: only what somebody reads. At 100,000 endpoints the rest would cost more memory
//! than the tables, and would make every heartbeat of a controller look like a change. Pure.

use k8s_openapi::api::core::v1::{ObjectReference, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::ObjectMeta;

use crate::desired::{
    AddressAllocation, AddressPool, LOAD_BALANCER_CLASS, LoadBalancingPolicy, MemberCluster, Place,
};

/// Annotations that are read begin like this, or are one of these.
pub(super) const OUR_ANNOTATIONS: &str = "kanmon.dev/";
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";

const REGION_LABEL: &str = "topology.kubernetes.io/region";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// A Service without its status.
pub(super) fn service(mut service: Service) -> Service {
    strip(&mut service.metadata);
    service.status = None;
    service
}

/// A Service of the gateway cluster, if it is or wants to be a front.
pub(super) fn front(object: Service) -> Option<Service> {
    let class = object.spec.as_ref().and_then(|spec| spec.load_balancer_class.as_deref());
    (class == Some(LOAD_BALANCER_CLASS)).then(|| service(object))
}

/// An EndpointSlice without hints and the like.
pub(super) fn slice(mut slice: EndpointSlice) -> EndpointSlice {
    strip(&mut slice.metadata);
    slice.metadata.annotations = None;
    for endpoint in slice.endpoints.iter_mut().flatten() {
        endpoint.hints = None;
        endpoint.deprecated_topology = None;
        endpoint.target_ref = endpoint.target_ref.take().map(|target| ObjectReference {
            kind: target.kind,
            namespace: target.namespace,
            name: target.name,
            ..ObjectReference::default()
        });
    }
    slice
}

/// A MemberCluster with its status, which is compared with what it should be.
pub(super) fn member(mut member: MemberCluster) -> MemberCluster {
    member.metadata.managed_fields = None;
    member
}

/// An AddressPool with its status, which is compared with what it should be.
pub(super) fn pool(mut pool: AddressPool) -> AddressPool {
    let generation = pool.metadata.generation;
    strip(&mut pool.metadata);
    pool.metadata.generation = generation;
    pool
}

/// A LoadBalancingPolicy with its status, which is compared with what it should be.
pub(super) fn policy(mut policy: LoadBalancingPolicy) -> LoadBalancingPolicy {
    let generation = policy.metadata.generation;
    strip(&mut policy.metadata);
    policy.metadata.generation = generation;
    policy
}

/// An AddressAllocation with its status, and with its version, which is named when it is changed.
pub(super) fn allocation(mut allocation: AddressAllocation) -> AddressAllocation {
    let version = allocation.metadata.resource_version.take();
    strip(&mut allocation.metadata);
    allocation.metadata.resource_version = version;
    allocation
}

/// A Secret without what kubectl and others note on it, which may hold its content once more.
pub(super) fn secret(mut secret: Secret) -> Secret {
    strip(&mut secret.metadata);
    secret.metadata.annotations = None;
    secret
}

/// Where a Node is.
pub(super) fn place(metadata: &ObjectMeta) -> Place {
    let label =
        |key| metadata.labels.as_ref().and_then(|labels| labels.get(key)).cloned().unwrap_or_default();
    Place { region: label(REGION_LABEL), zone: label(ZONE_LABEL) }
}

/// Metadata that changes with every write, or that nobody reads.
pub(super) fn strip(metadata: &mut ObjectMeta) {
    metadata.managed_fields = None;
    metadata.resource_version = None;
    metadata.generation = None;
    metadata.generate_name = None;
    metadata.self_link = None;
    metadata.finalizers = None;
    if let Some(annotations) = &mut metadata.annotations {
        let is_read =
            |key: &str| key.starts_with(OUR_ANNOTATIONS) || [SOURCE_RANGES, TOPOLOGY_MODE].contains(&key);
        annotations.retain(|key, _| is_read(key));
    }
    metadata.annotations = metadata.annotations.take().filter(|annotations| !annotations.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<T: serde::de::DeserializeOwned>(json: serde_json::Value) -> T {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_write_that_touches_nothing_that_is_read_is_no_change() {
        let written = |version: &str, seen: &str| -> Service {
            service(parse(serde_json::json!({
                "metadata": {
                    "namespace": "demo", "name": "web", "uid": "u", "resourceVersion": version,
                    "managedFields": [{"manager": seen}],
                    "annotations": {"controller/seen": seen, "kanmon.dev/addresses": "192.0.2.1",
                        "service.kubernetes.io/topology-mode": "Auto"}
                },
                "spec": {"ports": [{"port": 80}]},
                "status": {"loadBalancer": {"ingress": [{"ip": seen}]}}
            })))
        };
        let kept = written("1", "192.0.2.8");
        assert_eq!(kept, written("2", "192.0.2.9"));
        assert_eq!(kept.metadata.annotations.unwrap().len(), 2);
        assert_eq!(kept.metadata.uid.as_deref(), Some("u"));
        assert!(kept.spec.unwrap().ports.is_some());
    }

    #[test]
    fn a_slice_keeps_who_owns_it_and_which_pod_an_endpoint_is() {
        let kept = slice(parse(serde_json::json!({
            "metadata": {"namespace": "demo", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "web", "uid": "u"}]},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"], "zone": "z", "nodeName": "n",
                "hints": {"forZones": [{"name": "z"}]},
                "targetRef": {"kind": "Pod", "namespace": "demo", "name": "web-x", "uid": "p"}}]
        })));
        let endpoint = &kept.endpoints.as_ref().unwrap()[0];
        assert_eq!(endpoint.target_ref.as_ref().unwrap().name.as_deref(), Some("web-x"));
        assert_eq!((endpoint.zone.as_deref(), endpoint.node_name.as_deref()), (Some("z"), Some("n")));
        assert!(endpoint.hints.is_none() && kept.metadata.owner_references.is_some());
        assert!(kept.metadata.labels.is_some());
    }

    #[test]
    fn only_services_of_our_class_are_fronts_of_the_gateway_cluster() {
        let of =
            |class: &str| -> Service { parse(serde_json::json!({"spec": {"loadBalancerClass": class}})) };
        assert!(front(of(LOAD_BALANCER_CLASS)).is_some());
        assert!(front(of("other")).is_none() && front(Service::default()).is_none());
    }

    #[test]
    fn a_node_is_where_its_labels_say() {
        let metadata: ObjectMeta = parse(serde_json::json!({"labels": {
            "topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": "z"}}));
        assert_eq!(place(&metadata), Place { region: "r".into(), zone: "z".into() });
        assert_eq!(place(&ObjectMeta::default()), Place::default());
    }
}
