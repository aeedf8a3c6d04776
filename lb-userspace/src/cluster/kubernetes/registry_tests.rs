//! Each rule of the registry, in virtual time.

use serde_json::json;

use super::*;

const NAMESPACE: &str = "kanmon-system";

/// A gateway cluster of a test.
struct World {
    registry: Registry,
    members: Vec<MemberCluster>,
    secrets: Vec<Secret>,
    complete: BTreeSet<String>,
    identities: BTreeMap<String, String>,
    start: Instant,
}

impl World {
    fn new() -> Self {
        Self::with("")
    }

    /// A gateway that serves the members of this selector.
    fn with(selector: &str) -> Self {
        let rules = Rules {
            cluster_set_id: "set".to_owned(),
            gateway: Access::Plain("http://gateway".to_owned()),
            selector: selector.parse().unwrap(),
            namespaces: vec![NAMESPACE.to_owned()],
            grace: Duration::from_secs(60),
            policy: Policy::default(),
        };
        Self {
            registry: Registry::new(rules),
            members: Vec::new(),
            secrets: Vec::new(),
            complete: BTreeSet::from([NAMESPACE.to_owned()]),
            identities: BTreeMap::new(),
            start: Instant::now(),
        }
    }

    fn decide(&mut self, second: u64) -> Outcome {
        self.registry.decide(&Facts {
            members: &self.members,
            secrets: &self.secrets,
            complete: &self.complete,
            identities: &self.identities,
            now: self.start + Duration::from_secs(second),
        })
    }

    /// What an API server does with what is to be made and deleted.
    fn obey(&mut self, outcome: &Outcome) {
        let gone: Vec<&str> = outcome.delete.iter().map(name_of).collect();
        self.members.retain(|member| !gone.contains(&name_of(member)));
        for object in &outcome.create {
            let mut object = object.clone();
            object.metadata.creation_timestamp =
                Some(serde_json::from_value(json!("2024-06-01T00:00:00Z")).unwrap());
            self.members.push(object);
        }
    }

    fn identify(&mut self, member: &str, uid: &str) {
        self.identities.insert(member.to_owned(), uid.to_owned());
    }
}

fn kubeconfig(token: &str) -> String {
    format!(
        "current-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: \"https://198.51.100.1:6443\"}}}}]\n\
         users: [{{name: u, user: {{{token}}}}}]\n"
    )
}

/// A remote secret named `s-KEY` with one key.
fn secret(key: &str, kubeconfig: &str) -> Secret {
    serde_json::from_value(json!({
        "metadata": {
            "namespace": NAMESPACE, "name": format!("s-{key}"), "uid": format!("uid-{key}"),
            "creationTimestamp": "2024-05-01T00:00:00Z",
            "labels": {"istio/multiCluster": "true", "location": format!("cn-{key}")},
        },
        "stringData": {key: kubeconfig},
    }))
    .unwrap()
}

fn good(key: &str) -> Secret {
    secret(key, &kubeconfig("token: one"))
}

/// A MemberCluster that somebody wrote in a year, for the key of a Secret.
fn written(name: &str, year: u16, key: &str) -> MemberCluster {
    serde_json::from_value(json!({
        "apiVersion": "kanmon.dev/v1alpha1", "kind": "MemberCluster",
        "metadata": {"name": name, "creationTimestamp": format!("{year}-01-01T00:00:00Z")},
        "spec": {"source": {"kubeconfigSecretRef":
            {"namespace": NAMESPACE, "name": format!("s-{key}"), "key": key}}},
    }))
    .unwrap()
}

fn names(objects: &[MemberCluster]) -> Vec<&str> {
    objects.iter().map(name_of).collect()
}

fn served(outcome: &Outcome) -> Vec<&str> {
    let served =
        outcome.members.iter().filter(|(_, standing)| standing.is_served() && standing.access.is_some());
    served.map(|(name, _)| name.as_str()).collect()
}

fn obstacle<'a>(outcome: &'a Outcome, name: &str) -> Option<&'a str> {
    outcome.members[name].obstacle.as_ref().map(|(reason, _)| *reason)
}

