//! The `kanmon` agent in the gateway's namespace, and what its command line says of it.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    netns::{Link, Process, RunDir},
    topology::{Bed, Pod, program},
};

/// How long the agent may take to load its program and probe every backend: generous, for a busy machine.
const START: Duration = Duration::from_secs(20);

/// How to start the agent.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The interfaces it attaches to; empty: all that the bed's gateway has.
    pub interfaces: Vec<String>,
    /// The gateway's region.
    pub region: String,
    /// More arguments of `kanmon run`.
    pub extra: Vec<String>,
    /// Return only when every ready pod takes new flows.
    pub wait: bool,
}

impl Default for AgentOptions {
    fn default() -> Self {
        AgentOptions { interfaces: Vec::new(), region: "cn-hangzhou".into(), extra: Vec::new(), wait: true }
    }
}

/// A running agent. Dropping it kills it, as `kill -9` would.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    program: PathBuf,
    socket: PathBuf,
    _run: Arc<RunDir>,
}

/// A row of `kanmon backends -o json`: a backend as a member of one service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Backend {
    /// Its member cluster.
    pub cluster: String,
    /// `namespace/name` of the service.
    pub service: String,
    /// The service's VIP.
    pub vip: IpAddr,
    /// The pod's address.
    pub address: IpAddr,
    /// The pod's port.
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// What the probes say; none: not probed, or not yet.
    pub healthy: Option<bool>,
    /// Whether it takes new flows.
    pub usable: bool,
    /// The flows it has.
    pub flows: u64,
}

impl Backend {
    /// Whether this row is about that pod.
    pub fn is(&self, pod: &Pod) -> bool {
        pod.address.both().contains(&self.address)
    }
}

/// A row of `kanmon flows -o json`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Flow {
    /// The client's address and port.
    pub client: String,
    /// The VIP and port.
    pub vip: String,
    /// The pod's address and port.
    pub upstream_host: String,
    /// The pod's cluster, while it is known.
    pub cluster: Option<String>,
    /// The flow's state.
    pub state: String,
}

impl Bed {
    /// Starts the agent in the gateway's namespace on the bed's manifests, with its pins in the run's own
    /// bpffs, and its log in the run's directory.
    ///
    /// # Errors
    /// When it is not built, ends at once, or is not ready in time; its last words are in the error.
    pub fn start_agent(&self, options: AgentOptions) -> Result<Agent> {
        let program = program("kanmon")?;
        let interfaces = if options.interfaces.is_empty() {
            ["eth0", "eth1"]
                .into_iter()
                .filter(|eth| Link::find(self.gateway(), eth).is_ok())
                .map(str::to_owned)
                .collect()
        } else {
            options.interfaces
        };
        let mut command = self.gateway().command(&program);
        command.arg("run");
        for interface in &interfaces {
            command.args(["--interface", interface]);
        }
        command.arg("--manifests").arg(self.manifests().dir());
        command.args(["--region", &options.region]);
        command.arg("--pin-dir").arg(self.bpffs());
        command.arg("--socket").arg(self.socket());
        // The last good endpoints of one run are no other run's.
        command.arg("--state-dir").arg(self.run().path().join("state"));
        command.args(&options.extra);
        let process = self.run().spawn("kanmon", command)?;
        let mut agent = Agent { process, program, socket: self.socket(), _run: self.run().clone() };
        if options.wait {
            agent.wait_ready(START)?;
            agent.wait_for_pods(&self.ready_pods(), START)?;
        }
        Ok(agent)
    }
}

impl Agent {
    /// Its process: to signal, to kill, to read its log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The `kanmon` program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// `kanmon status`.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn status(&self) -> Result<Value> {
        self.ask("status")
    }

    /// `kanmon backends`.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn backends(&self) -> Result<Vec<Backend>> {
        self.ask("backends")
    }

    /// `kanmon flows`.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn flows(&self) -> Result<Vec<Flow>> {
        self.ask("flows")
    }

    /// How the program is attached, over all interfaces: "native", "generic" or both.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn attach_mode(&self) -> Result<String> {
        let status = self.status()?;
        let modes: BTreeSet<&str> = status["attach"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|attachment| attachment["mode"].as_str())
            .collect();
        Ok(modes.into_iter().collect::<Vec<_>>().join("+"))
    }

    /// Waits until the agent says it is ready.
    ///
    /// # Errors
    /// When it ends, or is not ready in time.
    pub fn wait_ready(&mut self, patience: Duration) -> Result<()> {
        self.wait_until("ready", patience, |agent| Ok(agent.status()?["ready"] == true))
    }

    /// Waits until each of these pods is healthy and takes new flows in every service it is in.
    ///
    /// # Errors
    /// When one does not in time.
    pub fn wait_for_pods(&mut self, pods: &[Pod], patience: Duration) -> Result<()> {
        self.wait_until("using every ready pod", patience, |agent| {
            let backends = agent.backends()?;
            Ok(pods.iter().all(|pod| {
                let mut rows = backends.iter().filter(|backend| backend.is(pod)).peekable();
                rows.peek().is_some()
                    && rows.all(|row| {
                        row.usable
                            && row.healthy != Some(false)
                            && (row.protocol != "TCP" || row.healthy.is_some())
                    })
            }))
        })
    }

    /// Waits until a pod takes no new flows any more.
    ///
    /// # Errors
    /// When it still does then.
    pub fn wait_until_unused(&mut self, pod: &Pod, patience: Duration) -> Result<()> {
        self.wait_until(&format!("done with {}", pod.name), patience, |agent| {
            Ok(agent.backends()?.iter().all(|row| !row.is(pod) || !row.usable))
        })
    }

    /// Ends it by SIGINT, as a person's Ctrl-C: it detaches and cleans up.
    ///
    /// # Errors
    /// When it does not end within 10 s, or not with success.
    pub fn interrupt(self) -> Result<()> {
        self.end(Signal::SIGINT)
    }

    /// Ends it by SIGTERM, as a restart: what it pinned goes on forwarding.
    ///
    /// # Errors
    /// When it does not end within 10 s, or not with success.
    pub fn terminate(self) -> Result<()> {
        self.end(Signal::SIGTERM)
    }

    fn end(mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)?;
        let status = self.process.wait(Duration::from_secs(10))?;
        ensure!(status.success(), "after {signal} the agent ended with {status}:\n{}", self.last_words());
        Ok(())
    }

    fn wait_until(
        &mut self,
        what: &str,
        patience: Duration,
        done: impl Fn(&Agent) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let why = match done(self) {
                Ok(true) => return Ok(()),
                Ok(false) => String::new(),
                Err(e) => format!(": {e:#}"),
            };
            if let Some(status) = self.process.try_wait()? {
                bail!("the agent ended with {status}:\n{}", self.last_words());
            }
            if Instant::now() >= deadline {
                bail!("the agent is not {what} after {patience:?}{why}; its log:\n{}", self.last_words());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn last_words(&self) -> String {
        self.process.log_tail(20)
    }

    fn ask<T: DeserializeOwned>(&self, what: &str) -> Result<T> {
        let output = Command::new(&self.program)
            .arg(what)
            .arg("--socket")
            .arg(&self.socket)
            .args(["-o", "json"])
            .output()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        ensure!(
            output.status.success(),
            "kanmon {what} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        serde_json::from_slice(&output.stdout).with_context(|| format!("kanmon {what} printed no such JSON"))
    }
}
