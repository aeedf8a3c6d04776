//! `kanmon uninstall`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::cluster::kubernetes::uninstall::{Uninstall, uninstall};
use crate::remote_secret::{self, Target};

/// Removes status, imports, EndpointSlices, allocations and Leases. Stop the gateways first.
///
/// Kanmon's resources and their definitions stay: `kanmon crds | kubectl delete -f -` removes them.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Context of the gateway cluster [default: the current one].
    #[arg(long)]
    context: Option<String>,
    /// Kubeconfig with that context [default: $KUBECONFIG, else ~/.kube/config].
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The gateways' cluster set.
    #[arg(long, value_name = "ID", default_value = "kanmon")]
    cluster_set_id: String,
    /// Namespaces whose Secrets register members.
    #[arg(long, value_delimiter = ',', default_values = ["kanmon-system", "istio-system"])]
    secret_namespaces: Vec<String>,
    /// Reach members whose kubeconfig says insecure-skip-tls-verify.
    #[arg(long)]
    allow_insecure_members: bool,
}

/// What is done goes to standard output.
pub(super) fn run(arguments: Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let target = Target { kubeconfig: arguments.kubeconfig, context: arguments.context };
    let what = Uninstall {
        cluster_set_id: arguments.cluster_set_id,
        secret_namespaces: arguments.secret_namespaces,
        allow_insecure_members: arguments.allow_insecure_members,
    };
    runtime.block_on(async {
        let gateway = remote_secret::client(remote_secret::config(&target).await?)?;
        uninstall(&gateway, &what, &mut |line| println!("{line}")).await
    })
}
