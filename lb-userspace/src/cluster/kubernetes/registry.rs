//! Which member clusters there are: what MemberClusters and Secrets say, put together. Pure: time comes in.
//!
//! A Secret alone is enough: until somebody writes a MemberCluster that refers to it, the registry makes one up
//! (and asks for it to be made), so that a gateway serves before, and without, being allowed to write.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::core::ObjectMeta;

use super::access::Access;
use super::cleanup::has_finalizer;
use super::kubeconfig::Policy;
use super::remote_secret::{self, Entry, ISTIO_LABEL, MEMBER_LABEL};
use crate::config::MemberSelector;
use crate::desired::{
    CLUSTER_SET_LABEL, Discovery, KubeconfigSecretRef, MemberCluster, MemberClusterSpec, MemberSource,
    MemberState,
};

/// On MemberClusters that were made from a Secret, and go with it. Whoever removes the label owns the object.
pub(super) const MADE_LABEL: &str = "kanmon.dev/made-from-secret";

/// Labels by which deployers know what is theirs: such a label, or all of a domain.
const DEPLOYERS: [&str; 7] = [
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "argocd.argoproj.io/",
    "kustomize.toolkit.fluxcd.io/",
    "helm.toolkit.fluxcd.io/",
    "applyset.kubernetes.io/",
    "objectset.rio.cattle.io/",
];

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) cluster_set_id: String,
    pub(super) gateway: Access,
    pub(super) selector: MemberSelector,
    pub(super) namespaces: Vec<String>,
    pub(super) grace: Duration,
    pub(super) policy: Policy,
}

/// What the gateway cluster says now.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) members: &'a [MemberCluster],
    pub(super) secrets: &'a [Secret],
    /// Namespaces whose Secrets have all been read: only there a Secret can be missing.
    pub(super) complete: &'a BTreeSet<String>,
    /// The kube-system UIDs of the members, as far as they are known.
    pub(super) identities: &'a BTreeMap<String, String>,
    pub(super) now: Instant,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The members that this gateway serves or would serve, by name.
    pub(super) members: BTreeMap<String, Standing>,
    /// Those that somebody deleted and that are still there because something in their clusters is to be removed:
    /// they serve no longer.
    pub(super) ending: BTreeMap<String, Standing>,
    /// MemberClusters to make.
    pub(super) create: Vec<MemberCluster>,
    /// MemberClusters that were made and are to go.
    pub(super) delete: Vec<MemberCluster>,
    /// What is wrong with Secrets.
    pub(super) refusals: Vec<Refusal>,
    /// When something changes by itself.
    pub(super) next: Option<Instant>,
}

/// A member cluster.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    /// The object, or what it would be.
    pub(super) object: MemberCluster,
    /// Whether the object exists.
    pub(super) exists: bool,
    /// How to reach it; `None`: not at all.
    pub(super) access: Option<Access>,
    /// What is wrong with the way to reach it: one word and a sentence.
    pub(super) obstacle: Option<(&'static str, String)>,
    /// The member that is the same cluster and counts: the older one, or the one that can be reached.
    pub(super) duplicate_of: Option<String>,
    /// The member, made from the same Secret, whose place it takes.
    pub(super) successor_of: Option<String>,
}

impl Standing {
    /// Why the other registration of the same cluster counts.
    pub(super) const fn advantage_of_the_other(&self) -> &'static str {
        if self.access.is_some() { "which is older" } else { "which can be reached" }
    }

    /// Whether its endpoints are used.
    pub(super) fn is_served(&self) -> bool {
        self.duplicate_of.is_none() && self.object.spec.state != MemberState::Disabled
    }
}

/// A Secret, or one of its keys, that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// Namespace, name and data key.
type Source = (String, String, String);

/// What has to be remembered.
#[derive(Debug)]
pub(super) struct Registry {
    rules: Rules,
    /// Since when Secrets are missing.
    missing: HashMap<Source, Instant>,
    /// The last good access of each Secret, for the time that it is missing or refused.
    last_good: HashMap<Source, Access>,
    /// MemberClusters that exist nowhere else yet.
    made_up: BTreeMap<Source, MemberCluster>,
}

impl Registry {
    pub(super) fn new(rules: Rules) -> Self {
        Self { rules, missing: HashMap::new(), last_good: HashMap::new(), made_up: BTreeMap::new() }
    }

    /// How the gateway cluster is reached.
    pub(super) const fn gateway(&self) -> &Access {
        &self.rules.gateway
    }

    /// In whose name is written.
    pub(super) fn cluster_set_id(&self) -> &str {
        &self.rules.cluster_set_id
    }

