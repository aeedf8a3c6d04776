//! What a person wrote: one type for the command line and for the file, so that their names cannot differ.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Deserializer};

use super::duration::parse_duration;
use super::selector::MemberSelector;
use super::settings::{Echo, LogLevel, Settings, SettingsError, SnatPorts, XdpMode};

/// Everything that can be set, each unset unless somebody set it.
///
/// On the command line a name is written `--pin-dir`, in the file `pinDir`.
#[derive(Args, Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Options {
    /// Settings file (YAML) with the names of these flags, `pinDir` for --pin-dir; flags override it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Interface to attach to; give it several times for several
    #[arg(long = "interface", alias = "interfaces", value_name = "NAME", value_delimiter = ',')]
    pub interfaces: Vec<String>,

    /// Directory of manifests: `DIR/*.yaml` is the gateway's, `DIR/<cluster>/*.yaml` a member cluster's
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,

    /// Kubeconfig of the gateway cluster, whose MemberClusters and Secrets name the clusters to serve; in a pod
    /// of that cluster neither this nor --manifests is needed
    #[arg(long, value_name = "FILE", help_heading = "Kubernetes")]
    pub kubeconfig: Option<PathBuf>,

    /// Context of that kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME", help_heading = "Kubernetes")]
    pub context: Option<String>,

    /// Label selector of the MemberClusters that this gateway serves, like `location in (cn-hangzhou)`;
    /// gateways with different ones need a --cluster-set-id each [default: all]
    #[arg(long, value_name = "SELECTOR", help_heading = "Kubernetes")]
    pub member_selector: Option<MemberSelector>,

    /// The Node that this gateway is; its labels give region and zone before --region and --zone
    #[arg(long, env = "NODE_NAME", value_name = "NAME", help_heading = "Kubernetes")]
    pub node_name: Option<String>,

    /// Namespaces whose Secrets register member clusters [default: kanmon-system,istio-system]
    #[arg(
        long,
        alias = "secret-namespace",
        value_name = "NAME",
        value_delimiter = ',',
        help_heading = "Kubernetes"
    )]
    pub secret_namespaces: Vec<String>,

    /// How long a member's Secret may be gone before the member is: time to replace it [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = "Kubernetes")]
    #[serde(deserialize_with = "duration")]
    pub secret_grace_period: Option<Duration>,

    /// How long a deleted MemberCluster waits for its cluster to be cleaned [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = "Kubernetes")]
    #[serde(deserialize_with = "duration")]
    pub cleanup_timeout: Option<Duration>,

    /// Accept members whose kubeconfig says insecure-skip-tls-verify
    #[arg(
        long,
        value_name = "true|false",
        num_args = 0..=1,
        default_missing_value = "true",
        help_heading = "Kubernetes"
    )]
    pub allow_insecure_members: Option<bool>,

    /// Whether this is a pod of a Kubernetes cluster; found out by [`load`].
    #[arg(skip)]
    #[serde(skip)]
    pub in_cluster: bool,

    /// Name that gateways which serve the same clusters share; they choose the same backends [default: kanmon]
    #[arg(long = "cluster-set-id", value_name = "ID")]
    #[serde(rename = "clusterSetID")]
    pub cluster_set_id: Option<String>,

    /// Region of this gateway
    #[arg(long)]
    pub region: Option<String>,

    /// Zone of this gateway
    #[arg(long)]
    pub zone: Option<String>,

    /// Own addresses that backends see as the client's, comma-separated [default: the interface's]
    #[arg(long, alias = "snat-address", value_name = "IP", value_delimiter = ',')]
    pub snat_addresses: Vec<IpAddr>,

    /// Ports for those addresses: `auto` or a range like 32768-49151 [default: auto]
    #[arg(long, value_name = "auto|FIRST-LAST")]
    pub snat_ports: Option<SnatPorts>,

    /// Where programs and maps are pinned, in a bpffs [default: /sys/fs/bpf/kanmon]
    #[arg(long, value_name = "DIR")]
    pub pin_dir: Option<PathBuf>,

    /// Socket that `kanmon status` and its like talk to [default: /run/kanmon/kanmon.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Address and port for the probes /healthz and /readyz, like 127.0.0.1:9440 [default: none]
    #[arg(long, value_name = "IP:PORT")]
    pub health_address: Option<SocketAddr>,

    /// Where the last good endpoints are kept for the next start [default: /var/lib/kanmon]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Flows (of both families) that are promised room [default: 1048576]
    #[arg(long, value_name = "N", help_heading = "Table sizes")]
    pub flows: Option<u32>,

    /// How many of the flows may be IPv6 [default: 65536]
    #[arg(long, value_name = "N", help_heading = "Table sizes")]
    pub flows_v6: Option<u32>,

    /// Services: VIP, port and protocol [default: 4096]
    #[arg(long, value_name = "N", help_heading = "Table sizes")]
    pub services: Option<u32>,

    /// Backends: protocol, address and port [default: 4096]
    #[arg(long, value_name = "N", help_heading = "Table sizes")]
    pub backends: Option<u32>,

    /// Members: backends counted once for each service they are in [default: 8192]
    #[arg(long, value_name = "N", help_heading = "Table sizes")]
    pub members: Option<u32>,

    /// Slots of all rings together [default: 4194304]
    #[arg(long, value_name = "N", help_heading = "Table sizes")]
    pub ring_slots: Option<u32>,

    /// Flows whose traffic the flow log counts at once, where policies ask for it [default: 32768]
    #[arg(long, value_name = "N", help_heading = "Table sizes")]
    pub flow_counters: Option<u32>,

    /// Source ranges of a family, all services together [default: 131072]
    #[arg(long, value_name = "N", help_heading = "Table sizes")]
    pub source_ranges: Option<u32>,

    /// TCP before the handshake is proven [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = "Timeouts")]
    #[serde(deserialize_with = "duration")]
    pub tcp_half_open: Option<Duration>,

    /// TCP established [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = "Timeouts")]
    #[serde(deserialize_with = "duration")]
    pub tcp_established: Option<Duration>,

    /// TCP closed by both sides: how long the SNAT port stays taken [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = "Timeouts")]
    #[serde(deserialize_with = "duration")]
    pub tcp_closed: Option<Duration>,

    /// TCP after a RST that no data followed [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = "Timeouts")]
    #[serde(deserialize_with = "duration")]
    pub tcp_reset: Option<Duration>,

    /// UDP before the first reply [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = "Timeouts")]
    #[serde(deserialize_with = "duration")]
    pub udp_new: Option<Duration>,

    /// UDP after the first reply [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = "Timeouts")]
    #[serde(deserialize_with = "duration")]
    pub udp_replied: Option<Duration>,

    /// How long the flows of an endpoint that is gone may go on [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = "Timeouts")]
    #[serde(deserialize_with = "duration")]
    pub drain_timeout: Option<Duration>,

    /// RSTs and ICMP errors that each CPU sends a second in answer to what is dropped; 0: none [default: 1000]
    #[arg(long, value_name = "N")]
    pub refusals_per_second: Option<u32>,

    /// Write the flow log to this file, a JSON record a line, or to standard output (`-`); SIGHUP opens the file anew
    #[arg(long, value_name = "FILE|-")]
    pub flow_log: Option<PathBuf>,

    /// Which VIPs answer pings: those with a usable backend, all, or none [default: when-usable]
    #[arg(long, value_enum, value_name = "WHEN")]
    pub echo: Option<Echo>,

    /// How to attach: in the driver, or in the slower generic hook [default: native]
    #[arg(long, value_enum, value_name = "MODE")]
    pub xdp_mode: Option<XdpMode>,

    /// How much to log [default: info]
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,
}

