//! Policies as a person applies them, and what kubectl shows of them.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};

use super::stage::Clusters;
use crate::{
    client::Tally,
    demo::{
        report::{StepReport, hundredths},
        world,
    },
    kube::condition,
    scene::{Ring, Rings},
    stage::{AppPod, SOON},
};

/// The Node that the demo's gateway is: each gateway has its own entry in the status.
const NODE: &str = "gateway-1";
/// How long the maps may take to hold what was decided.
const IN_FORCE: Duration = Duration::from_secs(30);
/// What the shares in the ring may differ from what a policy asks for, in points.
const RING_TOLERANCE: f64 = 0.1;

/// What the conditions of a policy should be.
const CONDITIONS: [(&str, &str); 4] =
    [("Accepted", "True"), ("Enforced", "True"), ("Programmed", "True"), ("Degraded", "False")];

/// What a policy's status should come to.
pub(super) struct Wanted<'a> {
    /// Column MODE.
    pub(super) mode: &'a str,
    /// Percent of new flows of each region, or region/zone.
    pub(super) weights: &'a [(&'a str, u64)],
    /// Column HEALTHY.
    pub(super) healthy: &'a str,
    /// Column EJECTED.
    pub(super) ejected: u64,
}

impl StepReport {
    /// A step that is ok until an expectation fails; its requests are told later ([`StepReport::with`]).
    pub(super) fn begun() -> StepReport {
        StepReport::of(&Tally::default())
    }

    /// The same step with these requests, none of which may have failed.
    pub(super) fn with(self, tally: &Tally) -> StepReport {
        let StepReport { requests, failed, by_cluster, by_pod, failures, .. } = StepReport::of(tally);
        let mut report = StepReport { requests, failed, by_cluster, by_pod, failures, ..self };
        report.expect_none_failed();
        report
    }
}

impl Clusters {
    /// Applies a policy for a Service of its name, by kubectl, to the gateway's cluster.
    pub(super) fn policy(&self, service: &str, spec: &str) -> Result<()> {
        let file = format!("{service}-policy.yaml");
        self.stage.workstation().write(&file, &yaml(service, spec))?;
        self.type_in(&format!("cat {file}"))?;
        self.type_in(&format!("kubectl --context gateway apply -f {file}")).map(drop)
    }

    /// Waits until the policy's status is as wanted, shows it, and has the step fail where it is not. The
    /// conditions must say that the policy is accepted, in force as a whole, programmed, and nothing is degraded.
    pub(super) fn expect_status(
        &self,
        report: &mut StepReport,
        service: &str,
        wanted: &Wanted<'_>,
    ) -> Result<()> {
        let path = format!("/apis/kanmon.dev/v1alpha1/namespaces/demo/loadbalancingpolicies/{service}");
        let gateway = self.stage.kube("gateway")?;
        let mut last = Value::Null;
        let seen = gateway.see("the policy's status is as it should be", &path, SOON, |policy| {
            last = policy.clone();
            differences(policy, wanted).is_empty().then_some(())
        });
        self.type_in(&format!("kubectl --context gateway -n demo get loadbalancingpolicy {service}"))?;
        self.type_in(&format!(
            "kubectl --context gateway -n demo get lbp {service} -o jsonpath='{{range \
             .status.gateways[*].regions[*]}}{{.region}}{{\"/\"}}{{.zone}}{{\"\\t\"}}{{.healthy}}{{\" of \"}}\
             {{.endpoints}}{{\" healthy\\t\"}}{{.effectiveWeight}}{{\"%\\t\"}}{{.state}}{{\"\\n\"}}{{end}}{{range \
             .status.conditions[*]}}{{.type}}{{\"=\"}}{{.status}}{{\" \"}}{{end}}'"
        ))?;
        report.expect(seen.is_ok(), || {
            format!("the policy's status differs: {}", differences(&last, wanted).join(", "))
        });
        summarize(report, &last);
        Ok(())
    }

