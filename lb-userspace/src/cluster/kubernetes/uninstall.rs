//! `kanmon uninstall`: removes what the gateways of a cluster set wrote into their members and their own cluster.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::PartialObjectMetaExt;
use kube::runtime::watcher::Event;
use kube::{Client, ResourceExt};

use super::access::Access;
use super::cleanup;
use super::fault::Fault;
use super::follow::{SILENCE, Told};
use super::kubeconfig::Policy;
use super::lease;
use super::mcs::{resource, served_version};
use super::objects::{MemberEvent, Objects};
use super::publish::{
    Action, GATEWAY_MANAGER, Present, SLICE_MANAGER, Write, field_manager, present, service_export,
    service_import,
};
use super::registry::{Facts, MADE_LABEL, Registry, Rules};
use super::writer::{Outcome, describe, execute};
use crate::config::{GatewayAccess, MemberSelector};
use crate::desired::{AddressAllocation, CLUSTER_SET_LABEL, MemberCluster, cluster_place};

/// The gateway cluster, for messages, as `cluster_place` has it.
const GATEWAY_PLACE: &str = "the gateway cluster";
/// How often it is looked whether something is left.
const ROUNDS: usize = 3;

/// What is removed, and how members are reached.
#[derive(Clone, Debug)]
pub struct Uninstall {
    /// Whose things.
    pub cluster_set_id: String,
    /// Namespaces of the Secrets that register members.
    pub secret_namespaces: Vec<String>,
    /// Whether members may be reached without checking their certificates.
    pub allow_insecure_members: bool,
}

/// Removes all that the gateways of this cluster wrote, here and in the members. `gateway` is a client of the
/// gateway cluster; `say` is told what is done, line by line.
///
/// # Errors
///
/// A gateway still runs, or something could not be removed: the rest is removed all the same.
pub async fn uninstall(gateway: &Client, what: &Uninstall, say: &mut dyn FnMut(&str)) -> Result<()> {
    let id = what.cluster_set_id.as_str();
    refuse_while_gateways_run(gateway, id).await?;
    let members = members(gateway).await?;
    let mut failed = Vec::new();
    for (name, access) in reach(gateway, what, members.clone()).await? {
        let Some(access) = access else {
            failed.push(format!("cluster {name}: there is no Secret with a usable kubeconfig for it"));
            continue;
        };
        let cleaned = match access.client(SILENCE).await {
            Ok(client) => clean(&client, &cluster_place(&name), id, say).await,
            Err(fault) => Err(anyhow::anyhow!(fault.message)),
        };
        if let Err(error) = cleaned {
            failed.push(format!("cluster {name}: {error:#}"));
        }
    }
    // Another cluster's gateway may publish here: what is this one's own goes all the same.
    if let Err(error) = clean(gateway, GATEWAY_PLACE, id, say).await {
        failed.push(format!("{GATEWAY_PLACE}: {error:#}"));
    }
    remove_own(gateway, id, members, &mut failed, say).await;
    if failed.is_empty() {
        return Ok(());
    }
    bail!(
        "not everything could be removed; what is left has the label {CLUSTER_SET_LABEL}={id}:\n  {}",
        failed.join("\n  ")
    )
}

/// A gateway that runs would write it all again.
async fn refuse_while_gateways_run(gateway: &Client, id: &str) -> Result<()> {
    for lease in leases(gateway, id).await? {
        if let Some(holder) = holder(&lease) {
            bail!(
                "a gateway still runs: {holder} holds the Lease {}/{}; stop the gateways first, then do it again (a \
                 gateway that was killed is forgotten after 40 s)",
                lease::NAMESPACE,
                lease.name_any()
            );
        }
    }
    Ok(())
}

/// The Leases of this cluster's gateways, of whatever selector.
async fn leases(gateway: &Client, id: &str) -> Result<Vec<Lease>> {
    let api: Api<Lease> = Api::namespaced(gateway.clone(), lease::NAMESPACE);
    let all = api.list(&ListParams::default()).await.context("cannot read the Leases of the gateways")?;
    Ok(all.items.into_iter().filter(|found| lease::is_of_gateways(&found.name_any(), id)).collect())
}

/// Who holds a Lease now.
fn holder(lease: &Lease) -> Option<&str> {
    let spec = lease.spec.as_ref()?;
    let seconds = SignedDuration::from_secs(i64::from(spec.lease_duration_seconds.unwrap_or(15)));
    let renewed = spec.renew_time.as_ref()?.0;
    let is_fresh = renewed.checked_add(seconds).is_ok_and(|end| end > Timestamp::now());
    spec.holder_identity.as_deref().filter(|holder| !holder.is_empty() && is_fresh)
}