#[test]
fn a_secret_alone_is_a_member_at_once_and_a_membercluster_is_made_for_it() {
    let mut world = World::new();
    world.secrets.push(good("a"));
    let outcome = world.decide(0);
    assert_eq!(served(&outcome), ["a"]);
    assert_eq!(names(&outcome.create), ["a"]);
    let made = &outcome.create[0];
    let labels = made.metadata.labels.as_ref().unwrap();
    assert!(labels.contains_key(MADE_LABEL) && made.metadata.owner_references.is_none());
    assert_eq!((labels[CLUSTER_SET_LABEL].as_str(), labels["location"].as_str()), ("set", "cn-a"));
    assert!(!labels.contains_key(ISTIO_LABEL), "it is no remote secret");
    assert_eq!(made.spec.discovery, Discovery::SameName);

    world.obey(&outcome);
    let outcome = world.decide(1);
    assert_eq!(served(&outcome), ["a"]);
    assert_eq!((names(&outcome.create), names(&outcome.delete)), (vec![], vec![]));
}

#[test]
fn each_key_of_a_secret_is_a_member_and_an_illegal_name_becomes_a_legal_one() {
    let mut world = World::new();
    let mut both = good("gke_proj_x");
    both.string_data.as_mut().unwrap().insert("b".to_owned(), kubeconfig("token: two"));
    world.secrets.push(both);
    let outcome = world.decide(0);
    let mut made: Vec<_> =
        outcome.create.iter().map(|object| (name_of(object), reference(object).unwrap().2)).collect();
    made.sort();
    assert_eq!(made[0], ("b", "b".to_owned()));
    assert!(made[1].0.starts_with("gke-proj-x"), "{made:?}");
    assert_eq!(made[1].1, "gke_proj_x");
}

#[test]
fn a_membercluster_that_refers_to_a_secret_adopts_it_whatever_its_name() {
    let mut world = World::new();
    world.secrets.push(good("a"));
    world.members.push(written("hangzhou", 2024, "a"));
    let outcome = world.decide(0);
    assert_eq!(served(&outcome), ["hangzhou"]);
    assert!(outcome.create.is_empty());
}

#[test]
fn a_membercluster_that_somebody_writes_later_takes_the_place_of_the_made_one() {
    let mut world = World::new();
    world.secrets.push(good("a"));
    let outcome = world.decide(0);
    world.obey(&outcome);
    world.members.push(written("hangzhou", 2025, "a"));
    for name in ["a", "hangzhou"] {
        world.identify(name, "uid");
    }
    let outcome = world.decide(10);
    assert_eq!(served(&outcome), ["hangzhou"]);
    assert_eq!(names(&outcome.delete), ["a"]);
    assert_eq!(outcome.members["hangzhou"].successor_of.as_deref(), Some("a"), "it goes on with what a had");
}

#[test]
fn a_secret_that_is_replaced_within_the_grace_period_drains_nothing() {
    let mut world = World::new();
    world.secrets.push(good("a"));
    let outcome = world.decide(0);
    world.obey(&outcome);
    world.decide(1);
    world.secrets.clear();
    let outcome = world.decide(10);
    assert_eq!(served(&outcome), ["a"], "by the last good way in");
    assert_eq!(obstacle(&outcome, "a"), Some("SecretNotFound"));
    assert_eq!(outcome.next, Some(world.start + Duration::from_secs(70)));
    world.secrets.push(good("a"));
    let outcome = world.decide(69);
    assert_eq!((served(&outcome), obstacle(&outcome, "a")), (vec!["a"], None));
    world.secrets.clear();
    let outcome = world.decide(100);
    assert_eq!(outcome.next, Some(world.start + Duration::from_secs(160)), "the time counts anew");
}

#[test]
fn a_member_that_was_made_goes_when_its_secret_is_gone_for_longer() {
    let mut world = World::new();
    world.secrets.push(good("a"));
    let outcome = world.decide(0);
    world.obey(&outcome);
    world.decide(1);
    world.secrets.clear();
    assert!(world.decide(10).delete.is_empty());
    let outcome = world.decide(70);
    assert_eq!(names(&outcome.delete), ["a"]);
    assert!(outcome.members.is_empty(), "also where nobody may delete it");
}

