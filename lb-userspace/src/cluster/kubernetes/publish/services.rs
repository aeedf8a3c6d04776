//! What Services of our class are told: their addresses, and what became of what they ask for.

mod judge;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::{Value, json};

use self::judge::Judge;
use super::condition::differ;
use super::write::SERVICE;
use super::{Action, Cluster, Write, conditions, field_manager, owns_status};
use crate::desired::{LOAD_BALANCER_CLASS, ObjectName};

/// Our conditions' types begin like this, so that they are not taken for anybody else's.
const OUR_CONDITIONS: &str = "kanmon.dev/";

/// The statuses that are not as they should be, and those that are no longer ours to write.
pub(in super::super) fn writes(cluster: &Cluster<'_>) -> Vec<Write> {
    let judge = Judge::new(cluster);
    let manager = field_manager(cluster.cluster_set_id);
    let mut writes = Vec::new();
    for (name, service) in &cluster.present.services {
        if cluster.is_ending(&name.namespace) || service.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let applied = if is_ours(service) {
            status(cluster, &judge, name, service).map(|status| json!({"status": status}))
        } else {
            // Without `status`: an empty one would still be ours.
            owns_status(&service.metadata, &manager).then(|| json!({}))
        };
        writes.extend(applied.map(|value| Write::new(SERVICE, name, Action::ApplyStatus(value))));
    }
    writes
}

fn is_ours(service: &Service) -> bool {
    let class = service.spec.as_ref().and_then(|spec| spec.load_balancer_class.as_deref());
    class == Some(LOAD_BALANCER_CLASS)
}

/// The status to write; `None` where it is written, or nobody has judged the Service yet.
fn status(cluster: &Cluster<'_>, judge: &Judge<'_>, name: &ObjectName, service: &Service) -> Option<Value> {
    let verdict = judge.verdict(name)?;
    let written = service.status.as_ref();
    let written_conditions: &[Condition] =
        written.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let conditions =
        conditions(&verdict.conditions, written_conditions, service.metadata.generation, cluster.now);
    let ingress: Vec<LoadBalancerIngress> = verdict.vips.iter().map(|vip| entry(&vip.to_string())).collect();
    let written_ingress: &[LoadBalancerIngress] = written
        .and_then(|status| status.load_balancer.as_ref())
        .and_then(|status| status.ingress.as_deref())
        .unwrap_or_default();

    // Where there should be none, and ours is gone, what is there is another's; that ours goes is told by a condition.
    let readdressed = !ingress.is_empty() && !same(&ingress, written_ingress);
    if !readdressed && !differ(&conditions, written_conditions, |kind| kind.starts_with(OUR_CONDITIONS)) {
        return None;
    }
    Some(if ingress.is_empty() {
        json!({"conditions": conditions})
    } else {
        json!({"loadBalancer": {"ingress": ingress}, "conditions": conditions})
    })
}

/// With `Proxy`, kube-proxy leaves what is sent to the address alone; else it would answer it within the cluster.
fn entry(vip: &str) -> LoadBalancerIngress {
    LoadBalancerIngress {
        ip: Some(vip.to_owned()),
        ip_mode: Some("Proxy".to_owned()),
        ..LoadBalancerIngress::default()
    }
}

fn same(wanted: &[LoadBalancerIngress], written: &[LoadBalancerIngress]) -> bool {
    let key = |entry: &LoadBalancerIngress| {
        (entry.ip.clone(), entry.ip_mode.clone(), entry.hostname.clone().unwrap_or_default())
    };
    wanted.iter().map(key).eq(written.iter().map(key))
}
