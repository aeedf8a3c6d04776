//! Pods that break, and are mended.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::{AppPod, KubeStage};
use crate::{
    kubelet::{heal_pod, pod_namespace, silence_pod},
    topology::Dual,
};

impl KubeStage {
    /// A pod refuses connections from now on, though its process runs. Its kubelet calls it not ready where the app
    /// is checked.
    ///
    /// # Errors
    /// When the pod is gone.
    pub fn refuse(&self, pod: &AppPod) -> Result<()> {
        self.signal(pod, Signal::SIGUSR1)
    }

    /// Undoes [`KubeStage::refuse`].
    ///
    /// # Errors
    /// When the pod is gone.
    pub fn accept(&self, pod: &AppPod) -> Result<()> {
        self.signal(pod, Signal::SIGUSR2)
    }

    /// A pod answers nobody from now on, not even with an error.
    ///
    /// # Errors
    /// When the pod is gone.
    pub fn silence(&self, pod: &AppPod) -> Result<()> {
        silence_pod(self.run(), &pod.cluster, &pod.uid)
    }

    /// Undoes [`KubeStage::silence`].
    ///
    /// # Errors
    /// When the pod is gone.
    pub fn heal(&self, pod: &AppPod) -> Result<()> {
        let [IpAddr::V4(v4), IpAddr::V6(v6)] = pod.addresses[..] else {
            anyhow::bail!("pod {} has the addresses {:?}", pod.name, pod.addresses);
        };
        heal_pod(self.run(), &pod.cluster, &pod.uid, Dual { v4, v6 })
    }

    fn signal(&self, pod: &AppPod, signal: Signal) -> Result<()> {
        let ns = pod_namespace(self.run(), &pod.cluster, &pod.uid)
            .with_context(|| format!("pod {} is gone", pod.name))?;
        ensure!(self.run().signal_in(&ns, signal)? > 0, "nothing runs in pod {}", pod.name);
        Ok(())
    }
}