    /// Begins with the members that were made up before the agent started and exist nowhere else: they stay
    /// until their Secrets have been read, and are missed like others from then on.
    pub(super) fn recall(&mut self, known: &[MemberCluster]) {
        let made_up = known.iter().filter(|object| is_made(object) && object.metadata.uid.is_none());
        self.made_up.extend(made_up.filter_map(|object| Some((reference(object)?, object.clone()))));
    }

    /// Decides.
    pub(super) fn decide(&mut self, facts: &Facts<'_>) -> Outcome {
        let mut outcome = Outcome::default();
        let entries = self.entries(facts, &mut outcome);
        self.remember(facts, &entries);
        let written = self.let_go(facts, &mut outcome);
        self.make_up(&written, &entries, &mut outcome);
        let mut members: Vec<Standing> = written
            .into_iter()
            .map(|object| (object, true))
            .chain(self.made_up.values().map(|object| (object, false)))
            .map(|(object, exists)| self.standing(object, exists, facts, &entries, &mut outcome))
            .collect();
        retire(&mut members, &mut outcome);
        members.retain(|standing| self.is_ours(&standing.object));
        let by_name = |standing: Standing| (name_of(&standing.object).to_owned(), standing);
        let (ending, mut members): (Vec<Standing>, Vec<Standing>) =
            members.into_iter().partition(|standing| is_ending(&standing.object));
        find_duplicates(&mut members, facts.identities);
        outcome.members = members.into_iter().map(by_name).collect();
        outcome.ending = ending.into_iter().map(by_name).collect();
        outcome
    }

    /// Whether a MemberCluster is this gateway's business. One that waits for its cleanup is everybody's: whoever
    /// promised that may serve it no longer, since its labels are others now.
    fn is_ours(&self, object: &MemberCluster) -> bool {
        let labels = object.metadata.labels.as_ref();
        (is_ending(object) && has_finalizer(&object.metadata))
            || self.rules.selector.matches(labels.unwrap_or(&BTreeMap::new()))
    }

