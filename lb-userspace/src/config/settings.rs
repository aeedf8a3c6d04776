//! The checked settings.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use lb_common::abi::{self, MAX_FLOW_SLOT, MAX_MEMBER_INDEX, MAX_SNAT_ADDRESSES, PORT_BITMAP_WORDS};
use lb_common::clock::{MAX_TIMEOUT_TICKS, TICK_NS, ticks_from_millis};
use serde::Deserialize;
use thiserror::Error;

use super::duration::format_duration;
use super::options::Options;
use super::source::{self, Source};

/// What Linux allows itself of ICMP messages in a second (`icmp_msgs_per_sec`).
const DEFAULT_REFUSALS: u32 = 1000;
/// More would let a forged flood be reflected.
const MOST_REFUSALS: u32 = 100_000;

/// The settings of a gateway; every value is within its limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Interfaces to attach to, at least one, each once.
    pub interfaces: Vec<String>,
    /// Where member clusters and their objects are found.
    pub source: Source,
    /// What gateways that serve the same clusters share; the ring's key derives from it.
    pub cluster_set_id: String,
    /// Region of this gateway; empty: unknown.
    pub region: String,
    /// Zone of this gateway; empty: unknown.
    pub zone: String,
    /// Addresses that backends see, at most 8 a family; empty: the interfaces' own.
    pub snat_addresses: Vec<IpAddr>,
    /// Ports of those addresses.
    pub snat_ports: SnatPorts,
    /// Where programs and maps are pinned.
    pub pin_dir: PathBuf,
    /// Where the agent answers `kanmon status` and its like.
    pub socket: PathBuf,
    /// Where `/healthz` and `/readyz` are answered; `None`: nowhere.
    pub health_address: Option<SocketAddr>,
    /// Where the last good endpoints are kept.
    pub state_dir: PathBuf,
    /// Sizes of the tables.
    pub tables: TableSizes,
    /// When idle flows expire.
    pub timeouts: Timeouts,
    /// How long the flows of an endpoint that is gone may go on.
    pub drain_timeout: Duration,
    /// Answers to dropped packets that each CPU sends a second, at most 100,000.
    pub refusals_per_second: u32,
    /// Where the flow log is written; `-`: standard output.
    pub flow_log: Option<PathBuf>,
    /// Which VIPs answer echo requests.
    pub echo: Echo,
    /// How to attach.
    pub xdp_mode: XdpMode,
    /// How much to log.
    pub log_level: LogLevel,
}

/// How many of each the tables hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSizes {
    /// Flows of both families.
    pub flows: u32,
    /// How many of the flows may be IPv6, at most `flows`.
    pub flows_v6: u32,
    /// Services.
    pub services: u32,
    /// Backends.
    pub backends: u32,
    /// Members.
    pub members: u32,
    /// Slots of all rings together.
    pub ring_slots: u32,
    /// Flows whose traffic is counted at once.
    pub flow_counters: u32,
    /// Source ranges of a family, all services together.
    pub source_ranges: u32,
}

impl Default for TableSizes {
    fn default() -> Self {
        Self {
            flows: 1 << 20,
            flows_v6: 1 << 16,
            services: 1 << 12,
            backends: 1 << 12,
            members: 1 << 13,
            ring_slots: 1 << 22,
            flow_counters: 1 << 15,
            source_ranges: 1 << 17,
        }
    }
}

/// When idle flows expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP before the handshake is proven.
    pub tcp_half_open: Duration,
    /// TCP established.
    pub tcp_established: Duration,
    /// TCP closed by both sides.
    pub tcp_closed: Duration,
    /// TCP after a RST.
    pub tcp_reset: Duration,
    /// UDP before the first reply.
    pub udp_new: Duration,
    /// UDP after the first reply.
    pub udp_replied: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_half_open: Duration::from_secs(10),
            tcp_established: Duration::from_secs(3600),
            tcp_closed: Duration::from_secs(60),
            tcp_reset: Duration::from_secs(10),
            udp_new: Duration::from_secs(10),
            udp_replied: Duration::from_secs(60),
        }
    }
}

impl Timeouts {
    /// In ticks, as the packet program reads them; rounded up.
    #[must_use]
    pub fn to_abi(&self) -> abi::Timeouts {
        let ticks = |time: Duration| ticks_from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        abi::Timeouts {
            half_open: ticks(self.tcp_half_open),
            established: ticks(self.tcp_established),
            closed: ticks(self.tcp_closed),
            reset: ticks(self.tcp_reset),
            udp_new: ticks(self.udp_new),
            udp_replied: ticks(self.udp_replied),
        }
    }

