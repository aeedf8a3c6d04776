//! `kanmon remote-secret`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use crate::remote_secret::{self, Account, Form, Target};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make an account in a member cluster and print the Secret that registers the cluster.
    ///
    /// Apply what is printed to the gateway's cluster:
    /// `kanmon remote-secret create --context shanghai --name shanghai | kubectl --context gateway apply -f -`.
    /// Doing it again changes nothing and prints the same Secret.
    Create(Create),
    /// Remove the account from a member cluster; its token stops working at once.
    Delete(Delete),
}

#[derive(Debug, Args)]
pub(super) struct Create {
    #[command(flatten)]
    place: Place,
    /// Name of the member cluster: a DNS label.
    #[arg(long)]
    name: String,
    /// URL of its API server as the gateway reaches it [default: the context's].
    #[arg(long, value_name = "URL")]
    server: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    #[command(flatten)]
    place: Place,
    /// Name of the member cluster, to say which Secret is of no use any more.
    #[arg(long)]
    name: Option<String>,
}

/// The member cluster, and the account in it.
#[derive(Debug, Args)]
struct Place {
    /// Context of the member cluster [default: the current one].
    #[arg(long)]
    context: Option<String>,
    /// Kubeconfig with that context [default: $KUBECONFIG, else ~/.kube/config].
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Use istioctl's names, label and rights: the Secret is read by istiod and by Kanmon.
    #[arg(long)]
    istio: bool,
    /// Namespace of the account and of the Secret [default: kanmon-system; with --istio istio-system].
    #[arg(long)]
    namespace: Option<String>,
    /// Name of the account [default: kanmon-member; with --istio istio-reader-service-account].
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,
}

impl Place {
    fn target(&self) -> Target {
        Target { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() }
    }

    fn account(&self) -> Account {
        let form = if self.istio { Form::Istio } else { Form::Kanmon };
        Account {
            form,
            namespace: self.namespace.clone().unwrap_or_else(|| form.namespace().to_owned()),
            service_account: self
                .service_account
                .clone()
                .unwrap_or_else(|| form.service_account().to_owned()),
        }
    }
}

/// The Secret goes to standard output, everything else to standard error.
pub(super) fn run(command: Command) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let mut say = |line: &str| eprintln!("{line}");
    match command {
        Command::Create(Create { place, name, server }) => {
            let (target, account) = (place.target(), place.account());
            let create = remote_secret::create(&target, &account, &name, server.as_deref(), &mut say);
            super::print(&runtime.block_on(create)?)
        }
        Command::Delete(Delete { place, name }) => {
            let account = place.account();
            runtime.block_on(remote_secret::delete(&place.target(), &account, &mut say))?;
            let secret = account.form.secret_name(name.as_deref().unwrap_or("NAME"));
            say(&format!(
                "remove the Secret from the gateway's cluster too: kubectl delete secret -n {} {secret}",
                account.namespace
            ));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command as Top};
    use super::*;

    fn place(arguments: &[&str]) -> Place {
        let arguments = ["kanmon", "remote-secret", "create", "--name", "n"].iter().chain(arguments);
        match Cli::parse_from(arguments).command {
            Top::RemoteSecret(Command::Create(create)) => create.place,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_that_are_not_given_are_those_of_the_form() {
        let account = place(&["--context", "c"]).account();
        assert_eq!((account.form, account.namespace.as_str()), (Form::Kanmon, "kanmon-system"));
        let account = place(&["--istio"]).account();
        assert_eq!((account.form, account.namespace.as_str()), (Form::Istio, "istio-system"));
        assert_eq!(account.service_account, "istio-reader-service-account");
        let account = place(&["--istio", "--namespace", "x", "--service-account", "y"]).account();
        assert_eq!((account.namespace.as_str(), account.service_account.as_str()), ("x", "y"));
    }
}