    /// Waits until the new flows' ring of a service, as the packet program has it, gives the clusters of these pods
    /// such shares, in percent, and has the step fail where it does not.
    pub(super) fn expect_ring(
        &self,
        report: &mut StepReport,
        service: SocketAddr,
        pods: &[AppPod],
        wanted: &[(&str, f64)],
    ) -> Result<()> {
        self.expect_ring_by(report, service, pods, |pod| pod.cluster.clone(), wanted)
    }

    /// The same for whatever `name` sorts pods into.
    pub(super) fn expect_ring_by(
        &self,
        report: &mut StepReport,
        service: SocketAddr,
        pods: &[AppPod],
        name: impl Fn(&AppPod) -> String,
        wanted: &[(&str, f64)],
    ) -> Result<()> {
        let shares = |ring: &Ring| {
            ring.percents(|address| pods.iter().find(|pod| pod.addresses.contains(&address)).map(&name))
        };
        let rings = Rings::open(self.stage.gateway().pins())?;
        let shares = shares(&rings.when(service, IN_FORCE, |ring| are_near(&shares(ring), wanted))?);
        self.say(&format!("The ring that the packet program reads: {}.", told(&shares)));
        report.expect(are_near(&shares, wanted), || {
            format!(
                "the ring's shares are {}, not within {RING_TOLERANCE} points of {wanted:?}",
                told(&shares)
            )
        });
        report.ring_share = rounded(shares);
        Ok(())
    }
}

/// The shares of the clusters among the answers, in percent: each within `tolerance` points of what is wanted.
pub(super) fn expect_traffic(report: &mut StepReport, tally: &Tally, wanted: &[(&str, f64)], tolerance: f64) {
    let mut shares = BTreeMap::new();
    for (cluster, percent) in wanted {
        let share = tally.cluster_share(cluster) * 100.0;
        report.expect((share - percent).abs() <= tolerance, || {
            format!("{cluster} answered {share:.2}%, not {percent}% within {tolerance} points")
        });
        shares.insert((*cluster).to_owned(), share);
    }
    report.traffic_share = rounded(shares);
}

fn rounded(shares: BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    shares.into_iter().map(|(name, percent)| (name, hundredths(percent))).collect()
}

fn yaml(service: &str, spec: &str) -> String {
    let fields: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    world::document(service, &fields)
}

/// What of a policy's status is not as wanted.
fn differences(policy: &Value, wanted: &Wanted<'_>) -> Vec<String> {
    let status = &policy["status"];
    let mut found = Vec::new();
    let mut expect = |what: &str, is: Value, should: Value| {
        if is != should {
            found.push(format!("{what} is {is} instead of {should}"));
        }
    };
    expect(
        "observedGeneration",
        status["observedGeneration"].clone(),
        policy["metadata"]["generation"].clone(),
    );
    expect("mode", status["mode"].clone(), json!(wanted.mode));
    expect("healthy", status["healthy"].clone(), json!(wanted.healthy));
    expect("ejected", status["ejected"].clone(), json!(wanted.ejected));
    for (kind, should) in CONDITIONS {
        let is = condition(policy, kind);
        expect(kind, json!(is.split('/').next()), json!(should));
    }
    let gateways: Vec<&Value> = status["gateways"].as_array().into_iter().flatten().collect();
    expect(
        "the list of gateways",
        gateways.iter().map(|entry| entry["name"].clone()).collect(),
        json!([NODE]),
    );
    for (place, percent) in wanted.weights {
        let weight = gateways.first().map_or(Value::Null, |entry| weight(entry, place));
        expect(&format!("the weight of {place}"), weight, json!(percent));
    }
    found
}

/// The percentage of a region, or region/zone, in a gateway's entry.
fn weight(entry: &Value, place: &str) -> Value {
    let mut regions = entry["regions"].as_array().into_iter().flatten();
    let found = regions.find(|area| name(area) == place);
    found.map_or(Value::Null, |area| area["effectiveWeight"].clone())
}

