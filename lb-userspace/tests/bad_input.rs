//! What the binary does with what it can't use: it says what is wrong and how to put it right, before it has
//! touched anything; and a running agent keeps serving what it had.
//!
//! Each test that needs the kernel runs in a network namespace of its own, with pins of its own.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const KANMON: &str = env!("CARGO_BIN_EXE_kanmon");
const PATIENCE: Duration = Duration::from_secs(20);

/// A network namespace with one veth pair, `gw` and its peer, and the directories of an agent.
struct World {
    files: tempfile::TempDir,
    pins: PathBuf,
}

impl World {
    /// Moves this test's thread, and with it every process it starts, into a new network namespace. The
    /// kernel removes it with the last of them.
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        ip("link set lo up");
        ip("link add gw type veth peer name client");
        for name in ["gw", "client"] {
            ip(&format!("link set {name} up"));
        }
        ip("addr add 192.168.0.2/24 dev gw");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pins = format!("/sys/fs/bpf/kanmon-bad-input-{}-{number}", std::process::id());
        let world = Self { files: tempfile::tempdir().unwrap(), pins: pins.into() };
        world.write("pool.yaml", "apiVersion: kanmon.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: p}\nspec: {cidrs: [192.168.100.0/24]}\n");
        world.write("a/service.yaml", &service("one", "192.168.100.10"));
        world
    }

    fn manifests(&self) -> PathBuf {
        self.files.path().join("manifests")
    }

    fn socket(&self) -> PathBuf {
        self.files.path().join("agent.sock")
    }

    /// Writes a manifest so that it appears whole.
    fn write(&self, name: &str, text: &str) {
        let path = self.manifests().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let beside = path.with_extension("new");
        fs::write(&beside, text).unwrap();
        fs::rename(&beside, &path).unwrap();
    }

    fn command(&self, interface: &str) -> Command {
        let mut command = Command::new(KANMON);
        command.args(["run", "--interface", interface, "--flows", "4096"]);
        command.arg("--manifests").arg(self.manifests());
        command.arg("--pin-dir").arg(&self.pins);
        command.arg("--socket").arg(self.socket());
        command.arg("--state-dir").arg(self.files.path().join("state"));
        command
    }

    /// Runs the agent with settings that it must refuse; returns what it wrote to stderr.
    fn refused(&self, command: &mut Command) -> String {
        let mut agent = Agent::start(self, command);
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = agent.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the agent runs on:\n{}", agent.log());
            std::thread::sleep(Duration::from_millis(10));
        };
        let log = agent.log();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("error: "), "{log}");
        log
    }

    fn agent(&self) -> Agent {
        let mut agent = Agent::start(self, &mut self.command("gw"));
        agent.until("the agent is ready", |agent| agent.status()["ready"] == true);
        agent
    }

    /// Whether anything is attached to the interface.
    fn attached(&self) -> bool {
        let output = Command::new("ip").args(["link", "show", "dev", "gw"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("xdp")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = Command::new(KANMON)
            .args(["cleanup", "--pin-dir"])
            .arg(&self.pins)
            .arg("--socket")
            .arg(self.socket())
            .output();
    }
}

/// A running agent; killed with the test.
struct Agent {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Agent {
    fn start(world: &World, command: &mut Command) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let log = world.files.path().join(format!("log-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, socket: world.socket(), log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn ask(&self, what: &str) -> Option<Value> {
        let output = query(&self.socket, &[what, "-o", "json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    fn status(&self) -> Value {
        self.ask("status").unwrap_or(Value::Null)
    }

    /// VIPs of the services.
    fn vips(&self) -> Vec<String> {
        let services = self.ask("services").unwrap();
        services.as_array().unwrap().iter().map(|row| row["vip"].as_str().unwrap().to_owned()).collect()
    }

    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert_eq!(self.child.try_wait().unwrap(), None, "before {what}:\n{}", self.log());
            assert!(Instant::now() < deadline, "never: {what}\n{}\n{}", self.status(), self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn end(&mut self, signal: Signal) -> String {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        assert!(self.child.wait().unwrap().success(), "{}", self.log());
        self.log()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn query(socket: &Path, arguments: &[&str]) -> Output {
    Command::new(KANMON).args(arguments).arg("--socket").arg(socket).output().unwrap()
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn service(name: &str, vip: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{namespace: demo, name: {name}, annotations: {{kanmon.dev/addresses: \"{vip}\"}}}}
spec:
  type: LoadBalancer
  loadBalancerClass: kanmon.dev/xdp
  ports: [{{name: http, protocol: TCP, port: 80}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{namespace: demo, name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: http, protocol: TCP, port: 8080}}]
endpoints: [{{addresses: [\"192.168.0.77\"], conditions: {{ready: true}}}}]
"
    )
}

#[test]
fn status_without_an_agent_says_how_to_start_one() {
    let files = tempfile::tempdir().unwrap();
    for what in ["status", "services", "backends", "flows"] {
        let output = query(&files.path().join("none.sock"), &[what]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("no agent is running") && text.contains("kanmon run"), "{text}");
    }
}

#[test]
fn an_unknown_interface_is_refused_by_name() {
    let world = World::new();
    let log = world.refused(&mut world.command("eth77"));
    assert!(log.contains("eth77"), "{log}");
    assert!(!world.pins.exists(), "nothing is pinned");
}

#[test]
fn missing_capabilities_are_named() {
    let world = World::new();
    let mut command = Command::new("setpriv");
    command.args(["--inh-caps=-all", "--bounding-set=-all", "--"]);
    let run = world.command("gw");
    command.arg(run.get_program()).args(run.get_args());
    let log = world.refused(&mut command);
    assert!(log.contains("CAP_BPF") && log.contains("CAP_NET_ADMIN"), "{log}");
}

#[test]
fn broken_yaml_at_the_start_is_reported_with_its_place_and_the_rest_is_served() {
    let world = World::new();
    world.write("b/broken.yaml", "kind: Service\nmetadata: {name: [\n");
    let agent = world.agent();
    assert_eq!(agent.vips(), ["192.168.100.10"]);
    let problems = agent.status()["problems"].to_string();
    assert!(problems.contains("broken.yaml"), "{problems}");
}

#[test]
fn a_manifest_directory_that_is_missing_is_refused() {
    let world = World::new();
    fs::remove_dir_all(world.manifests()).unwrap();
    let log = world.refused(&mut world.command("gw"));
    assert!(log.contains("manifests"), "{log}");
    assert!(!world.attached(), "nothing is attached");
}

#[test]
fn yaml_that_breaks_later_changes_nothing_until_it_is_mended() {
    let world = World::new();
    let mut agent = world.agent();
    world.write("a/service.yaml", "kind: Service\nmetadata: {name: [\n");
    agent.until("the broken file is reported with line and column", |agent| {
        let problems = agent.status()["problems"].to_string();
        problems.contains("service.yaml") && problems.contains("line 2, column")
    });
    assert_eq!(agent.vips(), ["192.168.100.10"]);
    world.write("a/service.yaml", &service("one", "192.168.100.11"));
    agent.until("the mended file takes effect", |agent| agent.vips() == ["192.168.100.11"]);
    agent.until("the problem is gone", |agent| {
        !agent.status()["problems"].to_string().contains("service.yaml")
    });
}

#[test]
fn a_vip_that_two_services_ask_for_goes_to_one_and_the_other_is_told() {
    let world = World::new();
    world.write("a/two.yaml", &service("two", "192.168.100.10"));
    let agent = world.agent();
    assert_eq!(agent.vips(), ["192.168.100.10"]);
    let problems = agent.status()["problems"].to_string();
    assert!(problems.contains("AddressConflict") && problems.contains("demo/two"), "{problems}");
}

#[test]
fn a_port_range_that_overlaps_the_nodes_own_is_refused_with_the_fix() {
    let world = World::new();
    let log = world.refused(world.command("gw").args(["--snat-ports", "32768-49151"]));
    assert!(log.contains("32768"), "{log}");
    assert!(!world.attached(), "nothing is attached");
}

#[test]
fn a_second_agent_on_the_same_pins_is_refused_and_the_first_goes_on() {
    let world = World::new();
    let agent = world.agent();
    let mut second = world.command("gw");
    second.arg("--socket").arg(world.files.path().join("second.sock"));
    // --socket may be given once: the second agent's is the last one on a command line of its own.
    let mut command = Command::new(KANMON);
    let mut arguments: Vec<_> = second.get_args().map(ToOwned::to_owned).collect();
    let first = arguments.iter().position(|argument| argument == "--socket").unwrap();
    arguments.drain(first..first + 2);
    let log = world.refused(command.args(arguments));
    assert!(log.contains("another agent"), "{log}");
    assert_eq!(agent.status()["ready"], true);
}

#[test]
fn a_foreign_xdp_program_is_never_replaced() {
    let world = World::new();
    let agent = world.agent();
    let mut stranger = world.command("gw");
    stranger.arg("--log-level").arg("debug");
    // Another gateway's agent, with pins of its own, is a stranger to the first one's program.
    let arguments: Vec<_> = stranger
        .get_args()
        .map(|argument| match argument.to_str() {
            Some(text) if Path::new(text) == world.pins => format!("{text}-other").into(),
            Some(text) if Path::new(text) == world.socket() => format!("{text}-other").into(),
            _ => argument.to_owned(),
        })
        .collect();
    let log = world.refused(Command::new(KANMON).args(arguments));
    assert!(log.contains("gw already runs an XDP program of somebody else"), "{log}");
    assert_eq!(agent.status()["ready"], true);
    assert!(world.attached());
    assert!(!PathBuf::from(format!("{}-other", world.pins.display())).exists(), "nothing is pinned");
}

#[test]
fn ctrl_c_removes_everything_and_sigterm_leaves_it_for_the_next_agent() {
    let world = World::new();
    let mut first = world.agent();
    first.end(Signal::SIGTERM);
    assert!(world.attached(), "SIGTERM leaves the program attached");
    assert!(world.pins.exists(), "SIGTERM leaves the pins");
    let mut second = world.agent();
    assert_eq!(second.status()["adopted"], true);
    assert_eq!(second.vips(), ["192.168.100.10"]);
    second.end(Signal::SIGINT);
    assert!(!world.attached(), "SIGINT detaches");
    assert!(!world.pins.exists(), "SIGINT removes the pins");
    assert!(!world.socket().exists(), "SIGINT removes the socket");
}

#[test]
fn a_setting_file_with_an_unknown_name_is_refused_with_line_and_column() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("kanmon.yaml");
    fs::write(&path, "interfaces: [gw]\npindir: /x\n").unwrap();
    let mut child =
        Command::new(KANMON).args(["run", "--config"]).arg(&path).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{log}");
    assert!(log.contains("kanmon.yaml:2:1"), "{log}");
}
