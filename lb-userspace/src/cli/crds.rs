//! `kanmon crds`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, ResourceExt};

use crate::desired::{self, Revision};
use crate::remote_secret::{self, Target};

/// Who writes, for the API server.
const FIELD_MANAGER: &str = "kanmon";
/// How long an API server may take until it serves a resource that it was told of.
const ESTABLISHED: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct Crds {
    /// Those of ServiceExport and ServiceImport (mcs-api) instead of Kanmon's own.
    #[arg(long)]
    mcs: bool,
    /// Apply them to a cluster instead of printing them; those of mcs-api only where the cluster has older ones or none.
    #[arg(long)]
    apply: bool,
    /// Context of the cluster [default: the current one].
    #[arg(long, requires = "apply")]
    context: Option<String>,
    /// Kubeconfig with that context [default: $KUBECONFIG, else ~/.kube/config].
    #[arg(long, value_name = "FILE", requires = "apply")]
    kubeconfig: Option<PathBuf>,
}

/// What is printed goes to standard output, what was done to standard error.
pub(super) fn run(args: Crds) -> Result<()> {
    if !args.apply {
        let yaml = if args.mcs {
            desired::mcs_crds_yaml().map_err(|error| anyhow!(error))
        } else {
            desired::crds_yaml().map_err(Into::into)
        };
        return super::print(&yaml.context("cannot write the definitions as YAML")?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(apply(args))
}

async fn apply(args: Crds) -> Result<()> {
    let target = Target { kubeconfig: args.kubeconfig, context: args.context };
    let client = remote_secret::client(remote_secret::config(&target).await?)?;
    let definitions = if args.mcs { desired::mcs_crds()? } else { desired::crds() };
    for definition in definitions {
        let name = definition.name_any();
        let done = if args.mcs {
            apply_newer(&client, definition).await
        } else {
            apply_own(&client, &definition).await.map(|()| "applied".to_owned())
        };
        eprintln!("{name}: {}", done.with_context(|| format!("cannot apply {name}"))?);
    }
    Ok(())
}

/// Kanmon's own: whoever had a hand in it before.
async fn apply_own(client: &Client, definition: &CustomResourceDefinition) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let force = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(&definition.name_any(), &force, &Patch::Apply(definition)).await?;
    established(api, &definition.name_any()).await
}

/// mcs-api's, which others may have installed: never over an equal or newer one. Says what was done.
async fn apply_newer(client: &Client, mut definition: CustomResourceDefinition) -> Result<String> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = definition.name_any();
    let Some(present) = api.get_opt(&name).await? else {
        // Whoever makes it in this moment is told by the server's refusal, and wins.
        let creation = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        api.create(&creation, &definition).await?;
        established(api, &name).await?;
        return Ok("created".to_owned());
    };
    let ours = Revision::of(&definition);
    match verdict(Revision::of(&present), ours) {
        Verdict::Leave(why) => Ok(format!("left as it is: {why}")),
        Verdict::Replace => {
            // Where somebody else was faster than this, the server refuses.
            definition.metadata.resource_version = present.metadata.resource_version;
            let force = PatchParams::apply(FIELD_MANAGER).force();
            api.patch(&name, &force, &Patch::Apply(&definition)).await?;
            established(api, &name).await?;
            Ok(format!("brought to {}", ours.map(|ours| ours.to_string()).unwrap_or_default()))
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Replace,
    Leave(String),
}

fn verdict(present: Option<Revision>, ours: Option<Revision>) -> Verdict {
    match (present, ours) {
        (Some(present), Some(ours)) if present < ours => Verdict::Replace,
        (Some(present), _) => Verdict::Leave(format!("the cluster has {present}")),
        (None, _) => Verdict::Leave(
            "its labels don't tell its revision, so it may be newer; both v1beta1 and v1alpha1 work. To replace it \
             all the same: kanmon crds --mcs | kubectl apply --server-side --force-conflicts -f -"
                .to_owned(),
        ),
    }
}

/// Waits until the server serves the resource, so that objects of it can follow at once.
async fn established(api: Api<CustomResourceDefinition>, name: &str) -> Result<()> {
    let served = await_condition(api, name, conditions::is_crd_established());
    match tokio::time::timeout(ESTABLISHED, served).await {
        Ok(result) => result.map(drop).context("cannot see whether it is served"),
        Err(_) => bail!(
            "the API server does not serve it after {} s; `kubectl describe crd {name}` says why",
            ESTABLISHED.as_secs()
        ),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Cli;
    use super::*;

    #[test]
    fn an_equal_newer_or_unknown_revision_is_left_alone() {
        let ours = Revision::of(&desired::mcs_crds().unwrap()[0]);
        let with_release = |release: &str| {
            let mut crd = desired::mcs_crds().unwrap().remove(0);
            let labels = crd.metadata.labels.as_mut().unwrap();
            labels.insert("multicluster.x-k8s.io/release-version".to_owned(), release.to_owned());
            Revision::of(&crd)
        };
        assert_eq!(verdict(with_release("v0.5.1"), ours), Verdict::Replace);
        for release in ["v0.5.2", "v0.6.0", "none"] {
            assert!(matches!(verdict(with_release(release), ours), Verdict::Leave(_)), "{release}");
        }
    }

    #[test]
    fn a_cluster_is_named_only_to_apply() {
        assert!(Cli::try_parse_from(["kanmon", "crds", "--mcs"]).is_ok());
        assert!(Cli::try_parse_from(["kanmon", "crds", "--apply", "--context", "c"]).is_ok());
        assert!(Cli::try_parse_from(["kanmon", "crds", "--context", "c"]).is_err());
        assert!(Cli::try_parse_from(["kanmon", "crds", "--kubeconfig", "f"]).is_err());
    }
}