#[test]
fn a_member_that_could_not_be_made_has_the_same_grace_period() {
    let mut world = World::new();
    world.secrets.push(good("a"));
    world.decide(0);
    world.secrets.clear();
    assert_eq!(served(&world.decide(10)), ["a"]);
    assert!(world.decide(70).members.is_empty());
    assert!(world.decide(71).members.is_empty(), "and it does not come back");
}

#[test]
fn a_member_that_somebody_wrote_stays_declared_when_its_secret_is_gone() {
    let mut world = World::new();
    world.secrets.push(good("a"));
    world.members.push(written("hangzhou", 2024, "a"));
    world.decide(0);
    world.secrets.clear();
    world.decide(10);
    let outcome = world.decide(100);
    assert!(outcome.delete.is_empty());
    assert!(outcome.members["hangzhou"].access.is_none(), "the way in was taken away");
    assert_eq!(obstacle(&outcome, "hangzhou"), Some("SecretNotFound"));
}

#[test]
fn nothing_is_missing_before_all_secrets_have_been_read() {
    let mut world = World::new();
    world.members.push(written("hangzhou", 2024, "a"));
    world.members[0].metadata.labels = Some([(MADE_LABEL.to_owned(), "true".to_owned())].into());
    world.complete.clear();
    world.decide(0);
    assert!(world.decide(1000).delete.is_empty());
    world.complete.insert(NAMESPACE.to_owned());
    assert!(world.decide(2000).delete.is_empty(), "the grace period begins now");
    assert_eq!(names(&world.decide(2060).delete), ["hangzhou"]);
}

#[test]
fn a_member_that_only_its_secret_made_is_remembered_over_a_restart_until_secrets_have_been_read() {
    let mut before = World::new();
    before.secrets.push(good("a"));
    let known = vec![before.decide(0).members["a"].object.clone()];

    let mut world = World::new();
    world.registry.recall(&known);
    world.complete.clear();
    let outcome = world.decide(1000);
    assert!(outcome.members["a"].is_served(), "its endpoints stay");
    assert!(outcome.delete.is_empty());
    world.complete.insert(NAMESPACE.to_owned());
    assert!(world.decide(2000).members.contains_key("a"), "the grace period begins now");
    assert!(world.decide(2060).members.is_empty());

    let mut world = World::new();
    world.registry.recall(&known);
    world.secrets.push(good("a"));
    assert_eq!(served(&world.decide(0)), ["a"]);
}

#[test]
fn a_membercluster_that_existed_is_not_made_up_over_a_restart() {
    let mut deleted = written("hangzhou", 2024, "a");
    deleted.metadata.labels = Some([(MADE_LABEL.to_owned(), "true".to_owned())].into());
    deleted.metadata.uid = Some("its-own".to_owned());
    let mut world = World::new();
    world.registry.recall(&[deleted]);
    assert!(world.decide(0).members.is_empty());
}

#[test]
fn another_content_is_another_way_in_and_the_same_content_is_the_same() {
    let mut world = World::new();
    let access = |outcome: Outcome| outcome.members["a"].access.clone().unwrap();
    world.secrets.push(good("a"));
    let first = access(world.decide(0));
    world.secrets = vec![good("a")];
    assert!(access(world.decide(1)) == first);
    world.secrets = vec![secret("a", &kubeconfig("token: two"))];
    assert!(access(world.decide(2)) != first);
}

#[test]
fn a_refused_kubeconfig_is_told_makes_no_member_and_takes_none_away() {
    let mut world = World::new();
    let bad = || secret("a", &kubeconfig("exec: {apiVersion: x, command: sh}"));
    world.secrets.push(bad());
    let outcome = world.decide(0);
    assert!(outcome.members.is_empty() && outcome.create.is_empty());
    let [refusal] = outcome.refusals.as_slice() else { panic!("{:?}", outcome.refusals) };
    assert_eq!(
        (refusal.name.as_str(), refusal.uid.as_str(), refusal.reason),
        ("s-a", "uid-a", "ExecRefused")
    );
    assert!(refusal.message.starts_with("key a: "), "{}", refusal.message);

    world.members.push(written("hangzhou", 2024, "a"));
    assert_eq!(obstacle(&world.decide(1), "hangzhou"), Some("ExecRefused"));
    world.secrets = vec![good("a")];
    world.decide(2);
    world.secrets = vec![bad()];
    let outcome = world.decide(3);
    assert_eq!(served(&outcome), ["hangzhou"], "the last good way in stays");
    assert_eq!(obstacle(&outcome, "hangzhou"), Some("ExecRefused"));
}

