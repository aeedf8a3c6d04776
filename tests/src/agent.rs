//! The `kanmon` agent in the gateway's namespace, and what its command line says of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write},
    net::{IpAddr, Shutdown},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex, PoisonError},
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
const START: Duration = Duration::from_secs(60);

/// How to start the agent.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The interfaces it attaches to; empty: all that the bed's gateway has.
    pub interfaces: Vec<String>,
    /// The gateway's region.
    pub region: String,
    /// The gateway's zone; empty: it is not told.
    pub zone: String,
    /// More arguments of `kanmon run`.
    pub extra: Vec<String>,
    /// Return only when every ready pod takes new flows.
    pub wait: bool,
}

impl Default for AgentOptions {
    fn default() -> Self {
        AgentOptions {
            interfaces: Vec::new(),
            region: "cn-hangzhou".into(),
            zone: String::new(),
            extra: Vec::new(),
            wait: true,
        }
    }
}

/// A running agent. Dropping it kills it, as `kill -9` would.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    program: PathBuf,
    socket: PathBuf,
    run: Arc<RunDir>,
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
    /// Whether it keeps its flows and takes no new ones.
    pub draining: bool,
    /// Why it drains, in a word.
    pub drain_cause: Option<String>,
    /// Why it takes no new flows.
    pub reason: Option<String>,
    /// The flows it has.
    pub flows: u64,
}

impl Backend {
    /// Whether this row is about that pod.
    pub fn is(&self, pod: &Pod) -> bool {
        pod.address.both().contains(&self.address)
    }
}

/// What `kanmon drain` or `kanmon undrain` did.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Drained {
    /// What was meant, in full.
    pub names: Vec<String>,
    /// Whether it was otherwise before.
    pub changed: bool,
    /// Whether packets go by it already.
    pub in_force: bool,
    /// How many backends that is.
    pub backends: usize,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// A member cluster as `kanmon status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its region, where it is known.
    pub region: Option<String>,
    /// `Active`, `Drain` or `Disabled`.
    pub state: String,
    /// How its API server answers; none for a directory of manifests.
    pub connection: Option<Connection>,
    /// How many backends are in it.
    pub endpoints: usize,
}

/// How a member cluster's API server answers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Connection {
    /// Whether it does; none: it has not been asked yet.
    pub connected: Option<bool>,
    /// Whether everything in it was read on the present connection.
    pub synced: bool,
    /// `Connected`, or one word for why it is not.
    pub reason: String,
    /// A sentence where something is wrong.
    pub message: Option<String>,
    /// Since when it is or is not connected, RFC 3339, UTC.
    pub since: String,
}

/// Something that `kanmon status` says is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Problem {
    /// The cluster it is in; none: the gateway's own.
    pub cluster: Option<String>,
    /// What it is about.
    pub object: String,
    /// One word for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// A row of `kanmon flows -o json`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
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
    /// The source that the pod sees.
    pub snat: String,
}

/// A record of the flow log. What it does not say is empty or none.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct FlowRecord {
    /// `opened`, `rescued`, `closed` or `lost`.
    pub state: String,
    /// The client's address and port.
    pub client: String,
    /// The VIP and port.
    pub vip: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// `namespace/name`.
    pub service: String,
    /// The pod's address and port.
    pub upstream_host: String,
    /// Of a rescued flow: the pod before.
    pub previous_upstream_host: String,
    /// The pod's cluster.
    pub cluster: String,
    /// The pod's region.
    pub region: String,
    /// Why it ended.
    pub close_reason: String,
    /// From its first packet to its last.
    pub duration_seconds: Option<f64>,
    /// Bytes towards the pod.
    pub bytes_in: Option<u64>,
    /// Packets towards the pod.
    pub packets_in: Option<u64>,
    /// Bytes towards the client.
    pub bytes_out: Option<u64>,
    /// Packets towards the client.
    pub packets_out: Option<u64>,
    /// How many records were lost.
    pub lost: Option<u64>,
}

/// Who follows the flow log over the agent's socket. Dropping it ends that.
#[derive(Debug)]
pub struct Follower {
    stream: UnixStream,
    records: Arc<Mutex<Vec<FlowRecord>>>,
}

impl Follower {
    fn start(socket: &Path, filter: Value) -> Result<Follower> {
        let mut stream = UnixStream::connect(socket)?;
        writeln!(stream, "{filter}")?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().context("the agent hung up")??;
        ensure!(first == r#"{"ok":"following"}"#, "the agent says {first}");
        let records = Arc::new(Mutex::new(Vec::new()));
        let seen = records.clone();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let record = serde_json::from_str(&line).unwrap_or_else(|e| panic!("no record: {line}: {e}"));
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(record);
            }
        });
        Ok(Follower { stream, records })
    }

    /// The records so far.
    pub fn records(&self) -> Vec<FlowRecord> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// The records in a file, a line each; a last line that is not complete yet is left out.
///
/// # Errors
/// When the file can't be read, or a line is no record.
pub fn read_records(path: &Path) -> Result<Vec<FlowRecord>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("no record: {line}")))
        .collect()
}

/// More than any test has flows: so many are shown.
const ALL_FLOWS: &str = "1000000";

impl Bed {
    /// Starts the agent in the gateway's namespace on the bed's manifests, with its pins in the run's own
    /// bpffs, and its log in the run's directory.
    ///
    /// # Errors
    /// When it is not built, ends at once, or is not ready in time; its last words are in the error.
    pub fn start_agent(&self, options: AgentOptions) -> Result<Agent> {
        let wait = options.wait;
        let mut agent = Agent::start(self.run(), "kanmon", self.agent_command(options)?, self.socket())?;
        if wait {
            agent.wait_ready(START)?;
            agent.wait_for_pods(&self.ready_pods(), START)?;
        }
        Ok(agent)
    }

