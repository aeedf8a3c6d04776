//! Makes and removes the account in the member cluster.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::objects::{self, Account, Credentials, MANAGED_BY};

/// Who owns the fields that we write.
const MANAGER: &str = "kanmon-remote-secret";

/// Makes everything that is not there, and corrects what we made before. What somebody else made under the
/// same name is used as it is.
pub(super) async fn create(client: &Client, account: &Account, say: &mut dyn FnMut(&str)) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    ensure(&namespaces, account.namespace_object(), say).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &account.namespace);
    ensure(&accounts, account.service_account_object(), say).await?;
    let roles: Api<ClusterRole> = Api::all(client.clone());
    ensure(&roles, account.role(), say).await?;
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    ensure(&bindings, account.binding(), say).await?;
    ensure(&secrets(client, account), account.token_object(), say).await
}

/// Waits for the token.
pub(super) async fn token(client: &Client, account: &Account, patience: Duration) -> Result<Credentials> {
    let name = account.token_name();
    let filled = |secret: Option<&Secret>| secret.and_then(objects::credentials).is_some();
    let wait = await_condition(secrets(client, account), &name, filled);
    let secret = match tokio::time::timeout(patience, wait).await {
        Ok(secret) => {
            secret.with_context(|| format!("cannot watch the Secret {}/{name}", account.namespace))?
        }
        Err(_) => bail!(
            "the cluster put no token into the Secret {}/{name} within {} s; is its \
             kube-controller-manager running?",
            account.namespace,
            patience.as_secs()
        ),
    };
    secret
        .as_ref()
        .and_then(objects::credentials)
        .with_context(|| format!("the Secret {}/{name} was removed; try again", account.namespace))
}

/// Removes what [`create`] made, credentials first.
pub(super) async fn delete(client: &Client, account: &Account, say: &mut dyn FnMut(&str)) -> Result<()> {
    remove(&secrets(client, account), &account.token_name(), say).await?;
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    remove(&bindings, &account.role_name(), say).await?;
    let roles: Api<ClusterRole> = Api::all(client.clone());
    remove(&roles, &account.role_name(), say).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &account.namespace);
    remove(&accounts, &account.service_account, say).await?;
    say(&format!("Namespace {} stays: other things may be in it", account.namespace));
    Ok(())
}

fn secrets(client: &Client, account: &Account) -> Api<Secret> {
    Api::namespaced(client.clone(), &account.namespace)
}

async fn ensure<K>(api: &Api<K>, object: K, say: &mut dyn FnMut(&str)) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let name = object.name_any();
    let title = format!("{} {name}", K::kind(&()));
    let found = api.get_metadata_opt(&name).await.with_context(|| format!("cannot look for {title}"))?;
    if found.as_ref().is_some_and(|found| !is_ours(found)) {
        say(&format!("{title} is there already and not made by kanmon; it is used as it is"));
        return Ok(());
    }
    let params = PatchParams::apply(MANAGER).force();
    api.patch(&name, &params, &Patch::Apply(&object))
        .await
        .with_context(|| format!("cannot make {title}"))?;
    say(&format!("{title} {}", if found.is_some() { "is there already" } else { "made" }));
    Ok(())
}

async fn remove<K>(api: &Api<K>, name: &str, say: &mut dyn FnMut(&str)) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let title = format!("{} {name}", K::kind(&()));
    let found = api.get_metadata_opt(name).await.with_context(|| format!("cannot look for {title}"))?;
    match found {
        None => say(&format!("{title} is not there")),
        Some(found) if !is_ours(&found) => {
            say(&format!("{title} stays: it was not made by kanmon"));
        }
        Some(_) => match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => say(&format!("{title} removed")),
            Err(kube::Error::Api(status)) if status.code == 404 => say(&format!("{title} is not there")),
            Err(error) => return Err(error).with_context(|| format!("cannot remove {title}")),
        },
    }
    Ok(())
}

fn is_ours(object: &impl ResourceExt) -> bool {
    object.labels().get(MANAGED_BY.0).is_some_and(|value| value == MANAGED_BY.1)
}