impl Options {
    /// Reads the text of a settings file; `path` is for messages only.
    ///
    /// # Errors
    ///
    /// What is wrong, with line and column: bad YAML, an unknown name, a value that means nothing.
    pub fn from_yaml(text: &str, path: &Path) -> Result<Self, SettingsError> {
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(text).map_err(|error| {
            let (line, column, what) = super::yaml::locate(&error);
            SettingsError::File { path: path.to_owned(), line, column, what }
        })
    }

    /// These options, and those of `file` where these are unset.
    #[must_use]
    pub fn or(self, file: Self) -> Self {
        Self {
            config: self.config,
            interfaces: list(self.interfaces, file.interfaces),
            manifests: self.manifests.or(file.manifests),
            kubeconfig: self.kubeconfig.or(file.kubeconfig),
            context: self.context.or(file.context),
            member_selector: self.member_selector.or(file.member_selector),
            node_name: self.node_name.or(file.node_name),
            secret_namespaces: list(self.secret_namespaces, file.secret_namespaces),
            secret_grace_period: self.secret_grace_period.or(file.secret_grace_period),
            cleanup_timeout: self.cleanup_timeout.or(file.cleanup_timeout),
            allow_insecure_members: self.allow_insecure_members.or(file.allow_insecure_members),
            in_cluster: self.in_cluster,
            cluster_set_id: self.cluster_set_id.or(file.cluster_set_id),
            region: self.region.or(file.region),
            zone: self.zone.or(file.zone),
            snat_addresses: list(self.snat_addresses, file.snat_addresses),
            snat_ports: self.snat_ports.or(file.snat_ports),
            pin_dir: self.pin_dir.or(file.pin_dir),
            socket: self.socket.or(file.socket),
            health_address: self.health_address.or(file.health_address),
            state_dir: self.state_dir.or(file.state_dir),
            flows: self.flows.or(file.flows),
            flows_v6: self.flows_v6.or(file.flows_v6),
            services: self.services.or(file.services),
            backends: self.backends.or(file.backends),
            members: self.members.or(file.members),
            ring_slots: self.ring_slots.or(file.ring_slots),
            flow_counters: self.flow_counters.or(file.flow_counters),
            source_ranges: self.source_ranges.or(file.source_ranges),
            tcp_half_open: self.tcp_half_open.or(file.tcp_half_open),
            tcp_established: self.tcp_established.or(file.tcp_established),
            tcp_closed: self.tcp_closed.or(file.tcp_closed),
            tcp_reset: self.tcp_reset.or(file.tcp_reset),
            udp_new: self.udp_new.or(file.udp_new),
            udp_replied: self.udp_replied.or(file.udp_replied),
            drain_timeout: self.drain_timeout.or(file.drain_timeout),
            refusals_per_second: self.refusals_per_second.or(file.refusals_per_second),
            flow_log: self.flow_log.or(file.flow_log),
            echo: self.echo.or(file.echo),
            xdp_mode: self.xdp_mode.or(file.xdp_mode),
            log_level: self.log_level.or(file.log_level),
        }
    }
}

/// Reads the settings file that the flags name, if any, lays the flags over it, and checks the result.
///
/// # Errors
///
/// The file cannot be read or parsed, or the settings cannot be used as they are.
pub fn load(flags: Options) -> Result<Settings, SettingsError> {
    let file = match &flags.config {
        None => Options::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|source| SettingsError::Read { path: path.clone(), source })?;
            Options::from_yaml(&text, path)?
        }
    };
    let mut options = flags.or(file);
    options.in_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    Settings::try_from(options)
}

/// A list on the command line replaces that of the file.
fn list<T>(flags: Vec<T>, file: Vec<T>) -> Vec<T> {
    if flags.is_empty() { file } else { flags }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map(Some).map_err(serde::de::Error::custom)
}