    /// The command that [`Bed::start_agent`] starts.
    ///
    /// # Errors
    /// When the agent is not built.
    pub fn agent_command(&self, options: AgentOptions) -> Result<Command> {
        let interfaces = if options.interfaces.is_empty() {
            ["eth0", "eth1"]
                .into_iter()
                .filter(|eth| Link::find(self.gateway(), eth).is_ok())
                .map(str::to_owned)
                .collect()
        } else {
            options.interfaces
        };
        let mut command = self.gateway().command(program("kanmon")?);
        command.arg("run");
        for interface in &interfaces {
            command.args(["--interface", interface]);
        }
        command.arg("--manifests").arg(self.manifests().dir());
        command.args(["--region", &options.region]);
        if !options.zone.is_empty() {
            command.args(["--zone", &options.zone]);
        }
        command.arg("--pin-dir").arg(self.bpffs());
        command.arg("--socket").arg(self.socket());
        // The last good endpoints of one run are no other run's.
        command.arg("--state-dir").arg(self.run().path().join("state"));
        command.args(&options.extra);
        Ok(command)
    }

    /// Runs the agent where it is expected to refuse; returns what it wrote, and how it ended.
    ///
    /// # Errors
    /// When it is not built.
    pub fn refused_agent(&self, options: AgentOptions) -> Result<Output> {
        self.agent_command(options)?.output().context("cannot run the agent")
    }

    /// Runs `kanmon cleanup` on the bed's pins and socket.
    ///
    /// # Errors
    /// When it is not built.
    pub fn cleanup(&self) -> Result<Output> {
        let mut command = self.gateway().command(program("kanmon")?);
        command.arg("cleanup").arg("--pin-dir").arg(self.bpffs()).arg("--socket").arg(self.socket());
        command.output().context("cannot run kanmon cleanup")
    }
}

impl Agent {
    /// Starts an agent by a command that says `kanmon run` and `socket`. Its log is called `name`.
    ///
    /// # Errors
    /// When it is not built or cannot be started.
    pub fn start(run: &Arc<RunDir>, name: &str, command: Command, socket: PathBuf) -> Result<Agent> {
        let process = run.spawn(name, command)?;
        Ok(Agent { process, program: program("kanmon")?, socket, run: run.clone() })
    }

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
        self.ask("status", &[])
    }

    /// What `kanmon status` says is wrong.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn problems(&self) -> Result<Vec<Problem>> {
        Ok(serde_json::from_value(self.status()?["problems"].take())?)
    }

    /// The member clusters of `kanmon status`.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn members(&self) -> Result<Vec<Member>> {
        Ok(serde_json::from_value(self.status()?["clusters"].take())?)
    }

    /// The packet program's counters, by name.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>> {
        Ok(serde_json::from_value(self.status()?["counters"].take())?)
    }

    /// `kanmon services`.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn services(&self) -> Result<Vec<Value>> {
        self.ask("services", &[])
    }

    /// `kanmon backends`.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn backends(&self) -> Result<Vec<Backend>> {
        self.ask("backends", &[])
    }

    /// `kanmon drain` of a cluster or a backend.
    ///
    /// # Errors
    /// When the agent does not answer, or refuses.
    pub fn drain(&self, what: &str) -> Result<Drained> {
        self.ask("drain", &[what])
    }

    /// `kanmon undrain`.
    ///
    /// # Errors
    /// As [`Agent::drain`].
    pub fn undrain(&self, what: &str) -> Result<Drained> {
        self.ask("undrain", &[what])
    }

    /// `kanmon flows`: all of them.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn flows(&self) -> Result<Vec<Flow>> {
        self.ask("flows", &["--limit", ALL_FLOWS])
    }

    /// Follows the flow log from now on, as `kanmon flows --follow` does, with filters like `{"service": "httpbin"}`.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn follow(&self, mut filter: Value) -> Result<Follower> {
        filter["get"] = "follow".into();
        Follower::start(&self.socket, filter)
    }

    /// What `kanmon flows --follow` prints of the next `count` records, while `busy` makes some.
    ///
    /// # Errors
    /// When it fails.
    pub fn follow_by_command(
        &self,
        arguments: &[&str],
        count: usize,
        mut busy: impl FnMut(),
    ) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.args(["flows", "--follow", "--limit", &count.to_string(), "--socket"]).arg(&self.socket);
        let mut process = self.run.spawn("follow", {
            command.args(arguments);
            command
        })?;
        let deadline = Instant::now() + START;
        let status = loop {
            busy();
            if let Some(status) = process.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < deadline, "kanmon flows --follow does not end");
        };
        ensure!(status.success(), "kanmon flows --follow ended with {status}: {}", process.log_tail(5));
        Ok(std::fs::read_to_string(process.log())?)
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

    /// Kills it, as `kill -9` or the kernel's out-of-memory killer would.
    ///
    /// # Errors
    /// When it had ended already.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()
    }

    fn end(mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)?;
        let status = self.process.wait(Duration::from_secs(10))?;
        ensure!(status.success(), "after {signal} the agent ended with {status}:\n{}", self.last_words());
        Ok(())
    }

    /// Waits until something holds.
    ///
    /// # Errors
    /// When the agent ends, or it does not hold in time; `what` completes "the agent is not …".
    pub fn wait_until(
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

    fn ask<T: DeserializeOwned>(&self, what: &str, more: &[&str]) -> Result<T> {
        let output = Command::new(&self.program)
            .arg(what)
            .arg("--socket")
            .arg(&self.socket)
            .args(["-o", "json"])
            .args(more)
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