fn name(area: &Value) -> String {
    let text = |field: &str| area[field].as_str().unwrap_or_default().to_owned();
    let (region, zone) = (text("region"), text("zone"));
    if zone.is_empty() { region } else { format!("{region}/{zone}") }
}

/// Records a status.
fn summarize(report: &mut StepReport, policy: &Value) {
    let status = &policy["status"];
    let areas = status["gateways"][0]["regions"].as_array().into_iter().flatten();
    let weights: BTreeMap<String, Value> =
        areas.map(|area| (name(area), area["effectiveWeight"].clone())).collect();
    let conditions =
        CONDITIONS.map(|(kind, _)| format!("{kind}={}", condition(policy, kind).replace('/', " ")));
    report.detail("mode", status["mode"].clone());
    report.detail("healthy", status["healthy"].clone());
    report.detail("weights", json!(weights));
    report.detail("conditions", conditions.join(", "));
}

fn are_near(shares: &BTreeMap<String, f64>, wanted: &[(&str, f64)]) -> bool {
    let of = |cluster: &str| shares.get(cluster).copied().unwrap_or(0.0);
    wanted.iter().all(|(cluster, percent)| (of(cluster) - percent).abs() <= RING_TOLERANCE)
}

fn told(shares: &BTreeMap<String, f64>) -> String {
    let parts: Vec<String> = shares.iter().map(|(name, percent)| format!("{name} {percent:.3}%")).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted<'_> = Wanted {
        mode: "Distribute",
        weights: &[("cn-hangzhou", 90), ("cn-shanghai/cn-shanghai-a", 10)],
        healthy: "6/6",
        ejected: 0,
    };

    fn policy() -> Value {
        let is = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "Any"});
        let conditions = [
            is("Accepted", "True"),
            is("Enforced", "True"),
            is("Programmed", "True"),
            is("Degraded", "False"),
        ];
        json!({"metadata": {"generation": 2}, "status": {
            "observedGeneration": 2, "mode": "Distribute", "healthy": "6/6", "ejected": 0, "conditions": conditions,
            "gateways": [{"name": NODE, "regions": [
                {"region": "cn-hangzhou", "effectiveWeight": 90},
                {"region": "cn-shanghai", "zone": "cn-shanghai-a", "effectiveWeight": 10},
            ]}]
        }})
    }

    #[test]
    fn a_status_is_judged_by_all_that_it_says() {
        assert_eq!(differences(&policy(), &WANTED), [] as [&str; 0]);
        for (pointer, value) in [
            ("/status/observedGeneration", json!(1)),
            ("/status/conditions/3/status", json!("True")),
            ("/status/conditions/2/status", json!("Unknown")),
            ("/status/gateways/0/name", json!("gateway-2")),
            ("/status/gateways/0/regions/1/effectiveWeight", json!(11)),
            ("/status/gateways/0/regions/1/zone", json!("cn-shanghai-b")),
            ("/status/healthy", json!("5/6")),
        ] {
            let mut other = policy();
            *other.pointer_mut(pointer).unwrap() = value;
            assert_eq!(differences(&other, &WANTED).len(), 1, "{pointer}");
        }
        assert!(differences(&Value::Null, &WANTED).len() > 5);
    }

    #[test]
    fn shares_are_near_within_a_tenth_of_a_point() {
        let shares = |percent: f64| [("a".to_owned(), percent), ("b".to_owned(), 100.0 - percent)].into();
        assert!(are_near(&shares(90.09), &[("a", 90.0), ("b", 10.0)]));
        assert!(!are_near(&shares(90.11), &[("a", 90.0), ("b", 10.0)]));
        assert!(!are_near(&BTreeMap::new(), &[("a", 90.0)]));
    }

    #[test]
    fn a_specification_is_indented_below_the_policy() {
        let yaml = yaml("web", "locality:\n  failbackDelay: 1s");
        assert!(yaml.ends_with("name: web}]\n  locality:\n    failbackDelay: 1s\n"), "{yaml}");
    }
}