async fn members(gateway: &Client) -> Result<Vec<MemberCluster>> {
    let api: Api<MemberCluster> = Api::all(gateway.clone());
    match api.list(&ListParams::default()).await {
        Ok(list) => Ok(list.items),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(error) => Err(error).context("cannot read the MemberClusters"),
    }
}

/// How each member is reached, but for the gateway cluster itself.
async fn reach(
    gateway: &Client,
    what: &Uninstall,
    members: Vec<MemberCluster>,
) -> Result<BTreeMap<String, Option<Access>>> {
    let mut secrets = Vec::new();
    for namespace in &what.secret_namespaces {
        let api: Api<Secret> = Api::namespaced(gateway.clone(), namespace);
        let read = api.list(&ListParams::default()).await;
        secrets.extend(read.with_context(|| format!("cannot read the Secrets in {namespace}"))?.items);
    }
    let mut registry = Registry::new(Rules {
        cluster_set_id: what.cluster_set_id.clone(),
        gateway: Access::Gateway(GatewayAccess::InCluster),
        selector: MemberSelector::default(),
        namespaces: what.secret_namespaces.clone(),
        grace: std::time::Duration::ZERO,
        policy: Policy { allow_insecure: what.allow_insecure_members },
    });
    let outcome = registry.decide(&Facts {
        members: &members,
        secrets: &secrets,
        complete: &what.secret_namespaces.iter().cloned().collect(),
        identities: &BTreeMap::new(),
        now: Instant::now(),
    });
    let all = outcome.members.into_iter().chain(outcome.ending);
    let remote = all.filter(|(_, standing)| {
        standing.object.spec.source.as_ref().is_none_or(|source| source.local.is_none())
    });
    Ok(remote.map(|(name, standing)| (name, standing.access)).collect())
}

/// Removes what is published in a cluster, and the Lease of whoever published.
async fn clean(client: &Client, place: &str, id: &str, say: &mut dyn FnMut(&str)) -> Result<()> {
    let name = lease::publishing_name(id);
    let api: Api<Lease> = Api::namespaced(client.clone(), lease::NAMESPACE);
    if let Some(present) = api.get_opt(&name).await.context("cannot read its Lease")?
        && let Some(holder) = holder(&present)
    {
        bail!("{holder} publishes there in the name of this cluster set: stop it first, or leave it");
    }
    for _ in 0..ROUNDS {
        let present = read(client, id).await.map_err(|fault| anyhow::anyhow!(fault.message))?;
        let writes = cleanup::writes(&present, id);
        if writes.is_empty() {
            break;
        }
        for write in &writes {
            remove(client, write, &field_manager(id), place, say).await?;
        }
    }
    // Nobody holds it now; that of a gateway that was killed names it still.
    let holder = api.get_opt(&name).await?.and_then(|lease| lease.spec?.holder_identity);
    if lease::delete(client, &name, holder.as_deref()).await.context("cannot remove its Lease")? {
        say(&format!("{place}: nothing is left"));
    }
    Ok(())
}

async fn remove(
    client: &Client,
    write: &Write,
    manager: &str,
    place: &str,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    match execute(client, write, manager).await {
        Ok(Outcome::Done) => say(&format!("{place}: {}", done(write))),
        Ok(Outcome::Overtaken | Outcome::Owned(_) | Outcome::Ending) => {}
        Err(fault) => bail!("cannot {}: {}", describe(write), fault.message),
    }
    Ok(())
}

fn done(write: &Write) -> String {
    let place = if write.namespace.is_empty() { String::new() } else { format!("{}/", write.namespace) };
    let what =
        if matches!(write.action, Action::Delete { .. }) { "removed" } else { "took our fields back from" };
    format!("{what} {} {place}{}", write.kind.kind, write.name)
}

