//! All that is in a cluster, to see who wrote, and whether anything is left.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::KubeStage;

/// What is quiet for so long has settled…
const QUIET: Duration = Duration::from_secs(12);
/// …and what does not come to rest for so long never does.
const UNREST: Duration = Duration::from_secs(180);

/// What changes all the time whoever is quiet: heartbeats.
const HEARTBEATS: [&str; 2] = ["Lease", "Node"];

/// Every object of a cluster, of every kind that can be listed, by `Kind namespace/name`.
#[derive(Clone, Debug, PartialEq)]
pub struct Inventory(BTreeMap<String, Value>);

impl KubeStage {
    /// Lists everything in a cluster.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn inventory(&self, cluster: &str) -> Result<Inventory> {
        let kube = self.kube(cluster)?;
        let kinds = kube.kubectl(&["api-resources", "--verbs=list", "-o", "name"], "")?;
        // Not objects, and not kept: they are asked for when somebody looks.
        let kept = kinds.lines().filter(|kind| *kind != "componentstatuses");
        let kinds: Vec<&str> = kept.collect();
        let text = kube.kubectl(&["get", &kinds.join(","), "--all-namespaces", "-o", "json"], "")?;
        let list: Value = serde_json::from_str(&text).context("kubectl printed no JSON")?;
        let items = list["items"].as_array().context("kubectl printed no list")?;
        Ok(Inventory(items.iter().map(|object| (name(object), object.clone())).collect()))
    }

    /// Waits until nothing has been written into any of these clusters for a while, and gives what there is.
    ///
    /// # Errors
    /// When kubectl fails, or they do not settle.
    pub fn settled(&self, clusters: &[&str]) -> Result<Vec<Inventory>> {
        let all = || clusters.iter().map(|cluster| self.inventory(cluster)).collect::<Result<Vec<_>>>();
        let deadline = Instant::now() + UNREST;
        let mut before = all()?;
        loop {
            thread::sleep(QUIET);
            let now = all()?;
            let both = before.iter().zip(&now);
            let changes: Vec<String> = both.flat_map(|(before, now)| before.changes(now)).collect();
            if changes.is_empty() {
                return Ok(now);
            }
            ensure!(Instant::now() < deadline, "the clusters don't settle: {changes:?}");
            before = now;
        }
    }
}

impl Inventory {
    /// What differs from a later one: made, gone or written to in between, but for heartbeats and for Events of
    /// others.
    pub fn changes(&self, later: &Inventory) -> Vec<String> {
        let changed = |name: &&String| version(self.0.get(*name)) != version(later.0.get(*name));
        let both =
            |name: &String| [later.0.get(name), self.0.get(name)].into_iter().flatten().next().cloned();
        let mut names: Vec<&String> = self.0.keys().chain(later.0.keys()).collect();
        names.sort();
        names.dedup();
        names
            .into_iter()
            .filter(changed)
            .filter(|name| both(name).is_some_and(|object| !is_background(&object)))
            .cloned()
            .collect()
    }

    /// The Leases of Kanmon that were renewed until a later one.
    pub fn renewed(&self, later: &Inventory) -> Vec<String> {
        let leases = later.0.iter().filter(|(_, object)| is_our_lease(object));
        let renewed = leases.filter(|(name, object)| version(self.0.get(*name)) != version(Some(object)));
        renewed.map(|(name, _)| name.clone()).collect()
    }

    /// What Kanmon left: objects that it made, finalizers of its own, and what it said in the status of others'
    /// objects. Events tell what happened, and end by themselves.
    pub fn traces(&self) -> Vec<String> {
        let traced = self.0.iter().filter(|(_, object)| object["kind"] != "Event" && has_trace(object));
        traced.map(|(name, _)| name.clone()).collect()
    }

    /// The names of the objects of a kind.
    pub fn names(&self, kind: &str) -> Vec<&str> {
        let of_kind = self.0.iter().filter(|(_, object)| object["kind"] == kind);
        of_kind.map(|(name, _)| name.as_str()).collect()
    }
}

fn name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    // A kind may be in several groups.
    format!(
        "{} {} {}/{}",
        text(&object["apiVersion"]),
        text(&object["kind"]),
        text(&metadata["namespace"]),
        text(&metadata["name"])
    )
}

fn version(object: Option<&Value>) -> Option<String> {
    let metadata = &object?["metadata"];
    Some(format!("{}@{}", metadata["uid"], metadata["resourceVersion"]))
}

fn is_background(object: &Value) -> bool {
    let kind = object["kind"].as_str().unwrap_or_default();
    let of_ours = object.to_string().contains("kanmon.dev");
    HEARTBEATS.contains(&kind) || (kind == "Event" && !of_ours)
}

fn has_trace(object: &Value) -> bool {
    let metadata = &object["metadata"];
    let finalizers = metadata["finalizers"].as_array().into_iter().flatten();
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let of_ours = |value: &Value| value.as_str().is_some_and(|text| text.starts_with("kanmon.dev/"));
    let is_front = object["spec"]["loadBalancerClass"] == "kanmon.dev/xdp";
    let is_export = object["kind"] == "ServiceExport";
    !metadata["labels"]["kanmon.dev/cluster-set-id"].is_null()
        || finalizers.into_iter().any(of_ours)
        || conditions.clone().any(|condition| of_ours(&condition["type"]))
        || (is_front && !object["status"]["loadBalancer"]["ingress"].is_null())
        || (is_export && conditions.count() > 0)
        || is_our_lease(object)
}

fn is_our_lease(object: &Value) -> bool {
    object["kind"] == "Lease" && object["metadata"]["namespace"] == "kanmon-system"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn inventory(objects: &[Value]) -> Inventory {
        Inventory(objects.iter().map(|object| (name(object), object.clone())).collect())
    }

    fn object(kind: &str, name: &str, version: &str) -> Value {
        json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "uid": "u", "resourceVersion": version}})
    }

    #[test]
    fn what_was_made_or_written_or_is_gone_has_changed_and_heartbeats_don_t_count() {
        let before = inventory(&[
            object("Service", "same", "1"),
            object("Service", "gone", "1"),
            object("Service", "written", "1"),
            object("Lease", "beat", "1"),
        ]);
        let after = inventory(&[
            object("Service", "same", "1"),
            object("Service", "written", "2"),
            object("Service", "made", "3"),
            object("Lease", "beat", "9"),
            object("Event", "of-a-scheduler", "5"),
        ]);
        assert_eq!(before.changes(&after), ["v1 Service /gone", "v1 Service /made", "v1 Service /written"]);
        assert_eq!(before.changes(&before), [] as [&str; 0]);
    }

    #[test]
    fn a_status_of_ours_is_a_trace_and_another_s_is_not() {
        let service = |condition: &str| {
            let mut service = object("Service", "a", "1");
            service["status"] = json!({"conditions": [{"type": condition}]});
            service
        };
        assert_eq!(inventory(&[service("kanmon.dev/Accepted")]).traces().len(), 1);
        assert_eq!(inventory(&[service("example.com/Accepted")]).traces().len(), 0);
    }
}
