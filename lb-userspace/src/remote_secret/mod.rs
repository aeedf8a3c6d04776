//! `kanmon remote-secret`: makes an account in a member cluster and prints the Secret that registers the
//! cluster with a gateway (or with istiod).

mod account;
#[cfg(test)]
mod account_tests;
mod objects;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::cluster::kubernetes::kubeconfig::is_https;
use crate::cluster::kubernetes::remote_secret::is_dns_label;
use objects::Credentials;
pub use objects::{Account, Form};

/// How long the control plane may take to fill a token in.
const TOKEN_PATIENCE: Duration = Duration::from_secs(30);

/// Which cluster to talk to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The kubeconfig; unset: `KUBECONFIG`, else `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// The context; unset: the current one.
    pub context: Option<String>,
}

/// Makes the account in the member cluster, as far as it is not there, and gives the Secret for the cluster
/// that is to know it, as YAML, named for the member cluster `name`. `say` is told what was done, line by line.
///
/// # Errors
///
/// The name or the server cannot be used, or the cluster refuses something.
pub async fn create(
    target: &Target,
    account: &Account,
    name: &str,
    server: Option<&str>,
    say: &mut dyn FnMut(&str),
) -> Result<String> {
    if !is_dns_label(name) {
        bail!(
            "the name {name:?} is not a DNS label; use at most 63 of a-z, 0-9 and -, with a letter or digit \
             first and last"
        );
    }
    let config = config(target).await?;
    let server = server_url(server, &config)?;
    let tls_server_name = if server.given { None } else { config.tls_server_name.clone() };
    if is_loopback(&server.url) {
        say(&format!(
            "warning: the server {} is a loopback address, which no other cluster reaches; say --server URL",
            server.url
        ));
    }
    let client = client(config)?;
    account::create(&client, account, say).await?;
    let token = account::token(&client, account, TOKEN_PATIENCE).await?;
    let credentials = Credentials { server: server.url, tls_server_name, ..token };
    let secret = objects::remote_secret(account, name, &credentials)?;
    say(&format!(
        "the Secret {}/{} follows: apply it to the gateway's cluster with `kubectl apply -f -`",
        account.namespace,
        account.form.secret_name(name)
    ));
    objects::to_yaml(&secret)
}

/// Removes from the member cluster what [`create`] made there. The token stops working at once.
///
/// # Errors
///
/// The cluster refuses something.
pub async fn delete(target: &Target, account: &Account, say: &mut dyn FnMut(&str)) -> Result<()> {
    let client = client(config(target).await?)?;
    account::delete(&client, account, say).await
}

/// How the cluster is reached.
pub(crate) async fn config(target: &Target) -> Result<Config> {
    let options = KubeConfigOptions { context: target.context.clone(), ..KubeConfigOptions::default() };
    let of_context = match &target.context {
        Some(context) => format!("cannot use the context {context:?} of the kubeconfig"),
        None => "cannot use the current context of the kubeconfig; name one with --context".to_owned(),
    };
    match &target.kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path)
                .with_context(|| format!("cannot read the kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(kubeconfig, &options).await.context(of_context)
        }
        None => Config::from_kubeconfig(&options).await.context(of_context),
    }
}

/// A client for the cluster.
pub(crate) fn client(config: Config) -> Result<Client> {
    let url = config.cluster_url.to_string();
    Client::try_from(config).with_context(|| format!("cannot make a client for {url}"))
}

struct Server {
    url: String,
    /// A person named it.
    given: bool,
}

/// The URL that others reach the cluster by.
fn server_url(given: Option<&str>, config: &Config) -> Result<Server> {
    let url = given.map_or_else(|| config.cluster_url.to_string(), str::to_owned);
    let url = url.trim_end_matches('/').to_owned();
    if !is_https(&url) {
        bail!("the server {url} is not of the form https://host:port; say --server https://…");
    }
    Ok(Server { url, given: given.is_some() })
}

fn is_loopback(url: &str) -> bool {
    let host = url.parse::<hyper::Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
    host.is_some_and(|host| {
        let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    })
}