/// What the cluster holds of the things that are written there.
async fn read(client: &Client, id: &str) -> std::result::Result<Present, Fault> {
    let of = |error: kube::Error| Fault::of(&error);
    let all = ListParams::default();
    let ours =
        ListParams::default().labels(&format!("endpointslice.kubernetes.io/managed-by={SLICE_MANAGER}"));
    let mut objects = Objects::new(id);
    let services: Api<Service> = Api::all(client.clone());
    take(&mut objects, MemberEvent::Service, services.list(&all).await.map_err(of)?.items);
    let slices: Api<EndpointSlice> = Api::all(client.clone());
    take(&mut objects, MemberEvent::Slice, slices.list(&ours).await.map_err(of)?.items);
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespaces = namespaces.list(&all).await.map_err(of)?.items.into_iter();
    let bare = namespaces.map(|namespace| namespace.metadata.into_response_partial()).collect();
    take(&mut objects, MemberEvent::Namespace, bare);
    let version = served_version(client).await.map_err(of)?;
    objects.apply(MemberEvent::Mcs(version));
    if let Some(version) = version {
        let exports: Api<DynamicObject> = Api::all_with(client.clone(), &resource(service_export(version)));
        take(&mut objects, MemberEvent::Export, exports.list(&all).await.map_err(of)?.items);
        let imports: Api<DynamicObject> = Api::all_with(client.clone(), &resource(service_import(version)));
        take(&mut objects, MemberEvent::Import, imports.list(&all).await.map_err(of)?.items);
    }
    Ok(objects.present())
}

/// A whole list.
fn take<K>(objects: &mut Objects, wrap: impl Fn(Told<K>) -> MemberEvent, items: Vec<K>) {
    objects.apply(wrap(Ok(Event::Init)));
    for item in items {
        objects.apply(wrap(Ok(Event::InitApply(item))));
    }
    objects.apply(wrap(Ok(Event::InitDone)));
}

/// Removes what belongs to the gateways themselves: allocations, MemberClusters that they made, Leases. What cannot be
/// removed is noted and holds nothing else up.
async fn remove_own(
    gateway: &Client,
    id: &str,
    members: Vec<MemberCluster>,
    failed: &mut Vec<String>,
    say: &mut dyn FnMut(&str),
) {
    let mut note = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            failed.push(format!("{GATEWAY_PLACE}: {what}: {error:#}"));
        }
    };
    note("AddressAllocations", remove_allocations(gateway, id, say).await);
    for member in members {
        let name = member.name_any();
        note(&format!("MemberCluster {name}"), let_go(gateway, id, member, say).await);
    }
    note("Leases", remove_leases(gateway, id).await);
}

async fn remove_allocations(gateway: &Client, id: &str, say: &mut dyn FnMut(&str)) -> Result<()> {
    let allocations: Api<AddressAllocation> = Api::all(gateway.clone());
    match allocations.list(&ListParams::default().labels(&format!("{CLUSTER_SET_LABEL}={id}"))).await {
        Ok(list) => {
            for allocation in list.items {
                let name = allocation.name_any();
                allocations.delete(&name, &Default::default()).await.map(drop).or_else(gone)?;
                say(&format!("{GATEWAY_PLACE}: removed AddressAllocation {name}"));
            }
            Ok(())
        }
        Err(error) => gone(error),
    }
}

/// Takes the finalizer off, and removes what was made from a Secret.
async fn let_go(
    gateway: &Client,
    id: &str,
    mut member: MemberCluster,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    let api: Api<MemberCluster> = Api::all(gateway.clone());
    let name = member.name_any();
    let mut rounds = 0..ROUNDS;
    while cleanup::has_finalizer(&member.metadata) {
        let write = cleanup::finalizer(&member.metadata, false);
        let outcome = execute(gateway, &write, GATEWAY_MANAGER).await;
        match outcome.map_err(|fault| anyhow::anyhow!(fault.message))? {
            // Somebody changed it since it was read.
            Outcome::Overtaken if rounds.next().is_some() => match api.get_opt(&name).await? {
                Some(present) => member = present,
                None => return Ok(()),
            },
            Outcome::Overtaken => bail!("it is being changed all the time"),
            _ => {
                say(&format!("{GATEWAY_PLACE}: MemberCluster {name} waits for nothing any more"));
                break;
            }
        }
    }
    if member.labels().contains_key(MADE_LABEL) && present::is_of(&member.metadata, id) {
        api.delete(&name, &Default::default()).await.map(drop).or_else(gone)?;
        say(&format!("{GATEWAY_PLACE}: removed MemberCluster {name}, which was made from its Secret"));
    }
    Ok(())
}

async fn remove_leases(gateway: &Client, id: &str) -> Result<()> {
    for lease in leases(gateway, id).await? {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
        lease::delete(gateway, &lease.name_any(), holder.as_deref()).await?;
    }
    Ok(())
}

/// What is not there need not be removed.
fn gone(error: kube::Error) -> Result<()> {
    match error {
        kube::Error::Api(status) if status.code == 404 => Ok(()),
        error => Err(error.into()),
    }
}