    /// All keys of all Secrets, each with the way in or the reason why there is none.
    fn entries<'a>(
        &mut self,
        facts: &Facts<'a>,
        outcome: &mut Outcome,
    ) -> BTreeMap<Source, Registration<'a>> {
        let mut entries = BTreeMap::new();
        for secret in facts.secrets {
            for entry in remote_secret::entries(secret) {
                let metadata = &secret.metadata;
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                let source = (text(&metadata.namespace), text(&metadata.name), entry.key.clone());
                let access = match entry.check(self.rules.policy) {
                    Ok(access) => {
                        let access = Access::Member {
                            kubeconfig: Box::new(access.kubeconfig),
                            hash: access.content_hash,
                        };
                        self.last_good.insert(source.clone(), access.clone());
                        Ok(access)
                    }
                    Err(refusal) => {
                        let message = format!("key {}: {refusal}", entry.key);
                        outcome.refusals.push(refuse(metadata, refusal.reason(), message.clone()));
                        Err((refusal.reason(), message))
                    }
                };
                entries.insert(source, Registration { metadata, entry, access });
            }
        }
        entries
    }

    /// What was made from a Secret that is gone for good is to go, serves no longer, whoever deletes it, and
    /// leaves its name to others. The MemberClusters that stay.
    fn let_go<'a>(&mut self, facts: &Facts<'a>, outcome: &mut Outcome) -> Vec<&'a MemberCluster> {
        let ended: BTreeSet<&Source> = self
            .missing
            .iter()
            .filter(|(_, since)| **since + self.rules.grace <= facts.now)
            .map(|(source, _)| source)
            .collect();
        let goes = |object: &MemberCluster| {
            is_made(object)
                && !is_ending(object)
                && reference(object).is_some_and(|source| ended.contains(&source))
        };
        let (gone, stay): (Vec<_>, Vec<_>) = facts.members.iter().partition(|object| goes(object));
        outcome.delete.extend(gone.into_iter().cloned());
        self.made_up.retain(|_, object| !goes(object));
        stay
    }

    /// Notes since when Secrets are missing, and forgets those that nobody refers to.
    fn remember(&mut self, facts: &Facts<'_>, entries: &BTreeMap<Source, Registration<'_>>) {
        let referred: BTreeSet<Source> =
            facts.members.iter().chain(self.made_up.values()).filter_map(reference).collect();
        for source in &referred {
            if entries.contains_key(source) {
                self.missing.remove(source);
            } else if facts.complete.contains(&source.0) {
                self.missing.entry(source.clone()).or_insert(facts.now);
            }
        }
        self.missing.retain(|source, _| referred.contains(source));
        self.last_good.retain(|source, _| referred.contains(source) || entries.contains_key(source));
    }

    /// What is so with a MemberCluster, written or made up.
    fn standing(
        &self,
        object: &MemberCluster,
        exists: bool,
        facts: &Facts<'_>,
        entries: &BTreeMap<Source, Registration<'_>>,
        outcome: &mut Outcome,
    ) -> Standing {
        let mut standing = Standing {
            object: object.clone(),
            exists,
            access: None,
            obstacle: None,
            duplicate_of: None,
            successor_of: None,
        };
        if object.spec.source.as_ref().is_some_and(|source| source.local.is_some()) {
            standing.access = Some(self.rules.gateway.clone());
            return standing;
        }
        let Some(source) = reference(object) else {
            let message = "it names no source; set source.kubeconfigSecretRef, or source.local for the cluster \
                           that the gateway runs in";
            standing.obstacle = Some(("NoSource", message.to_owned()));
            return standing;
        };
        standing.access = self.last_good.get(&source).cloned();
        match entries.get(&source) {
            Some(Registration { access: Ok(access), .. }) => standing.access = Some(access.clone()),
            Some(Registration { access: Err(obstacle), .. }) => standing.obstacle = Some(obstacle.clone()),
            None => {
                standing.obstacle = Some(("SecretNotFound", self.not_found(&source)));
                if let Some(since) = self.missing.get(&source) {
                    let end = *since + self.rules.grace;
                    if is_ending(object) {
                        // It serves no longer, and what it came in by is needed once more, to clean up.
                    } else if end > facts.now {
                        outcome.next = outcome.next.into_iter().chain([end]).min();
                    } else {
                        // The way in was taken away for good.
                        standing.access = None;
                    }
                }
            }
        }
        standing
    }

    fn not_found(&self, (namespace, name, key): &Source) -> String {
        if self.rules.namespaces.contains(namespace) {
            format!(
                "there is no Secret {namespace}/{name} with the label {MEMBER_LABEL}: \"true\" (or \
                 {ISTIO_LABEL}) and the key {key}; `kanmon remote-secret create` prints one"
            )
        } else {
            format!(
                "Secret {namespace}/{name} is not read: its namespace is not among the gateway's \
                 secretNamespaces ({}); put it into one of them, or add {namespace}",
                self.rules.namespaces.join(", ")
            )
        }
    }

    /// Makes up MemberClusters for Secrets that nobody refers to. Those stay while their Secrets are missing, as
    /// the others do.
    fn make_up(
        &mut self,
        members: &[&MemberCluster],
        entries: &BTreeMap<Source, Registration<'_>>,
        outcome: &mut Outcome,
    ) {
        let referred: BTreeSet<Source> = members.iter().filter_map(|object| reference(object)).collect();
        let written: HashMap<&str, &MemberCluster> =
            members.iter().map(|object| (name_of(object), *object)).collect();
        self.made_up
            .retain(|source, object| !referred.contains(source) && !written.contains_key(name_of(object)));
        let mut free: Vec<(&Source, &Registration<'_>)> =
            entries.iter().filter(|(source, _)| !referred.contains(*source)).collect();
        free.sort_by_key(|(source, registration)| (created(registration.metadata), (*source).clone()));
        for (source, registration) in free {
            // What is refused makes no member: the Event on the Secret says why.
            if registration.access.is_err() {
                continue;
            }
            let name = &registration.entry.member;
            let made_up =
                self.made_up.iter().find(|(other, object)| *other != source && name_of(object) == name);
            let taken = written.get(name.as_str()).copied().or(made_up.map(|(_, object)| object));
            if let Some(other) = taken {
                let owner = reference(other).map_or_else(
                    || "another source".to_owned(),
                    |(ns, name, _)| format!("Secret {ns}/{name}"),
                );
                let message = format!(
                    "key {}: there is a MemberCluster {name} already, from {owner}; rename the key, or remove \
                     one of the two",
                    source.2
                );
                outcome.refusals.push(refuse(registration.metadata, "NameTaken", message));
                continue;
            }
            let object = self.made(name, source, registration.metadata);
            let metadata = ObjectMeta { creation_timestamp: None, ..object.metadata.clone() };
            outcome.create.push(MemberCluster { metadata, ..object.clone() });
            self.made_up.insert(source.clone(), object);
        }
    }

    /// The MemberCluster for a key of a Secret. Not owned by the Secret: what is cluster-scoped and owned by
    /// something namespaced is never collected.
    fn made(&self, name: &str, source: &Source, secret: &ObjectMeta) -> MemberCluster {
        let mut labels = secret.labels.clone().unwrap_or_default();
        labels.retain(|key, _| key != ISTIO_LABEL && key != MEMBER_LABEL && !is_of_a_deployer(key));
        labels.insert(MADE_LABEL.to_owned(), "true".to_owned());
        labels.insert(CLUSTER_SET_LABEL.to_owned(), self.rules.cluster_set_id.clone());
        let (namespace, secret_name, key) = source.clone();
        let reference = KubeconfigSecretRef { namespace, name: secret_name, key };
        let mut object = MemberCluster::new(
            name,
            MemberClusterSpec {
                source: Some(MemberSource { kubeconfig_secret_ref: Some(reference), local: None }),
                region: String::new(),
                discovery: Discovery::SameName,
                state: MemberState::Active,
                pod_cidrs: Vec::new(),
                node_cidrs: Vec::new(),
                service_cidrs: Vec::new(),
            },
        );
        object.metadata.labels = Some(labels);
        object.metadata.creation_timestamp.clone_from(&secret.creation_timestamp);
        object
    }
}