#[test]
fn one_cluster_registered_twice_counts_as_its_older_registration() {
    let mut world = World::new();
    world.secrets = vec![good("a"), good("b")];
    world.members = vec![written("newer", 2025, "a"), written("older", 2024, "b")];
    assert_eq!(served(&world.decide(0)), ["newer", "older"], "it is not known yet who they are");
    world.identify("newer", "uid");
    world.identify("older", "uid");
    let outcome = world.decide(1);
    assert_eq!(served(&outcome), ["older"]);
    assert_eq!(outcome.members["newer"].duplicate_of.as_deref(), Some("older"));
    world.members.retain(|member| name_of(member) != "older");
    assert_eq!(served(&world.decide(2)), ["b", "newer"], "b is made up for the Secret that is free now");
    world.identify("b", "uid");
    assert_eq!(served(&world.decide(3)), ["b"], "the Secret is older than the MemberCluster");
}

#[test]
fn a_registration_that_cannot_be_reached_any_more_gives_way_to_a_newer_one_that_can() {
    let mut world = World::new();
    world.secrets = vec![good("a"), good("b")];
    world.members = vec![written("newer", 2025, "a"), written("older", 2024, "b")];
    for name in ["newer", "older"] {
        world.identify(name, "uid");
    }
    assert_eq!(served(&world.decide(0)), ["older"]);
    world.secrets.pop();
    assert_eq!(served(&world.decide(10)), ["older"], "within the grace period");
    let outcome = world.decide(70);
    assert_eq!(served(&outcome), ["newer"]);
    let cut_off = &outcome.members["older"];
    assert!(!cut_off.is_served(), "what it once had is not used beside what the newer has");
    assert_eq!(cut_off.duplicate_of.as_deref(), Some("newer"));
    world.secrets.push(good("b"));
    assert_eq!(served(&world.decide(80)), ["older"]);
}

#[test]
fn a_secret_that_takes_anothers_place_after_its_grace_period_is_the_same_member_without_a_gap() {
    let mut world = World::new();
    world.secrets.push(good("a"));
    let outcome = world.decide(0);
    world.obey(&outcome);
    world.decide(1);
    let mut other = good("a");
    other.metadata.name = Some("other".to_owned());
    world.secrets = vec![other];
    assert_eq!(world.decide(10).refusals[0].reason, "NameTaken");
    let outcome = world.decide(70);
    assert_eq!((names(&outcome.delete), names(&outcome.create)), (vec!["a"], vec!["a"]));
    assert!(outcome.refusals.is_empty(), "{:?}", outcome.refusals);
    let source = |outcome: &Outcome| reference(&outcome.members["a"].object).unwrap().1;
    assert_eq!((served(&outcome), source(&outcome)), (vec!["a"], "other".to_owned()));
    // Until somebody has deleted the one and made the other.
    let outcome = world.decide(71);
    assert_eq!((served(&outcome), source(&outcome)), (vec!["a"], "other".to_owned()));
    world.obey(&outcome);
    let outcome = world.decide(72);
    assert_eq!((served(&outcome), source(&outcome)), (vec!["a"], "other".to_owned()));
    assert_eq!((names(&outcome.delete), names(&outcome.create)), (vec![], vec![]));
}

#[test]
fn what_is_made_has_no_label_by_which_a_deployer_would_take_it_for_its_own_and_delete_it() {
    let mut world = World::new();
    let mut secret = good("a");
    let labels = secret.metadata.labels.as_mut().unwrap();
    for key in [
        "app.kubernetes.io/instance",
        "argocd.argoproj.io/instance",
        "kustomize.toolkit.fluxcd.io/name",
        "helm.toolkit.fluxcd.io/namespace",
        "applyset.kubernetes.io/part-of",
    ] {
        labels.insert(key.to_owned(), "clusters".to_owned());
    }
    labels.insert("app.kubernetes.io/name".to_owned(), "remote".to_owned());
    world.secrets.push(secret);
    let outcome = world.decide(0);
    let labels: Vec<&String> = outcome.create[0].metadata.labels.as_ref().unwrap().keys().collect();
    assert_eq!(labels, ["app.kubernetes.io/name", CLUSTER_SET_LABEL, MADE_LABEL, "location"]);
}

