//! Clients for API servers.

use std::fmt;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::fault::Fault;
use crate::config::GatewayAccess;

/// To connect may take this long.
const CONNECT: Duration = Duration::from_secs(5);

/// How an API server is reached. Another one asks for a new client.
#[derive(Clone)]
pub(super) enum Access {
    /// As the gateway cluster.
    Gateway(GatewayAccess),
    /// By a kubeconfig from a Secret, checked.
    Member {
        kubeconfig: Box<Kubeconfig>,
        /// Two with the same hash are the same.
        hash: [u8; 32],
    },
    /// A server of a test, over plain HTTP.
    #[cfg(test)]
    Plain(String),
}

impl PartialEq for Access {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Gateway(a), Self::Gateway(b)) => a == b,
            (Self::Member { hash: a, .. }, Self::Member { hash: b, .. }) => a == b,
            #[cfg(test)]
            (Self::Plain(a), Self::Plain(b)) => a == b,
            _ => false,
        }
    }
}

/// Without credentials.
impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gateway(_) => "Gateway",
            Self::Member { .. } => "Member",
            #[cfg(test)]
            Self::Plain(_) => "Plain",
        })
    }
}

impl Access {
    /// A client on connections of its own, whose requests fail when nothing comes for `silence`. Files are
    /// read anew.
    pub(super) async fn client(&self, silence: Duration) -> Result<Client, Fault> {
        let mut config = self.config().await?;
        config.connect_timeout = Some(CONNECT.min(silence));
        config.read_timeout = Some(silence);
        // An old connection was quiet for long: that is not the next answer's fault.
        config.reset_reader_on_write = true;
        // Whoever asks decides when to ask again.
        config.default_retry = false;
        Client::try_from(config).map_err(|error| Fault::of(&error))
    }

    /// The server's address, where that can be said: `https://10.0.0.1:6443/`.
    pub(super) async fn server(&self) -> Option<String> {
        Some(self.config().await.ok()?.cluster_url.to_string())
    }

    async fn config(&self) -> Result<Config, Fault> {
        let (kubeconfig, context) = match self {
            Self::Gateway(GatewayAccess::InCluster) => {
                return Config::incluster().map_err(|error| Fault::credentials(&error));
            }
            Self::Gateway(GatewayAccess::Kubeconfig { path, context }) => {
                let read = Kubeconfig::read_from(path).map_err(|error| Fault::credentials(&error))?;
                (read, context.clone())
            }
            Self::Member { kubeconfig, .. } => (kubeconfig.as_ref().clone(), None),
            #[cfg(test)]
            Self::Plain(url) => return Ok(Config::new(url.parse().expect("a test's URL"))),
        };
        let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
        Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| Fault::credentials(&error))
    }
}