/// One key of a Secret.
struct Registration<'a> {
    metadata: &'a ObjectMeta,
    entry: Entry,
    access: Result<Access, (&'static str, String)>,
}

/// A MemberCluster that somebody wrote for a Secret takes the place of the one that was made from it.
fn retire(members: &mut Vec<Standing>, outcome: &mut Outcome) {
    let mut retired = Vec::new();
    let exists = |standing: &&Standing| standing.exists && !is_ending(&standing.object);
    for made in members.iter().filter(exists).filter(|standing| is_made(&standing.object)) {
        let source = reference(&made.object);
        let written = members.iter().position(|other| {
            other.exists && !is_made(&other.object) && source.is_some() && reference(&other.object) == source
        });
        if let Some(position) = written {
            retired.push((name_of(&made.object).to_owned(), position));
        }
    }
    for (name, position) in &retired {
        members[*position].successor_of = Some(name.clone());
    }
    let is_retired = |standing: &Standing| retired.iter().any(|(name, _)| name_of(&standing.object) == name);
    outcome
        .delete
        .extend(members.iter().filter(|standing| is_retired(standing)).map(|made| made.object.clone()));
    members.retain(|standing| !is_retired(standing));
}

/// Of several registrations of one cluster only the oldest counts, of those by which it can be reached.
fn find_duplicates(members: &mut [Standing], identities: &BTreeMap<String, String>) {
    members
        .sort_by_key(|standing| (created(&standing.object.metadata), name_of(&standing.object).to_owned()));
    let mut owners: HashMap<&str, String> = HashMap::new();
    for standing in members.iter_mut() {
        let name = name_of(&standing.object).to_owned();
        if standing.object.spec.state == MemberState::Disabled || standing.access.is_none() {
            continue;
        }
        let Some(uid) = identities.get(&name) else { continue };
        match owners.get(uid.as_str()) {
            Some(owner) => standing.duplicate_of = Some(owner.clone()),
            None => {
                owners.insert(uid, name);
            }
        }
    }
    // One whose way in was taken away has nothing newer to say than the others.
    let is_cut_off = |standing: &&mut Standing| {
        standing.access.is_none() && standing.object.spec.state != MemberState::Disabled
    };
    for standing in members.iter_mut().filter(is_cut_off) {
        let uid = identities.get(name_of(&standing.object));
        standing.duplicate_of = uid.and_then(|uid| owners.get(uid.as_str()).cloned());
    }
}

/// Whether a label says by which tool, and as part of what, an object was deployed. On what was not deployed by it
/// the tool would find an object that it does not know, and delete it.
fn is_of_a_deployer(key: &str) -> bool {
    DEPLOYERS.iter().any(|deployer| match deployer.strip_suffix('/') {
        Some(domain) => key.split_once('/').is_some_and(|(prefix, _)| prefix == domain),
        None => key == *deployer,
    })
}

/// When an object was made; what is not made yet is the newest.
fn created(metadata: &ObjectMeta) -> Timestamp {
    metadata.creation_timestamp.as_ref().map_or(Timestamp::MAX, |time| time.0)
}

/// Whether somebody has deleted it.
pub(super) fn is_ending(object: &MemberCluster) -> bool {
    object.metadata.deletion_timestamp.is_some()
}

/// Whether it was made from a Secret.
fn is_made(object: &MemberCluster) -> bool {
    object.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(MADE_LABEL))
}

/// The Secret and key that it refers to.
fn reference(object: &MemberCluster) -> Option<Source> {
    let secret = object.spec.source.as_ref()?.kubeconfig_secret_ref.as_ref()?;
    Some((secret.namespace.clone(), secret.name.clone(), secret.key.clone()))
}

fn name_of(object: &MemberCluster) -> &str {
    object.metadata.name.as_deref().unwrap_or_default()
}

fn refuse(secret: &ObjectMeta, reason: &'static str, message: String) -> Refusal {
    Refusal {
        namespace: secret.namespace.clone().unwrap_or_default(),
        name: secret.name.clone().unwrap_or_default(),
        uid: secret.uid.clone().unwrap_or_default(),
        reason,
        message,
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
