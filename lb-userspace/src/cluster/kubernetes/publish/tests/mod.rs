//! Desired state and what is there in, writes out. The writes are then done as an API server would do them, until none
//! is left.

mod exports;
mod imports;
mod services;
mod slices;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ManagedFieldsEntry};
use k8s_openapi::jiff::Timestamp;
use kube::core::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::attendance::{Absence, Absences};
use super::{Action, Cluster, Present, Sources, Write, field_manager};
use crate::desired::mcs::{ImportPort, ServiceExport, ServiceImport, ServiceImportSpec};
use crate::desired::{
    AddressAllocation, CLUSTER_SET_LABEL, ClusterObjects, Desired, ExportJudgement, ExportState, FrontState,
    Judgement, Knowledge, MemberCluster, ObjectName, Problem, Reason, Severity,
};

const SET: &str = "set";
/// The cluster that is written to.
const HERE: &str = "a";

/// One cluster, and all that is known.
struct Bed {
    present: Present,
    desired: Desired,
    clusters: BTreeMap<String, Arc<ClusterObjects>>,
    members: Vec<MemberCluster>,
    allocations: Vec<AddressAllocation>,
    absences: Absences,
    complete: bool,
    second: i64,
    /// The last UID and resourceVersion.
    counter: u32,
}

impl Bed {
    /// A cluster with namespace `demo`, where v1beta1 is served.
    fn new() -> Self {
        let namespaces = BTreeMap::from([("demo".to_owned(), false)]);
        Self {
            present: Present { namespaces, mcs_version: Some("v1beta1"), ..Present::default() },
            desired: Desired::default(),
            clusters: BTreeMap::new(),
            members: Vec::new(),
            allocations: Vec::new(),
            absences: Absences::default(),
            complete: true,
            second: 0,
            counter: 0,
        }
    }