    fn named(&self) -> [(&'static str, Duration); 6] {
        [
            ("tcpHalfOpen", self.tcp_half_open),
            ("tcpEstablished", self.tcp_established),
            ("tcpClosed", self.tcp_closed),
            ("tcpReset", self.tcp_reset),
            ("udpNew", self.udp_new),
            ("udpReplied", self.udp_replied),
        ]
    }
}

/// Ports of the SNAT addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum SnatPorts {
    /// Chosen by the agent: outside of the node's own ephemeral ports and of what it listens on.
    #[default]
    Auto,
    /// From `first` to `last`, both included: 64 to 16,384 ports, none below 1024. They are used in words of
    /// 64; a remainder is left unused.
    Range {
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
}

impl FromStr for SnatPorts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const MOST: u32 = PORT_BITMAP_WORDS as u32 * 64;
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let (first, last) = text
            .split_once('-')
            .and_then(|(first, last)| Some((first.parse::<u16>().ok()?, last.parse::<u16>().ok()?)))
            .ok_or_else(|| format!("{text:?} is not a port range; write auto, or one like 32768-49151"))?;
        if first < 1024 {
            return Err(format!("{text:?}: ports below 1024 belong to the node's own servers"));
        }
        let count = (u32::from(last) + 1).saturating_sub(u32::from(first));
        if !(64..=MOST).contains(&count) {
            return Err(format!("{text:?} is {count} ports; a range has 64 to {MOST}"));
        }
        Ok(Self::Range { first, last })
    }
}

impl TryFrom<String> for SnatPorts {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for SnatPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Range { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

/// How to attach to an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver.
    #[default]
    Native,
    /// In the network stack, after the socket buffer was made: works everywhere, and is slow.
    Generic,
}

/// Which VIPs answer ICMP echo requests. The node itself answers for a VIP that is its own address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Echo {
    /// One with a service that has a usable backend: what watches it by ping sees it fail.
    #[default]
    WhenUsable,
    /// All.
    Always,
    /// None.
    Never,
}

/// How much to log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What stops the gateway from doing its work.
    Error,
    /// And what may be wrong.
    Warn,
    /// And what changes.
    #[default]
    Info,
    /// And why.
    Debug,
    /// And every step.
    Trace,
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        })
    }
}

/// Why settings cannot be used.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// The settings file cannot be read.
    #[error("cannot read the settings file {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The settings file cannot be parsed.
    #[error("{path}:{line}:{column}: {what}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What is wrong there.
        what: String,
    },
    /// Something that has no default is not set.
    #[error("{name} is not set; {hint}")]
    Missing {
        /// The setting's name in the file.
        name: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A value cannot be used.
    #[error("{name}: {what}")]
    Invalid {
        /// The setting's name in the file.
        name: &'static str,
        /// What is wrong and what is allowed.
        what: String,
    },
}

impl TryFrom<Options> for Settings {
    type Error = SettingsError;

    fn try_from(options: Options) -> Result<Self, Self::Error> {
        let (tables, timeouts) = (TableSizes::default(), Timeouts::default());
        let source = source::choose(&options)?;
        let settings = Self {
            interfaces: options.interfaces,
            source,
            cluster_set_id: options.cluster_set_id.unwrap_or_else(|| "kanmon".to_owned()),
            region: options.region.unwrap_or_default(),
            zone: options.zone.unwrap_or_default(),
            snat_addresses: options.snat_addresses,
            snat_ports: options.snat_ports.unwrap_or_default(),
            pin_dir: options.pin_dir.unwrap_or_else(|| "/sys/fs/bpf/kanmon".into()),
            socket: options.socket.unwrap_or_else(|| "/run/kanmon/kanmon.sock".into()),
            health_address: options.health_address,
            state_dir: options.state_dir.unwrap_or_else(|| "/var/lib/kanmon".into()),
            tables: TableSizes {
                flows: options.flows.unwrap_or(tables.flows),
                flows_v6: options
                    .flows_v6
                    .unwrap_or_else(|| tables.flows_v6.min(options.flows.unwrap_or(tables.flows))),
                services: options.services.unwrap_or(tables.services),
                backends: options.backends.unwrap_or(tables.backends),
                members: options.members.unwrap_or(tables.members),
                ring_slots: options.ring_slots.unwrap_or(tables.ring_slots),
                flow_counters: options.flow_counters.unwrap_or(tables.flow_counters),
                source_ranges: options.source_ranges.unwrap_or(tables.source_ranges),
            },
            timeouts: Timeouts {
                tcp_half_open: options.tcp_half_open.unwrap_or(timeouts.tcp_half_open),
                tcp_established: options.tcp_established.unwrap_or(timeouts.tcp_established),
                tcp_closed: options.tcp_closed.unwrap_or(timeouts.tcp_closed),
                tcp_reset: options.tcp_reset.unwrap_or(timeouts.tcp_reset),
                udp_new: options.udp_new.unwrap_or(timeouts.udp_new),
                udp_replied: options.udp_replied.unwrap_or(timeouts.udp_replied),
            },
            drain_timeout: options.drain_timeout.unwrap_or(Duration::from_secs(3600)),
            refusals_per_second: options.refusals_per_second.unwrap_or(DEFAULT_REFUSALS),
            flow_log: options.flow_log,
            echo: options.echo.unwrap_or_default(),
            xdp_mode: options.xdp_mode.unwrap_or_default(),
            log_level: options.log_level.unwrap_or_default(),
        };
        settings.check_interfaces()?;
        settings.check_names()?;
        settings.check_snat_addresses()?;
        settings.check_refusals()?;
        settings.tables.check()?;
        settings.timeouts.check()?;
        Ok(settings)
    }
}