#[test]
fn a_disabled_registration_does_not_stand_in_the_way_of_another() {
    let mut world = World::new();
    world.secrets = vec![good("a"), good("b")];
    world.members = vec![written("newer", 2025, "a"), written("older", 2024, "b")];
    world.members[1].spec.state = MemberState::Disabled;
    for name in ["newer", "older"] {
        world.identify(name, "uid");
    }
    assert_eq!(served(&world.decide(0)), ["newer"]);
}

#[test]
fn two_secrets_that_want_one_name_are_told_apart_by_age() {
    let mut world = World::new();
    let mut other = good("a");
    other.metadata.name = Some("other".to_owned());
    other.metadata.creation_timestamp = Some(serde_json::from_value(json!("2024-05-02T00:00:00Z")).unwrap());
    world.secrets = vec![other, good("a")];
    let outcome = world.decide(0);
    assert_eq!(reference(&outcome.create[0]).unwrap().1, "s-a");
    let refused: Vec<_> =
        outcome.refusals.iter().map(|refusal| (refusal.name.as_str(), refusal.reason)).collect();
    assert_eq!(refused, [("other", "NameTaken")]);
    world.obey(&outcome);
    assert_eq!(world.decide(1).refusals.len(), 1);
}

#[test]
fn only_selected_members_are_served_and_all_secrets_make_members() {
    let mut world = World::with("location=cn-a");
    world.secrets = vec![good("a"), good("b")];
    let outcome = world.decide(0);
    assert_eq!(served(&outcome), ["a"]);
    assert_eq!(names(&outcome.create), ["a", "b"], "other gateways of the set may serve it");
}

#[test]
fn the_gateway_cluster_itself_can_be_a_member_and_a_member_without_source_is_told() {
    let mut world = World::new();
    let object = |name: &str, spec: serde_json::Value| -> MemberCluster {
        let json = json!({"apiVersion": "kanmon.dev/v1alpha1", "kind": "MemberCluster",
            "metadata": {"name": name}, "spec": spec});
        serde_json::from_value(json).unwrap()
    };
    world.members =
        vec![object("here", json!({"source": {"local": {}}})), object("nowhere", json!({"region": "r"}))];
    let outcome = world.decide(0);
    assert_eq!(served(&outcome), ["here"]);
    assert_eq!(obstacle(&outcome, "nowhere"), Some("NoSource"));
}

#[test]
fn a_secret_in_a_namespace_that_is_not_read_is_told_with_what_to_do() {
    let mut world = World::new();
    world.members.push(written("hangzhou", 2024, "a"));
    world.members[0].spec.source.as_mut().unwrap().kubeconfig_secret_ref.as_mut().unwrap().namespace =
        "elsewhere".to_owned();
    world.decide(0);
    let outcome = world.decide(1000);
    let (_, message) = outcome.members["hangzhou"].obstacle.as_ref().unwrap();
    assert!(message.contains("secretNamespaces"), "{message}");
    assert!(outcome.delete.is_empty());
}

#[test]
fn a_member_whose_labels_left_the_selector_is_still_cleaned_when_it_is_deleted() {
    let mut world = World::with("tier=gold");
    world.secrets.push(good("a"));
    world.members.push(written("hangzhou", 2024, "a"));
    let outcome = world.decide(0);
    assert!(outcome.members.is_empty() && outcome.ending.is_empty(), "it is another gateway's");
    world.members[0].metadata.deletion_timestamp =
        Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    assert!(world.decide(1).ending.is_empty(), "nobody promised to clean it");
    world.members[0].metadata.finalizers = Some(vec!["kanmon.dev/cleanup".to_owned()]);
    let outcome = world.decide(2);
    assert!(outcome.members.is_empty());
    assert!(outcome.ending["hangzhou"].access.is_some());
}