    fn with<T>(&self, act: impl FnOnce(&Cluster<'_>) -> T) -> T {
        let sources = Sources::new(&self.clusters, &self.members, &self.desired);
        let desired = Desired {
            clusters: self.clusters.keys().cloned().collect(),
            knowledge: if self.complete { Knowledge::Known } else { Knowledge::Partial },
            ..self.desired.clone()
        };
        act(&Cluster {
            name: HERE,
            present: &self.present,
            desired: &desired,
            sources: &sources,
            allocations: &self.allocations,
            absences: &self.absences,
            cluster_set_id: SET,
            now: at(self.second),
        })
    }

    fn writes(&self) -> Vec<Write> {
        self.with(|cluster| {
            let mut writes = super::services::writes(cluster);
            writes.extend(super::exports::writes(cluster));
            writes.extend(super::imports::writes(cluster).0);
            writes
        })
    }

    fn problems(&self) -> Vec<Problem> {
        self.with(|cluster| super::imports::writes(cluster).1)
    }

    /// Does all writes, and those that follow from them, a second apart; gives `verb Kind name` of each.
    fn settle(&mut self) -> Vec<String> {
        let mut done = Vec::new();
        for _ in 0..10 {
            let writes = self.writes();
            if writes.is_empty() {
                return done;
            }
            for write in writes {
                done.push(format!("{} {} {}", verb(&write.action), write.kind.kind, write.name));
                self.execute(write);
            }
            self.second += 1;
        }
        panic!("it never comes to rest: {:#?}", self.writes());
    }

    fn execute(&mut self, write: Write) {
        let name = ObjectName { namespace: write.namespace, name: write.name };
        self.counter += 1;
        let version = self.counter.to_string();
        match (write.kind.kind, write.action) {
            ("Service", Action::ApplyStatus(value)) => {
                let service = self.present.services.get_mut(&name).unwrap();
                let mut next: k8s_openapi::api::core::v1::ServiceStatus = status_in(&value);
                let before = service.status.take().unwrap_or_default();
                let foreign = before.conditions.into_iter().flatten();
                let foreign = foreign.filter(|condition| !condition.type_.starts_with("kanmon.dev/"));
                next.conditions.get_or_insert_default().extend(foreign);
                service.status = Some(next);
                own(&mut service.metadata, &value);
            }
            ("ServiceExport", Action::ApplyStatus(value)) => {
                let export = self.present.exports.get_mut(&name).unwrap();
                let foreign: Vec<Condition> = export.status.take().unwrap_or_default().conditions;
                let foreign = foreign.into_iter().filter(|condition| condition.type_.starts_with("other"));
                let mut next: crate::desired::mcs::ServiceExportStatus = status_in(&value);
                next.conditions.extend(foreign);
                export.status = Some(next);
                own(&mut export.metadata, &value);
            }
            ("ServiceImport", Action::ApplyStatus(value)) => {
                self.present.imports.get_mut(&name).unwrap().status = Some(parse(value["status"].clone()));
            }
            ("ServiceImport", Action::Create(value)) => {
                let import: ServiceImport = made(value, &name, &version, None);
                assert!(self.present.imports.insert(name, import).is_none());
            }
            ("ServiceImport", Action::Replace(value)) => {
                let before = self.present.imports.remove(&name).unwrap();
                assert_eq!(value["metadata"]["resourceVersion"], json!(before.metadata.resource_version));
                let mut import: ServiceImport = made(value, &name, &version, before.metadata.uid);
                import.status = before.status;
                import.metadata.generation = Some(i64::from(self.counter));
                self.present.imports.insert(name, import);
            }
            ("ServiceImport", Action::Delete { uid, resource_version }) => {
                let metadata = self.present.imports.remove(&name).unwrap().metadata;
                assert_eq!((Some(uid), &resource_version), (metadata.uid, &metadata.resource_version));
                assert!(resource_version.is_some(), "what was changed since stays");
            }
            ("EndpointSlice", Action::Create(value)) => {
                let slice: EndpointSlice = made(value, &name, &version, None);
                assert!(self.present.slices.insert(name, slice).is_none());
            }
            ("EndpointSlice", Action::Replace(value)) => {
                let before = self.present.slices.remove(&name).unwrap();
                assert_eq!(value["metadata"]["resourceVersion"], json!(before.metadata.resource_version));
                assert_eq!(value["addressType"], json!(before.address_type), "it is immutable");
                let slice = made(value, &name, &version, before.metadata.uid);
                self.present.slices.insert(name, slice);
            }
            ("EndpointSlice", Action::Delete { uid, resource_version }) => {
                let metadata = self.present.slices.remove(&name).unwrap().metadata;
                assert_eq!((Some(uid), &resource_version), (metadata.uid, &metadata.resource_version));
                assert!(resource_version.is_some(), "what was changed since stays");
            }
            other => panic!("{other:?}"),
        }
    }

    /// Adds a Service of our class; `spec` is added to its spec.
    fn service(mut self, name: &str, spec: Value) -> Self {
        let mut service: Service = parse(json!({
            "metadata": {"namespace": "demo", "name": name, "uid": format!("service-{name}")},
            "spec": {"type": "LoadBalancer", "loadBalancerClass": "kanmon.dev/xdp"},
        }));
        let mut whole = json!(service.spec);
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        service.spec = Some(parse(whole));
        self.present.services.insert(object(name), service);
        self
    }

    fn front(mut self, name: &str, cluster: &str, others: &[&str], vips: &[&str]) -> Self {
        let state = FrontState {
            cluster: cluster.to_owned(),
            others: others.iter().map(|&other| other.to_owned()).collect(),
            vips: vips.iter().map(|vip| vip.parse().unwrap()).collect(),
        };
        self.desired.fronts.insert(object(name), state);
        self
    }

    fn problem(mut self, cluster: &str, about: &str, reason: Reason, severity: Severity) -> Self {
        self.desired.problems.push(Problem {
            cluster: cluster.to_owned(),
            object: about.to_owned(),
            reason,
            severity,
            message: format!("message of {reason}"),
        });
        self
    }

    /// What gateways say of an address: name, whether it is programmed.
    fn told(mut self, vip: &str, gateways: &[(&str, bool)]) -> Self {
        let gateways: Vec<Value> = gateways
            .iter()
            .map(|(name, programmed)| {
                let reason = if *programmed { "Programmed" } else { "NoSnatAddress" };
                json!({"name": name, "programmed": programmed, "reason": reason, "since": "2024-01-01T00:00:00Z",
                    "message": if *programmed { "" } else { "it has no SNAT address" }})
            })
            .collect();
        self.allocations.push(parse(json!({
            "apiVersion": "kanmon.dev/v1alpha1", "kind": "AddressAllocation",
            "metadata": {"name": vip, "labels": {CLUSTER_SET_LABEL: SET}},
            "spec": {"address": vip, "services": []}, "status": {"gateways": gateways},
        })));
        self
    }

    /// A gateway is not there.
    fn absent(&mut self, gateway: &str, for_good: bool) {
        self.absences.gone.insert(gateway.to_owned(), Absence { for_good, lease: None });
    }

    /// A service `web` that these clusters export on port 80, where it is named `http`.
    fn exported(mut self, clusters: &[&str], ips: &[&str]) -> Self {
        let judged = |cluster: &&str| {
            let conditions = vec![
                judgement("Valid", true, "Valid"),
                judgement("Ready", true, "Exported"),
                judgement("Conflict", false, "NoConflicts"),
            ];
            ((*cluster).to_owned(), ExportJudgement { conditions })
        };
        let import = ServiceImportSpec {
            ports: vec![ImportPort {
                name: "http".to_owned(),
                protocol: "TCP".to_owned(),
                app_protocol: None,
                port: 80,
            }],
            ips: ips.iter().map(|&ip| ip.to_owned()).collect(),
            ip_families: vec!["IPv4".to_owned()],
            ..ServiceImportSpec::default()
        };
        let state = ExportState {
            exports: clusters.iter().map(judged).collect(),
            clusters: clusters.iter().map(|&cluster| cluster.to_owned()).collect(),
            import: Some(import),
            import_conditions: vec![judgement("Ready", true, "Ready")],
            ..ExportState::default()
        };
        self.desired.exports.insert(object("web"), state);
        for &cluster in clusters {
            self.clusters.entry(cluster.to_owned()).or_default();
        }
        if clusters.contains(&HERE) {
            self.present.exports.insert(object("web"), export("web"));
        }
        self
    }

    /// Says which endpoints cluster's Service `web` has, in one slice; its port 80 is named `http`.
    fn endpoints(mut self, cluster: &str, addresses: &[String]) -> Self {
        let service = json!({"metadata": {"namespace": "demo", "name": "web", "uid": "u"},
            "spec": {"ports": [{"name": "http", "port": 80}]}});
        let family = if addresses.iter().any(|address| address.contains(':')) { "IPv6" } else { "IPv4" };
        let endpoints: Vec<Value> = addresses
            .iter()
            .map(|address| json!({"addresses": [address], "nodeName": "n1", "zone": "z1"}))
            .collect();
        let slice = json!({"metadata": {"namespace": "demo", "name": format!("web-{family}"),
                "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": family, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints});
        let objects = Arc::make_mut(self.clusters.entry(cluster.to_owned()).or_default());
        objects.services = vec![parse(service)];
        objects.slices.retain(|slice| slice.address_type != family);
        objects.slices.push(parse(slice));
        self
    }

    fn export_state(&mut self) -> &mut ExportState {
        self.desired.exports.get_mut(&object("web")).unwrap()
    }

    fn import(&self) -> &ServiceImport {
        &self.present.imports[&object("web")]
    }

    /// `Type=Status/Reason` of each condition of a Service.
    fn service_conditions(&self, name: &str) -> Vec<String> {
        let status = self.present.services[&object(name)].status.as_ref();
        shown(status.and_then(|status| status.conditions.as_deref()).unwrap_or_default())
    }

    fn message(&self, name: &str, kind: &str) -> String {
        let status = self.present.services[&object(name)].status.as_ref().unwrap();
        let is_it = |condition: &&Condition| condition.type_ == kind;
        status.conditions.iter().flatten().find(is_it).expect(kind).message.clone()
    }

    /// `ip/ipMode` of each ingress of a Service.
    fn ingress(&self, name: &str) -> Vec<String> {
        let status = self.present.services[&object(name)].status.as_ref();
        let balancer = status.and_then(|status| status.load_balancer.as_ref());
        let ingress = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        ingress.iter().map(|entry| format!("{}/{}", text(&entry.ip), text(&entry.ip_mode))).collect()
    }
}

fn verb(action: &Action) -> &'static str {
    match action {
        Action::Create(_) => "create",
        Action::Replace(_) => "replace",
        Action::ApplyStatus(_) => "apply status of",
        Action::Delete { .. } => "delete",
        other => panic!("{other:?}"),
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn object(name: &str) -> ObjectName {
    ObjectName { namespace: "demo".to_owned(), name: name.to_owned() }
}

fn parse<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn judgement(kind: &'static str, holds: bool, reason: &str) -> Judgement {
    Judgement { kind, holds: Some(holds), reason: reason.to_owned(), message: String::new() }
}

fn export(name: &str) -> ServiceExport {
    parse(
        json!({"metadata": {"namespace": "demo", "name": name, "uid": format!("export-{name}"), "generation": 1}}),
    )
}

fn shown(conditions: &[Condition]) -> Vec<String> {
    conditions
        .iter()
        .map(|condition| format!("{}={}/{}", condition.type_, condition.status, condition.reason))
        .collect()
}

/// An object as an API server keeps it after it was written.
fn made<T: DeserializeOwned>(mut value: Value, name: &ObjectName, version: &str, uid: Option<String>) -> T {
    let metadata = &mut value["metadata"];
    metadata["namespace"] = json!(name.namespace);
    metadata["name"] = json!(name.name);
    metadata["resourceVersion"] = json!(version);
    metadata["uid"] = json!(uid.unwrap_or_else(|| format!("uid-{version}")));
    parse(value)
}

/// The status that was applied; empty where none was.
fn status_in<T: DeserializeOwned>(applied: &Value) -> T {
    parse(applied.get("status").cloned().unwrap_or_else(|| json!({})))
}

/// Notes who owns what was applied: even an empty status is somebody's, and only none at all is nobody's.
fn own(metadata: &mut ObjectMeta, applied: &Value) {
    let entry = ManagedFieldsEntry {
        manager: Some(field_manager(SET)),
        subresource: Some("status".to_owned()),
        ..ManagedFieldsEntry::default()
    };
    metadata.managed_fields = applied.get("status").map(|_| vec![entry]);
}
