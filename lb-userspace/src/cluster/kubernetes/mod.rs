//! Member clusters that are Kubernetes clusters.

pub mod kubeconfig;
pub mod remote_secret;
