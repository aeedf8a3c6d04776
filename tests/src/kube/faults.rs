//! What can go wrong with a control plane.

use anyhow::{Context, Result};
use hyper::StatusCode;
use k8s_openapi::jiff::SignedDuration;
use nix::sys::signal::Signal;

use super::{
    KubeCluster,
    answers::{Answers, Role},
    cluster::lock,
    etcd,
};

impl KubeCluster {
    /// Kills the API server: connections are reset, new ones refused. etcd keeps every object.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_api(&self) -> Result<()> {
        let process = lock(&self.api).take();
        process.with_context(|| format!("the API server of cluster {} does not run", self.name()))?.kill()
    }

    /// Starts the API server again and waits until it is ready.
    ///
    /// # Errors
    /// When it runs already or does not get ready.
    pub fn start_api(&self) -> Result<()> {
        anyhow::ensure!(lock(&self.api).is_none(), "the API server of cluster {} runs already", self.name());
        self.start_api_server()
    }

    /// Starts the API server again, as one that gives no list in the form of a watch: it was that way by default
    /// before Kubernetes 1.34.
    ///
    /// # Errors
    /// When it does not run, or does not get ready again.
    pub fn stop_streaming_lists(&self) -> Result<()> {
        *lock(&self.flags) = vec!["--feature-gates=WatchList=false".to_owned()];
        self.kill_api()?;
        self.start_api()
    }

    /// Stops the API server where it is: connections are accepted, and nothing ever answers.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause_api(&self) -> Result<()> {
        self.signal_api(Signal::SIGSTOP)
    }

    /// Undoes [`KubeCluster::pause_api`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume_api(&self) -> Result<()> {
        self.signal_api(Signal::SIGCONT)
    }

    /// Cuts the control plane off: nothing outside gets an answer from it, not even an error. Its nodes and
    /// pods go on; so do its controllers, and whatever reaches it within its namespace, as
    /// [`KubeCluster::kubectl`] does.
    ///
    /// # Errors
    /// When its link is gone.
    pub fn partition(&self) -> Result<()> {
        self.place.silence()
    }

    /// Undoes [`KubeCluster::partition`].
    ///
    /// # Errors
    /// When its link is gone.
    pub fn heal(&self) -> Result<()> {
        self.place.heal()
    }

    /// Makes the API server forget what was before now: etcd compacts its history, and the API server starts
    /// again, since its own memory of recent changes would hide that. A watch or a list that goes on from
    /// before is answered 410.
    ///
    /// # Errors
    /// When etcd refuses, or the API server does not get ready again.
    pub fn compact(&self) -> Result<()> {
        self.kill_api()?;
        self.ns()
            .block_on(etcd::compact)
            .with_context(|| format!("cannot compact the history of cluster {}", self.name()))?;
        self.start_api()
    }

    /// Answers every request from outside with `status`, for example 401, 403, 429 or 500, over TLS with the
    /// API server's own certificate. The first time the API server is started again, so that no connection to
    /// it is left; controllers and [`KubeCluster::kubectl`], which use loopback, go on with it.
    ///
    /// # Errors
    /// When `status` is no HTTP status, or the API server does not get ready again.
    pub fn answer_with(&self, status: u16) -> Result<()> {
        let status = StatusCode::from_u16(status).context("an API server answers with an HTTP status")?;
        if self.put_in_front(Role::Failure(status))? {
            return Ok(());
        }
        self.kill_api()?;
        self.start_api()
    }

    /// Sets the clock by which the API server dates its answers to whoever connects from now on. All of those have an
    /// administrator's rights: what stands in front asks for them.
    ///
    /// # Errors
    /// When there is no room in front of the API server.
    pub fn set_clock(&self, ahead: SignedDuration) -> Result<()> {
        self.put_in_front(Role::Clock { kubeconfig: self.local_kubeconfig.clone(), ahead }).map(drop)
    }

    /// Undoes [`KubeCluster::answer_with`] and [`KubeCluster::set_clock`].
    pub fn answer_properly(&self) {
        *lock(&self.answers) = None;
    }

    /// Whether there was something in front before. That ends only now: nobody gets past them in between.
    fn put_in_front(&self, role: Role) -> Result<bool> {
        let (addresses, certificate, key) = self.front();
        let answers = Answers::start(self.ns(), addresses, &certificate, &key, role)?;
        Ok(lock(&self.answers).replace(answers).is_some())
    }

    fn signal_api(&self, signal: Signal) -> Result<()> {
        let api = lock(&self.api);
        let process = api.as_ref();
        process
            .with_context(|| format!("the API server of cluster {} does not run", self.name()))?
            .signal(signal)
    }
}