impl Settings {
    fn check_interfaces(&self) -> Result<(), SettingsError> {
        let name = "interfaces";
        if self.interfaces.is_empty() {
            return Err(SettingsError::Missing {
                name,
                hint: "say where to attach, with --interface NAME (see `ip link`)",
            });
        }
        for (position, interface) in self.interfaces.iter().enumerate() {
            let allowed = |c: char| !c.is_whitespace() && !c.is_control() && c != '/';
            // IFNAMSIZ is 16 with the closing NUL.
            if interface.is_empty() || interface.len() > 15 || !interface.chars().all(allowed) {
                return Err(invalid(name, format!("{interface:?} cannot be an interface's name")));
            }
            if self.interfaces[..position].contains(interface) {
                return Err(invalid(name, format!("{interface} is named twice")));
            }
        }
        Ok(())
    }

    fn check_names(&self) -> Result<(), SettingsError> {
        let labels = [("clusterSetID", &self.cluster_set_id), ("region", &self.region), ("zone", &self.zone)];
        for (name, value) in labels {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if value.len() > 63 || !value.chars().all(allowed) {
                let what = format!("{value:?} must be at most 63 letters, digits, '-', '_' and '.'");
                return Err(invalid(name, what));
            }
        }
        if self.cluster_set_id.is_empty() {
            return Err(invalid("clusterSetID", "must not be empty".to_owned()));
        }
        Ok(())
    }

    fn check_snat_addresses(&self) -> Result<(), SettingsError> {
        let name = "snatAddresses";
        for (position, address) in self.snat_addresses.iter().enumerate() {
            if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
                let what = format!("{address} is none that a backend could answer; use the gateway's own");
                return Err(invalid(name, what));
            }
            if self.snat_addresses[..position].contains(address) {
                return Err(invalid(name, format!("{address} is named twice")));
            }
        }
        let v4 = self.snat_addresses.iter().filter(|address| address.is_ipv4()).count();
        if v4.max(self.snat_addresses.len() - v4) > MAX_SNAT_ADDRESSES {
            return Err(invalid(name, format!("at most {MAX_SNAT_ADDRESSES} addresses of a family")));
        }
        Ok(())
    }
}

impl Settings {
    /// In a tick, as the packet program counts them; rounded up.
    #[must_use]
    pub const fn refusals_per_tick(&self) -> u32 {
        (self.refusals_per_second as u64 * TICK_NS).div_ceil(1_000_000_000) as u32
    }

    fn check_refusals(&self) -> Result<(), SettingsError> {
        if self.refusals_per_second > MOST_REFUSALS {
            let what = format!("{} is not within 0 to {MOST_REFUSALS}", self.refusals_per_second);
            return Err(invalid("refusalsPerSecond", what));
        }
        Ok(())
    }
}

impl TableSizes {
    fn check(&self) -> Result<(), SettingsError> {
        // The flow table has at least two slots for each flow, and a power of two of them.
        const MOST_FLOWS: u32 = MAX_FLOW_SLOT.div_ceil(2);
        let limits = [
            ("flows", self.flows, 64, MOST_FLOWS),
            ("flowsV6", self.flows_v6, 0, self.flows),
            ("services", self.services, 1, 1 << 20),
            ("backends", self.backends, 1, MAX_MEMBER_INDEX),
            ("members", self.members, 1, MAX_MEMBER_INDEX),
            ("ringSlots", self.ring_slots, 1024, 1 << 30),
            ("flowCounters", self.flow_counters, 1, MAX_FLOW_SLOT.div_ceil(2)),
            ("sourceRanges", self.source_ranges, 1, 1 << 24),
        ];
        for (name, value, least, most) in limits {
            if !(least..=most).contains(&value) {
                return Err(invalid(name, format!("{value} is not within {least} to {most}")));
            }
        }
        Ok(())
    }
}

impl Timeouts {
    fn check(&self) -> Result<(), SettingsError> {
        let least = Duration::from_nanos(TICK_NS);
        let most = Duration::from_nanos(TICK_NS * u64::from(MAX_TIMEOUT_TICKS));
        for (name, timeout) in self.named() {
            if !(least..=most).contains(&timeout) {
                let what = format!(
                    "{} is not within {} to {}",
                    format_duration(timeout),
                    format_duration(least + Duration::from_millis(1)),
                    format_duration(Duration::from_secs(most.as_secs())),
                );
                return Err(invalid(name, what));
            }
        }
        Ok(())
    }
}

pub(super) const fn invalid(name: &'static str, what: String) -> SettingsError {
    SettingsError::Invalid { name, what }
}
