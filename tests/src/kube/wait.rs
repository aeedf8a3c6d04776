//! Clients in namespaces, and waiting for what a cluster should come to.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result, anyhow};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::time::{sleep, timeout};

use crate::netns::Netns;

/// How long one answer may take before a poll asks again.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The pause between two polls.
const PAUSE: Duration = Duration::from_millis(50);

/// Runs `work` to its end in the namespace `ns`, with a client for what `kubeconfig` names. The runtime is that
/// call's own: tasks that `work` spawns end with it.
///
/// # Errors
/// When the kubeconfig is no good, and what `work` returns.
///
/// # Panics
/// Without root.
pub fn in_namespace<T: Send>(
    ns: &Netns,
    kubeconfig: &Path,
    work: impl AsyncFnOnce(Client) -> Result<T> + Send,
) -> Result<T> {
    ns.block_on(|| async move { work(client(kubeconfig).await?).await })
}

/// Asks until there is an answer, and returns it. What an API server that is away or refuses says counts as
/// "not yet".
///
/// # Errors
/// When there is none within `patience`; the error says `what` was waited for and what the last try said.
pub async fn poll<T>(
    what: &str,
    patience: Duration,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        let last = match timeout(ATTEMPT, ask()).await {
            Ok(Ok(Some(found))) => return Ok(found),
            Ok(Ok(None)) => Error::msg("the cluster is not there yet"),
            Ok(Err(error)) => error,
            Err(_) => anyhow!("no answer within {ATTEMPT:?}"),
        };
        if Instant::now() >= deadline {
            return Err(last).with_context(|| format!("not within {patience:?}: {what}"));
        }
        sleep(PAUSE).await;
    }
}

pub(super) async fn client(kubeconfig: &Path) -> Result<Client> {
    let context = || format!("cannot use {}", kubeconfig.display());
    let file = Kubeconfig::read_from(kubeconfig).with_context(context)?;
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(file, &options).await.with_context(context)?;
    // Whoever asks is to hear what the API server says, "too many requests" as well; `poll` asks again.
    config.default_retry = false;
    Client::try_from(config).with_context(context)
}
